"""Sequences that begin alike, as examples of training and as bare ids, and toys that read them."""

import random
from typing import Any

import torch

from src.prompt.encode import Example
from src.tree import prefix
from src.tree.rows import Layout, Row, Term, lay_out, logits_at, to_device
from tests import toys

PAD = 9
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("polar", {}),
    "qwen2": ("qwen2", {}),
    # One of the two layers looks 16 tokens back, of 60 and more.
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "gemma2": ("kogemma", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
}


def corpus(system: int = 454, dialogue: tuple[int, int] = (300, 600), question: tuple[int, int] = (150, 250)) -> Any:
    """Items of so many tokens, by default about 1,100, three to five to a dialogue, as the official training set has
    them.
    """
    rng = random.Random(0)

    def words(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, 30000) for _ in range(count))

    start, made = words(system), []
    for number in range(40):
        said = start + words(rng.randint(*dialogue))
        for item in range(rng.randint(3, 5)):
            prompt = said + words(rng.randint(*question))
            made.append(Example(f"{number}-{item}", "012", prompt + words(17), len(prompt), 0, str(number)))
    return made


def network(name: str, attention: str | None = None, **changes: Any) -> Any:
    short, values = NETWORKS[name]
    model = toys.network(short, **{**values, **changes})
    if attention:
        model.set_attn_implementation(attention)
    return model


def alike(root: int = 37, seed: int = 1, longer: int = 0) -> tuple[list[list[int]], list[Term]]:
    """Six sequences of 60 to 80 tokens that share `root` and more, the last twice, one inside another; three terms at
    the end of each, of weights that are not equal.
    """
    rng = random.Random(seed)

    def words(count: int) -> list[int]:
        return [rng.randrange(3, 90) for _ in range(count)]

    system, sequences = words(root), []
    for items in (3, 2, 1):
        dialogue = words(20 + longer)
        sequences += [system + dialogue + words(9 + 2 * item + longer) for item in range(items)]
    sequences += [sequences[-1], sequences[0][:-4]]
    terms = [
        Term(number, len(one) - back, rng.randrange(3, 90), rng.random())
        for number, one in enumerate(sequences)
        for back in (3, 2, 1)
    ]
    return sequences, terms


def contexts(row: Row) -> list[list[int]]:
    """What the model has read at each of the row's terms, in their order."""
    ids = row["input_ids"]
    if "end" not in row:
        return [ids[number, : place + 1].tolist() for number, place in row["source"].nonzero().tolist()]
    sees = prefix.visible(row["depth"], row["end"])
    return [ids[0, sees[source]].tolist() for source in row["source"].tolist()]


def read(model: Any, made: tuple[list[list[int]], list[Term]], layout: Layout, train: bool = False) -> torch.Tensor:
    """(terms, vocabulary): what `model` says at the terms, in the order of the sequences; with `train` also backward
    through their weighted loss.
    """
    found = {}
    for row in lay_out(*made, layout):
        row = to_device(row, model.device)
        with torch.set_grad_enabled(train):
            logits = logits_at(model, row)
            if train:
                losses = torch.nn.functional.cross_entropy(logits.float(), row["target"], reduction="none")
                (losses * row["weight"]).sum().backward()
        for context, sequence, values in zip(contexts(row), row["sequence"].tolist(), logits.detach(), strict=True):
            found[sequence, len(context)] = values
    assert len(found) == len(made[1])
    return torch.stack([found[key] for key in sorted(found)])


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
