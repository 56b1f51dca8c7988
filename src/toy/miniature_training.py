"""The pre-training of the miniature: the letter, the answer's text, and two probes on the way to them."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from src.toy import corpus
from src.toy.corpus import RawItem
from src.toy.miniature_tokenizers import dialogue_text, option_lines
from src.tree import prefix

LEAD = "정답:\n"
"""What stands before an answer in pre-training. Runs answer without it, which is left for them to learn."""
Marks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Positions in a batch: (dialogue, token, truth), each of shape (positions,)."""


class ChatForm:
    """The chat template's text around a user's turn, and the tokens of the letters after it."""

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self.tokenizer = tokenizer
        mark = "probe-user"
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        self.before, self.after = whole.split(mark)
        plain = tokenizer("x")["input_ids"]
        self.bos = [plain[0]] if plain[0] == tokenizer.bos_token_id else []
        prompt = self.ids("x", LEAD)[0]
        answers = [self.ids("x", LEAD + letter)[0][len(prompt) :] for letter in corpus.load_words().letters]
        assert all(len(ids) == 1 for ids in answers), f"letters are not single tokens: {answers}"
        self.letter_ids = torch.tensor([ids[0] for ids in answers])

    def ids(self, user: str, answer: str = "") -> tuple[list[int], list[tuple[int, int]]]:
        """(tokens of a chat with one turn, the span of characters of `user` that each token is). The span of any other
        token is below 0 or beyond the text's end.
        """
        coded = self.tokenizer(
            self.before + user + self.after + answer, add_special_tokens=False, return_offsets_mapping=True
        )
        ids, shift = coded["input_ids"], len(self.before)
        spans = [(start - shift, end - shift) for start, end in coded["offset_mapping"]]
        bos = [] if ids[:1] == self.bos else self.bos
        return [*bos, *ids], [*((-shift, -shift) for _ in bos), *spans]


@dataclass(frozen=True)
class Batch:
    """Some dialogues with all their questions, each dialogue a tree.

    ids, depth, end    (dialogues, tokens), see src/tree/prefix.py
    letters, text      marks whose truth is the next token
    tokens             marks whose truth is 1.0 where a token of an option also comes before the options
    options            marks whose truth is 1.0 in the right option, from the token on that tells the options apart
    """

    ids: torch.Tensor
    depth: torch.Tensor
    end: torch.Tensor
    letters: Marks
    text: Marks
    tokens: Marks
    options: Marks


@dataclass(frozen=True)
class Question:
    """An item as one sequence: a chat with its answer.

    ids            tokens of prompt and answer
    answer_start   number of tokens of the prompt
    options        for each option the positions of its tokens in the prompt
    right          index of the right option
    """

    ids: list[int]
    answer_start: int
    options: list[list[int]]
    right: int


