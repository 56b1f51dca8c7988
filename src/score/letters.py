"""Scoring: the logits of the letters after each prompt, in fp32."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from src.model.causal import causal_of, is_sharded, without_gradient
from src.model.shapes import Shape
from src.model.shards import rows_of
from src.prompt.encode import Example
from src.score.item_scores import ItemScores, Logits
from src.tree import compiler
from src.tree.compare import allowed, gap, rounding
from src.tree.compiled import any_length, make_ready, obstacle, restore_standard_layers, standard_attention
from src.tree.layouts import CPU_BATCH, CPU_TREE, GPU_SCORING, few_lengths, scoring_layout, scoring_slowdown
from src.tree.rows import Kind, Layout, Term, lay_out, logits_at, to_device

PROBES = 4
"""Prompts that are compared before a model's rows are trusted."""
Prompts = Sequence[Sequence[int]]
"""Token ids of prompts, none of which is empty."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of a few prompts in shared rows with the same prompts one by one.

    letter_logits_gap      root mean square of the differences of the letters' logits
    letter_logits_allowed  the gap up to which the two count as the same
    agree                  whether they do
    """

    letter_logits_gap: float
    letter_logits_allowed: float
    agree: bool


@dataclasses.dataclass(frozen=True)
class HowRead:
    """How a model read its prompts.

    kind        of the rows (`Layout.kind`)
    guard       the comparison that decided whether shared rows are trusted; None where nothing was shared
    obstacle    why nothing could be shared; "" where it could, or was not asked for
    """

    kind: Kind
    guard: Comparison | None = None
    obstacle: str = ""

    def as_record(self) -> dict[str, Any]:
        """As `record.json` keeps it, without an obstacle where there is none."""
        record = dataclasses.asdict(self)
        return record if self.obstacle else {"kind": record["kind"], "guard": record["guard"]}


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of items, in the order in which the items came, and how their prompts were read."""

    items: list[ItemScores]
    how: HowRead


class LetterHead(torch.nn.Module):
    """An output head cut down to the letters' tokens. It multiplies in fp32: bf16 logits are 0.06 to 0.125 apart, so
    letters would tie.
    """

    def __init__(self, head: Any, letter_ids: Sequence[int]) -> None:
        super().__init__()
        ids = torch.tensor(list(letter_ids), device=head.weight.device)
        weight = rows_of(head.weight, ids)
        lora = hasattr(head, "lora_B")  # on the head itself; peft also wraps one that was trained whole
        for name in head.active_adapters if lora else ():
            weight += head.scaling[name] * head.lora_B[name].weight[ids].float() @ head.lora_A[name].weight.float()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        bias = getattr(head, "bias", None)
        self.bias = None if bias is None else torch.nn.Parameter(rows_of(bias, ids), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)


@contextlib.contextmanager
def letters_only(model: Any, letter_ids: Sequence[int]) -> Iterator[None]:
    """Within, `model(...).logits` has one column for each letter. Steps of the model after its head (softcap) still
    happen; dropout is off.
    """
    causal = causal_of(model)
    head = causal.get_output_embeddings()
    was_training = model.training
    model.eval()
    causal.set_output_embeddings(LetterHead(head, letter_ids))
    try:
        yield
    finally:
        causal.set_output_embeddings(head)
        model.train(was_training)


class LetterScorer:
    """Reads the letters' logits after prompts with one model.

    letter_ids  the letters' tokens, in the order of the letters
    pad_id      a token to fill rows with; nothing depends on it
    share       whether prompts share the tokens they begin with, as in a recipe's `share_prefixes`

    Before rows that share prefixes are trusted, the first of them is compared with prompts one by one. A scorer does
    this until they agree, and tells once why a model cannot share, so one scorer should serve all calls of a model.
    """

    def __init__(self, model: Any, letter_ids: Sequence[int], pad_id: int, share: str = "auto") -> None:
        self.model, self.letter_ids, self.pad_id, self.share = model, tuple(letter_ids), pad_id, share
        self._agreed: Comparison | None = None
        self._told = ""

    def score(
        self,
        examples: Sequence[Example],
        *,
        update: Callable[[int], None] = lambda done: None,
        batch_tokens: int | None = None,
        kind: Kind | None = None,
    ) -> Scored:
        """One `ItemScores` for each item of `examples` (prompts, from `Encoder.for_scoring`), in the order they came.

        update: gets the count of prompts done. batch_tokens: at most so many tokens in a row, padding counted; by
        default what suits the device. kind: of the rows; by default trees where sharing is worth it, or as `share` has
        it. Where shared rows disagree with prompts one by one, all prompts are read one by one.
        """
        model, prompts = self.model, [example.ids for example in examples]
        why = self._obstacle(prompts) if kind is None and batch_tokens is None and prompts else ""
        layout = self._layout(prompts, kind, batch_tokens, why)
        # fp32 weights, as full training keeps them, are also computed with in bf16; sharded ones are gathered in it.
        mixed = model.device.type == "cuda" and not is_sharded(model)
        mixed = mixed and model.get_input_embeddings().weight.dtype == torch.float32
        autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=mixed)
        guard, failed = None, ""
        with without_gradient(model), letters_only(model, self.letter_ids), autocast:
            try:
                layout, guard = self._trusted(examples, layout)
                logits = self._read(prompts, layout, update)
            except Exception as error:
                if not (failed := compiler.failure(error)) or is_sharded(model):
                    raise
            if failed:
                compiler.give_up(failed, scoring_slowdown(prompts, self.share))
                restore_standard_layers(model)
                layout, guard, why = self._side_by_side(), None, failed
                logits = self._read(prompts, layout, update)
        return Scored(_by_item(examples, logits), HowRead(layout.kind, guard, why))

    def _obstacle(self, prompts: Prompts) -> str:
        """Why the model cannot share prefixes on this machine, printed once; "" when it can."""
        causal = causal_of(self.model)
        machine = compiler.obstacle(self.model.device)
        why = obstacle(type(causal), causal.config, self.model.device)
        if why and why != self._told:
            print(f"no prefixes are shared: {why}", flush=True)
            self._told = why
        if machine:
            compiler.give_up(machine, scoring_slowdown(prompts, self.share))
        return why or machine

    def _layout(self, prompts: Prompts, kind: Kind | None, batch_tokens: int | None, why: str) -> Layout:
        """The layout to read `prompts` in. why: the obstacle to sharing prefixes, if any."""
        if kind == "padded" or why or not prompts:
            return self._side_by_side(batch_tokens)
        if kind or batch_tokens:
            return Layout(kind or "padded", batch_tokens or CPU_TREE, self.pad_id)
        shape = Shape.of_config(self.model.config)
        ready, device = make_ready(self.model), self.model.device
        layout = scoring_layout(prompts, shape, self.pad_id, device, ready, self.share)
        few = ready and not any_length(is_sharded(self.model))
        return few_lengths(layout, prompts, shape, device) if few else layout

    def _side_by_side(self, tokens: int | None = None) -> Layout:
        usual = CPU_BATCH if self.model.device.type == "cpu" else GPU_SCORING
        return Layout("padded", tokens or usual, self.pad_id)

    def _trusted(self, examples: Sequence[Example], layout: Layout) -> tuple[Layout, Comparison | None]:
        """(the layout, or prompts one by one where it gives other logits; the comparison that decided)."""
        if layout.kind == "padded":
            return layout, None
        alone = Layout("padded", CPU_BATCH, self.pad_id, sequences=1)
        guard = self._agreed or self._compared(examples, layout, alone)
        if guard.agree:
            self._agreed = guard
            return layout, guard
        print(
            "WARNING: prompts that share their beginnings are read differently here, "
            f"letter logits by {guard.letter_logits_gap:.3f}; reading all one by one, which is slower",
            flush=True,
        )
        return alone, guard

    def _compared(self, examples: Sequence[Example], layout: Layout, alone: Layout) -> Comparison:
        """The letters' logits of up to two examples of each of two dialogues, in the first rows against alone."""
        model, prompts = self.model, [example.ids for example in examples]
        some = 1 if layout.kind == "tree" else PROBES
        found: dict[int, list[float]] = {}
        for row in itertools.islice(lay_out(prompts, _terms(prompts), layout), some):
            found |= zip(row["target"].tolist(), logits_at(model, to_device(row, model.device)).tolist(), strict=True)
        probes = _probes(examples, found)
        chosen = [prompts[number] for number in probes]
        theirs = self._read(chosen, alone).flatten()
        with rounding(model):
            rounded = self._read(chosen, alone).flatten()
        apart = gap([value for number in probes for value in found[number]], theirs.tolist())
        limit = allowed(gap(rounded.tolist(), theirs.tolist()), model.device.type)
        # Where even prompts one by one give NaN or inf, the weights are at fault.
        return Comparison(apart, limit, agree=apart <= limit or not bool(theirs.isfinite().all()))

    def _read(
        self, prompts: Prompts, layout: Layout, update: Callable[[int], None] = lambda done: None
    ) -> torch.Tensor:
        """(prompts, letters): the letters' logits after each prompt."""
        logits = torch.full((len(prompts), len(self.letter_ids)), float("nan"))
        done = 0
        before: list[tuple[torch.Tensor, torch.Tensor]] = []

        def fetch() -> None:
            nonlocal done
            for numbers, found in before:
                logits[numbers] = found.float().cpu()
                done += len(numbers)
                update(done)
            before.clear()

        with standard_attention(self.model) if layout.kind == "padded" else contextlib.nullcontext():
            for row in lay_out(prompts, _terms(prompts), layout):
                found = logits_at(self.model, to_device(row, self.model.device))
                # The GPU works on this row while the one before is fetched and the next laid out.
                fetch()
                before.append((row["target"], found))
            fetch()
        return logits


