"""The miniature: the eight backbones at toy size, with their architecture and their tokenizer's quirks.

A frozen random base cannot be tuned with adapters, so the backbones are pre-trained on dialogues that
`src/toy/corpus.py` invents for it. They are of the same kind as the sample corpus, but never its items. They come with
the repository (src/toy/pretrained.py); making them anew takes some minutes. Four things make that enough:

- attention starts where trained models end up, on near tokens and on equal tokens further back: mimetic
  initialisation (Trockman & Kolter 2023, arXiv:2305.09828), in src/toy/miniature_models.py;
- two probes on middle layers, thrown away afterwards, ask for the steps on the way: is this word in the dialogue, is
  this option right (src/toy/miniature_training.py);
- the questions of a dialogue share its tokens: each sees the dialogue and itself;
- one backbone learns from nothing. Every other one starts with the weights of its `parent`, and with its embeddings of
  the tokens that stand for the same text, and gets used to its own tokens and chat form.

Pre-training ends by accuracy, so that other machines, which round otherwise, end with backbones as good. What is left
for a run to learn: pre-training asks in a short form, and its answers come behind a lead; the prompts' form is longer,
and the letter is the first token of the answer. Numbers of these models show that the code works, and say nothing about
the backbones. They are always labelled as the miniature's.

Imports torch only where a backbone is made: a quickstart that has them all does not wait for it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from src.console.start import ours
from src.model.backbones import backbones
from src.model.recipe_files import RECIPES

VALUES = ours("resource/miniature/miniature.yaml")


def load_values(path: Path = VALUES) -> dict[str, Any]:
    """Every value of the miniature; see the file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def make_backbone(
    short: str,
    values: Mapping[str, Any],
    texts: Sequence[str],
    parent: tuple[Any, Any] | None = None,
    update: Callable[[int], None] = lambda done: None,
) -> tuple[Any, Any, float | None]:
    """(model in fp32, tokenizer, share of right letters on new dialogues, None without pre-training) of one backbone.

    texts: from `tokenizer_texts`; parent: model and tokenizer it starts from; `update` gets the number of steps done.
    Equal arguments give equal weights on one machine.
    """
    import torch

    from src.toy.miniature_models import inherit, make_model
    from src.toy.miniature_tokenizers import make_tokenizer, texts_of
    from src.toy.miniature_training import ChatForm, pretrain

    spec = values["backbones"][short]
    assert ("parent" in spec) == (parent is not None), f"{short}: parent is {spec.get('parent')}"
    seed = values["seed"] + list(values["backbones"]).index(short)
    tokenizer = make_tokenizer(spec["tokenizer"], texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_model(spec["model"], tokenizer, values["initialisation"])
        if parent:
            kinds = (one["tokenizer"]["kind"] for one in (spec, values["backbones"][spec["parent"]]))
            mine, theirs = (texts_of(*one) for one in zip((tokenizer, parent[1]), kinds, strict=True))
            inherit(network, mine, parent[0], theirs, values["initialisation"]["branches"])
        form = ChatForm(tokenizer, tokenizer.chat_template or backbones()[short].chat_template)
        accuracy = pretrain(network, form, pretraining(spec, values), seed, update)
    return network, tokenizer, accuracy


def pretraining(spec: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, float]:
    """The values that a backbone of `spec` is pre-trained with."""
    return {**values["pretraining"], **(values["child"] if "parent" in spec else {}), **spec.get("pretraining", {})}


def recipes(values: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """YAML of the miniature's recipes by name: the published ones, for backbones in `folder` and their size."""
    texts = {}
    for short in values["backbones"]:
        published = RECIPES / "published" / f"{short}.yaml"
        recipe = yaml.safe_load(published.read_text(encoding="utf-8"))
        recipe |= {"model_id": (folder / short).as_posix(), **values["recipes"][recipe["method"]]}
        recipe |= values["recipes"].get(short, {})
        head = f"# {published.name} at toy size, made by run.make_miniature from {VALUES.as_posix()}.\n"
        texts[f"mini-{short}"] = head + yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, width=120)
    return texts