class Probes(torch.nn.Module):
    """Two yes-or-no answers, read from hidden states of middle layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.token = torch.nn.Linear(hidden, 1)
        self.option = torch.nn.Linear(hidden, 1)


def pretrain(
    network: Any, form: ChatForm, values: Mapping[str, float], seed: int, update: Callable[[int], None]
) -> float | None:
    """Trains all of `network` until it is right often enough, then for some steps of falling rate.

    Returns the share of right letters on dialogues it has not seen, or None when no step is allowed.
    """
    at_most, falling, size = int(values["at_most"]), int(values["falling_steps"]), int(values["dialogues_per_step"])
    if not at_most:
        return None
    dialogues = _by_dialogue(corpus.make_dialogues(at_most * size, seed))
    probes = Probes(network.config.hidden_size)
    weights = [*network.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=values["lr"], betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    last_step = at_most - 1
    recent: deque[float] = deque(maxlen=20)
    network.train()
    for step in range(at_most):
        for group in optimizer.param_groups:
            share = min(1.0, (step + 1) / values["warmup_steps"], (last_step + 1 - step) / falling)
            group["lr"] = values["lr"] * share
        batch = make_batch(dialogues[step * size : (step + 1) * size], form)
        loss, accuracy = batch_loss(network, probes, batch, form.letter_ids, values)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(accuracy)
        if len(recent) == recent.maxlen and sum(recent) / len(recent) >= values["until"]:
            last_step = min(last_step, step + falling)
        update(step + 1)
        if step == last_step:
            break
    network.eval()
    held_out = make_batch(_by_dialogue(corpus.make_dialogues(20, -1 - seed)), form)
    with torch.no_grad():
        _, accuracy = batch_loss(network, probes, held_out, form.letter_ids, values)
    return accuracy


def make_batch(dialogues: Sequence[Sequence[RawItem]], form: ChatForm) -> Batch:
    """Lays out each dialogue once, followed by its questions side by side, none of which sees another."""
    rows: list[prefix.Tree] = []
    marks: dict[str, list[tuple[int, int, float]]] = {"letters": [], "text": [], "tokens": [], "options": []}
    for row, items in enumerate(dialogues):
        questions = [encode_question(item, form) for item in items]
        rows.append(prefix.build([question.ids for question in questions]))
        for question, path in zip(questions, rows[-1].paths, strict=True):
            ids, answer = question.ids, question.answer_start
            marks["letters"].append((row, path[answer - 1], ids[answer]))
            marks["text"] += [(row, path[position], ids[position + 1]) for position in range(answer, len(ids) - 1)]
            said = set(ids[: question.options[0][0]])
            told = _told_from(question)
            for index, option in enumerate(question.options):
                marks["options"] += [(row, path[place], float(index == question.right)) for place in option[told:]]
                marks["tokens"] += [(row, path[position], float(ids[position] in said)) for position in option]
    padded = [prefix.pad(laid, max(map(len, rows)), 0) for laid in rows]
    arrays = (torch.from_numpy(np.stack([getattr(laid, name) for laid in padded])) for name in ("ids", "depth", "end"))
    columns = {
        name: tuple(torch.tensor(np.array(column)) for column in zip(*positions, strict=True))
        for name, positions in marks.items()
    }
    return Batch(*arrays, **columns)  # type: ignore[arg-type]


def _told_from(question: Question) -> int:
    """How many tokens of each option come before those at which it can be told from the others."""
    texts = [[question.ids[place] for place in option] for option in question.options]
    least = min(map(len, texts)) - 1
    differing = (place for place in range(1, least) if len({text[place] for text in texts}) > 1)  # behind the number
    return min(next(differing, least) + 1, least)


def batch_loss(
    network: Any, probes: Probes, batch: Batch, letter_ids: torch.Tensor, values: Mapping[str, float]
) -> tuple[torch.Tensor, float]:
    """(weighted sum of the letter's, the answer text's and the probes' losses, share of right letters)."""
    layers = network.model.layers
    states: dict[str, torch.Tensor] = {}
    hooks = [
        layers[position].register_forward_hook(lambda module, inputs, output, name=name: states.update({name: output}))
        for name, position in (("token", 1), ("option", len(layers) - 2))
    ]
    hidden = hidden_states(network, batch)
    for hook in hooks:
        hook.remove()

    def logits_at(marks: Marks) -> torch.Tensor:
        logits = network.lm_head(hidden[marks[0], marks[1]])
        cap = getattr(network.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    logits, letters = logits_at(batch.letters), batch.letters[2]
    loss = functional.cross_entropy(logits, letters)
    loss = loss + values["text_weight"] * functional.cross_entropy(logits_at(batch.text), batch.text[2])
    for name, probe, marks in (("token", probes.token, batch.tokens), ("option", probes.option, batch.options)):
        state = states[name][marks[0], marks[1]]
        found = probe(functional.rms_norm(state, state.shape[-1:]))[:, 0]
        loss = loss + values[f"{name}_weight"] * functional.binary_cross_entropy_with_logits(found, marks[2])
    right = letter_ids[logits[:, letter_ids].argmax(1)] == letters
    return loss, right.float().mean().item()


def hidden_states(network: Any, batch: Batch) -> torch.Tensor:
    """Last hidden states, (dialogues, tokens, hidden)."""
    trees = zip(batch.depth, batch.end, strict=True)
    masks = [prefix.attention_mask(network.config, depth, end) for depth, end in trees]
    # Gemma2 has a mask for each kind of layer.
    mask = {kind: torch.cat([one[kind] for one in masks]) for kind in masks[0]} if isinstance(masks[0], dict) else None
    return network.model(
        input_ids=batch.ids,
        attention_mask=torch.cat(masks) if mask is None else mask,
        position_ids=batch.depth,
        use_cache=False,
    ).last_hidden_state


def encode_question(item: RawItem, form: ChatForm) -> Question:
    lines = option_lines(item, corpus.load_words().letters)
    right = corpus.load_words().options.index(item["output"])
    user = f"{dialogue_text(item)}\n\n{item['input']['category']}\n"
    spans = []
    for line in lines:
        spans.append((len(user), len(user) + len(line)))
        user += line + "\n"
    user = user.rstrip("\n")
    ids, token_spans = form.ids(user, LEAD + lines[right])
    answer_start = sum(start < len(user) + len(form.after) + len(LEAD) for start, _ in token_spans)
    options = [
        [position for position, (first, last) in enumerate(token_spans) if first < end and last > start]
        for start, end in spans
    ]
    return Question(ids, answer_start, options, right)


def _by_dialogue(items: Sequence[RawItem]) -> list[Sequence[RawItem]]:
    """`make_dialogues` makes one item of each category for a dialogue."""
    size = len(corpus.load_words().categories)
    return [items[start : start + size] for start in range(0, len(items), size)]
