"""Tokenised sequences → what a model is called with: rows of a prefix tree, or a padded batch.

A `Term` is one place of a sequence at which the model's logits are wanted. Training wants them in front of every
supervised token, scoring behind every prompt. Both lay their sequences out with `lay_out` and call the model with
`logits_at`; which of the layouts it is makes a difference to the time only.

    tree      every token that sequences share stands once in a row
    single    one sequence, or one group of sequences, a row, by the same kernels
    padded    sequences side by side, filled up on the right: the usual path, which the others are held against

On a GPU rows are computed by flex attention in compiled layers (`make_ready`), which are compiled once for each length
of row; so there are few lengths.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask

from src.tree import compiler
from src.tree import prefix as tree

Row = dict[str, Any]

ATTENTION = "tree"
"""Our name for flex attention over the keys as `tree.spread` has them repeated."""
SPREAD = 24
"""Tiles of queries to a copy of the root's keys. One H200, 20,736 tokens, 32 heads of 128: forward and backward take
8.1 ms without copies, 5.5 ms with 24 tiles, 5.4 ms with 12."""
AT_ONCE = 1024
"""Places that the head reads at a time where log-probabilities are asked for: 1.6 GB for a vocabulary of 152,064."""
COMPILATIONS = 1024
"""Of one process, at the most; one more is an error."""
WORTHWHILE = 1.3
"""Tokens of the sequences to tokens of their rows below which a tree is not worth it (unsloth's threshold, too)."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How sequences become rows.

    kind        "tree", "single" or "padded"
    tokens      at most so many in a row, padding counted; a longer sequence has a row to itself
    pad_id      an id to fill rows with; nobody looks at it
    lengths     the lengths that rows of a tree or of one sequence are filled up to, ascending; () for none
    sequences   at most so many in a padded batch, but for a group with more
    """

    kind: str
    tokens: int
    pad_id: int
    lengths: tuple[int, ...] = ()
    sequences: int | None = None


@dataclasses.dataclass(frozen=True)
class Term:
    """One wanted place: the token at `place` of sequence `sequence` predicts `target`, which counts `weight`."""

    sequence: int
    place: int
    target: int
    weight: float = 1.0


def lay_out(
    sequences: Sequence[Sequence[int]], terms: Sequence[Term], layout: Layout, groups: Sequence[int] | None = None
) -> Iterator[Row]:
    """The rows of `sequences`, each made when it is asked for, so that a GPU may compute the one before.

    groups: the group of each sequence; those of one group come in one row, whatever the layout.

    Each holds `input_ids` (int64, (sequences or 1, tokens)), `sequence`, `target` (int64) and `weight` (float32) of its
    m terms, and `source`: the places that predict, (m,) int64 in a tree, else bool like input_ids. Rows of a tree also
    hold depth and end (int64, (tokens,)) and copies (`tree.spread`).
    """
    wanted: dict[int, list[Term]] = {}
    for term in terms:
        wanted.setdefault(term.sequence, []).append(term)
    for numbers in _rows(sequences, layout, groups):
        chosen, terms_of = [sequences[number] for number in numbers], [wanted.get(number, []) for number in numbers]
        padded = layout.kind == "padded"
        yield _padded_row(chosen, terms_of, layout.pad_id) if padded else _tree_row(chosen, terms_of, layout)


def logits_at(model: Any, row: Row) -> torch.Tensor:
    """(m, vocabulary): the model's logits at the row's terms, in their order."""
    if "end" not in row:
        # Filled up on the right, causal attention needs no mask, and has its fast kernels without one.
        out = model(input_ids=row["input_ids"], logits_to_keep=row["source"], use_cache=False)
        return out.logits.reshape(-1, out.logits.shape[-1])
    ours = model.config._attn_implementation == ATTENTION
    keys = {"tree_copies": row["copies"]} if ours else {}
    mask = tree.attention_mask(model.config, row["depth"], row["end"], copies=row["copies"] if ours else None)
    out = model(
        input_ids=row["input_ids"],
        position_ids=row["depth"][None],
        attention_mask=mask,
        logits_to_keep=row["source"],
        use_cache=False,
        **keys,
    )
    return out.logits[0]


def logprobs_at(model: Any, row: Row, at_once: int = AT_ONCE) -> torch.Tensor:
    """(m,): log-probability in nats of each term's target, in the order of the terms, at least in fp32.

    Logits over a vocabulary of 150,000 are larger than all else of a long row. So the head reads `at_once` places at a
    time and, when there are more, again in the backward pass.
    """
    with _headless(model) as (head, softcap):
        hidden = logits_at(model, row)

    def read(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    parts = list(zip(hidden.split(at_once), row["target"].split(at_once), strict=True))
    if len(parts) > 1 and torch.is_grad_enabled():
        return torch.cat([checkpoint(read, *part, use_reentrant=False) for part in parts])
    return torch.cat([read(*part) for part in parts])


@contextlib.contextmanager
def _headless(model: Any) -> Iterator[tuple[Any, float | None]]:
    """Within, the model's "logits" are what its head would be given; gives the head, and the cap of its logits.

    What else a model does to its logits is a factor, which may as well come in front of the head.
    """
    causal = causal_of(model)
    config, head = causal.config.get_text_config(), causal.get_output_embeddings()
    softcap = getattr(config, "final_logit_softcapping", None)
    causal.set_output_embeddings(torch.nn.Identity())
    if softcap is not None:
        config.final_logit_softcapping = None
    try:
        yield head, softcap
    finally:
        causal.set_output_embeddings(head)
        if softcap is not None:
            config.final_logit_softcapping = softcap


def sizes(sequences: Sequence[Sequence[int]], layout: Layout, groups: Sequence[int] | None = None) -> list[int]:
    """Tokens of each row that `lay_out` would make, before they are filled up to a length; of a padded batch, all."""
    rows = [[sequences[number] for number in numbers] for numbers in _rows(sequences, layout, groups)]
    if layout.kind == "padded":
        return [len(row) * max(map(len, row)) for row in rows]
    return [len(tree.build(row)) for row in rows]


def lengths_for(found: Sequence[int], compiling: int) -> tuple[int, ...]:
    """The lengths to fill rows of `found` tokens up to: those with the least cost in tokens, where each length costs
    `compiling` tokens once.
    """
    wanted, count = np.unique(-(-np.asarray(found) // tree.BLOCK) * tree.BLOCK, return_counts=True)
    # best[i]: (cost, lengths) of the i shortest
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for last in range(1, len(wanted) + 1):
        top = int(wanted[last - 1])
        best.append(
            min(
                (best[first][0] + compiling + top * int(count[first:last].sum()), (*best[first][1], top))
                for first in range(last)
            )
        )
    return best[-1][1]


def usual_attention(model_class: Any) -> str:
    """sdpa where the architecture has it; Gemma2's softcap needs eager."""
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def rows_on_gpu(device: torch.device) -> bool:
    """Whether `make_ready` serves for `device`. Elsewhere a tree takes a mask of all pairs, and should be short."""
    return device.type == "cuda" and not compiler.obstacle(device)


def obstacle(model_class: Any, config: Any, device: torch.device) -> str:
    """Why models of this class cannot compute rows of a tree on `device`; "" when they can.

    model_class: None for code that comes with the weights and is not loaded yet.
    """
    name = config.model_type
    if getattr(model_class, "_is_stateful", False):
        return f"{name} carries a state along the sequence, which cannot branch"
    if model_class is not None and "position_ids" not in inspect.signature(model_class.forward).parameters:
        return f"{name} takes no positions of tokens"
    if device.type == "cuda" and not getattr(model_class, "_supports_flex_attn", False):
        return f"{name} has no flex attention in transformers"
    if device.type == "cuda" and (getattr(config.get_text_config(), "attention_dropout", None) or 0) > 0:
        return f"{name} has dropout in its attention, which flex attention has not"
    return tree.obstacle(config)


def make_ready(model: Any, checkpointing: bool = False) -> bool:
    """Has `model` compute rows by flex attention in compiled layers, where there is a GPU for it; whether there is.

    checkpointing: of a layer only the input is kept for the backward pass. The model's own must be off then: it would
    be compiled with the layer, where it is the compiler's word what is kept.
    """
    causal = causal_of(model)
    if not rows_on_gpu(causal.device):
        return False
    if causal.config._attn_implementation != ATTENTION:
        # A layer would go on uncompiled past a limit: slow, and flex attention's gradients are wrong then under
        # checkpointing. Layers of all models count together, and a search for prompts has many lengths of rows.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = COMPILATIONS
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        causal.set_attn_implementation(ATTENTION)
        for layer in causal.get_decoder().layers:
            layer.compile(dynamic=False)
            if checkpointing:
                layer._compiled_call_impl = _checkpointed(layer._compiled_call_impl)
        causal.wanting = causal.get_input_embeddings().register_forward_hook(_wanting_gradients)
    return True


def make_usual(model: Any) -> None:
    """Takes `make_ready` back."""
    causal = causal_of(model)
    if causal.config._attn_implementation == ATTENTION:
        causal.set_attn_implementation(usual_attention(type(causal)))
        for layer in causal.get_decoder().layers:
            layer._compiled_call_impl = None
        causal.wanting.remove()


@contextlib.contextmanager
def usually(model: Any) -> Iterator[None]:
    """Within, `model` computes as Hugging Face's models do, uncompiled, with its usual attention."""
    causal = causal_of(model)
    before = causal.config._attn_implementation
    if before != ATTENTION:
        yield
        return
    causal.set_attn_implementation(usual_attention(type(causal)))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        causal.set_attn_implementation(before)


def totals(rows: Sequence[Row], *keys: str) -> torch.Tensor:
    """(keys,): sums over all rows of what they hold under each key."""
    return torch.stack([sum(row[key].sum() for row in rows) for key in keys])


def to_device(row: Row, device: torch.device) -> Row:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in row.items()
    }


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, tree_copies: tuple[int, int], **keys: Any
) -> Any:
    """Flex attention with the root's keys repeated; autograd adds the copies' gradients up."""
    prefix, copies = tree_copies
    if copies > 1:
        key, value = (torch.cat([part[:, :, :prefix]] * (copies - 1) + [part], 2) for part in (key, value))
    if query.shape[-1] == 256 and torch.cuda.get_device_capability()[0] == 9:
        keys["kernel_options"] = {"bwd_num_warps": 8}  # Gemma2's heads on an H200: 15.3 ms → 12.7 ms
    return flex_attention_forward(module, query, key, value, attention_mask, **keys)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, flex_attention_mask)