def announce(splits: Sequence[Sequence[Example]], device: torch.device) -> None:
    """Tells what keeps this machine from compiling, for `splits` that are to be scored; before weights are loaded."""
    if why := compiler.obstacle(device):
        compiler.give_up(why, scoring_slowdown([example.ids for examples in splits for example in examples]))


def _by_item(examples: Sequence[Example], logits: torch.Tensor) -> list[ItemScores]:
    """`logits`: (examples, letters). The orders of an item need not be adjacent."""
    found: dict[str, list[tuple[str, Logits]]] = {}
    for example, values in zip(examples, logits.tolist(), strict=True):
        found.setdefault(example.id, []).append((example.order, tuple(values)))
    return [
        ItemScores(id, tuple(order for order, _ in pairs), tuple(values for _, values in pairs))
        for id, pairs in found.items()
    ]


def _terms(prompts: Prompts) -> list[Term]:
    """One term after each prompt, whose target is the prompt's index."""
    return [Term(number, len(prompt) - 1, number) for number, prompt in enumerate(prompts)]


def _probes(examples: Sequence[Example], indices: Iterable[int]) -> list[int]:
    """Of the examples at `indices`, up to two of each of the two dialogues with the longest ones."""
    dialogues: dict[str, list[int]] = {}
    for index in sorted(indices, key=lambda index: -len(examples[index].ids)):
        dialogues.setdefault(examples[index].dialogue, []).append(index)
    return [index for some in list(dialogues.values())[:2] for index in some[:2]]