def _checkpointed(call: Callable[..., Any]) -> Callable[..., Any]:
    def checkpointed(*inputs: Any, **keys: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(*inputs, **keys)
        return checkpoint(call, *inputs, use_reentrant=False, **keys)

    return checkpointed


def _wanting_gradients(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """So that the first layer, whose input would want none, need not be compiled for itself."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def causal_of(model: Any) -> Any:
    """The Hugging Face model below peft's wrapper, where there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _rows(sequences: Sequence[Sequence[int]], layout: Layout, groups: Sequence[int] | None = None) -> list[list[int]]:
    """Numbers of sequences. Padded batches and single sequences come by falling length: the largest comes first, and
    memory problems show at once.
    """
    if layout.kind == "tree":
        return tree.pack(sequences, layout.tokens, groups)
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    units = tree.together(order, groups)
    if layout.kind == "single":
        return units
    rows: list[list[int]] = []
    for unit in units:
        count = len(rows[-1]) + len(unit) if rows else 0
        full = not rows or len(sequences[rows[-1][0]]) * count > layout.tokens
        if full or (layout.sequences is not None and count > layout.sequences):
            rows.append([])
        rows[-1] += unit
    return rows


def _tree_row(sequences: list[Sequence[int]], wanted: list[list[Term]], layout: Layout) -> Row:
    laid = tree.build(sequences)
    source = [int(laid.paths[number][term.place]) for number, terms in enumerate(wanted) for term in terms]
    if layout.lengths:
        # A sequence longer than all rows so far: whole tiles, at the price of another compilation.
        longer = -(-len(laid) // tree.BLOCK) * tree.BLOCK
        laid = tree.pad(laid, next((some for some in layout.lengths if some >= len(laid)), longer), layout.pad_id)
    return {
        "input_ids": torch.from_numpy(laid.ids)[None],
        "depth": torch.from_numpy(laid.depth),
        "end": torch.from_numpy(laid.end),
        "source": torch.tensor(source, dtype=torch.long),
        "copies": tree.spread(laid.end, SPREAD),
        **_targets(wanted),
    }


def _padded_row(sequences: list[Sequence[int]], wanted: list[list[Term]], pad_id: int) -> Row:
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id)
    source = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for number, (sequence, terms) in enumerate(zip(sequences, wanted, strict=True)):
        ids[number, : len(sequence)] = torch.tensor(sequence)
        source[number, [term.place for term in terms]] = True
    # The model gives the logits back place by place, row after row.
    in_order = [sorted(terms, key=lambda term: term.place) for terms in wanted]
    return {"input_ids": ids, "source": source, **_targets(in_order)}


def _targets(wanted: list[list[Term]]) -> Row:
    terms = [term for one in wanted for term in one]
    return {
        "sequence": torch.tensor([term.sequence for term in terms], dtype=torch.long),
        "target": torch.tensor([term.target for term in terms], dtype=torch.long),
        "weight": torch.tensor([term.weight for term in terms], dtype=torch.float32),
    }
