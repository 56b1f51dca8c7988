"""What the bench measures with: the lengthened corpus, its tokenizer, models of random weights made layer by layer."""

import dataclasses
import json
from collections import Counter
from statistics import mean
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM

from src.data import parse_items
from src.model.backbones import backbones
from src.model.shapes import FAMILIES, Shape
from src.plan.kinds import Kind, kinds
from src.prompt.prompts import load_prompt
from src.toy import bench_inputs
from tests import toys  # one thread

CPU = torch.device("cpu")
SHORTS = ("bllossom", "kogemma", "qwen2")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, Any]]]:
    return bench_inputs.make_corpus()


def parsed(items: list[dict[str, Any]]) -> list[Any]:
    found, problems = parse_items(json.dumps(items).encode(), "made")
    assert not problems
    return found


@pytest.fixture(scope="module")
def train(splits: dict[str, list[dict[str, Any]]]) -> list[Any]:
    return parsed(splits["train"])


@pytest.fixture(scope="module")
def test(splits: dict[str, list[dict[str, Any]]]) -> list[Any]:
    return parsed(splits["test"])


def dialogues(items: list[Any]) -> list[list[Any]]:
    """The items of each dialogue."""
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(item.dialogue_key, []).append(item)
    return list(found.values())


@pytest.mark.parametrize(
    ("split", "items_per_dialogue", "longest"),
    [("train", {5: 113, 4: 43, 3: 7}, 1016), ("test", {5: 37, 4: 80, 2: 8, 1: 84}, 1200)],
)
def test_lengthened_splits_are_shaped_like_the_official_ones(
    split: str, items_per_dialogue: dict[int, int], longest: int, splits: dict[str, list[dict[str, Any]]]
) -> None:
    found = dialogues(parsed(splits[split]))
    assert dict(Counter(map(len, found))) == items_per_dialogue
    turns = [len(group[0].dialogue) for group in found]
    characters = [sum(len(turn.text) for turn in group[0].dialogue) for group in found]
    assert mean(turns) == pytest.approx(20.8, abs=0.5) and max(turns) <= 30 and min(turns) >= 10
    assert mean(characters) == pytest.approx(393, rel=0.05) and 0.9 * longest < max(characters) < 1.03 * longest


def test_the_official_number_of_targets(train: list[Any]) -> None:
    for count, official in ((1, 673), (2, 70), (3, 15)):
        assert sum(len(item.targets) == count for item in train) == pytest.approx(official, abs=15), count


def test_lengthened_items_of_a_dialogue_still_share_it_and_know_their_targets(train: list[Any]) -> None:
    assert len(train) == 758 and len({item.dialogue_key for item in train}) == 163
    assert all(len(item.target_utterances) == len(item.targets) > 0 for item in train)
    alike = [len({item.targets for item in group}) == 1 for group in dialogues(train)]
    assert 0.3 < mean(alike) < 0.8, "often the target is the same, not always"


def test_the_corpus_is_the_same_each_time(splits: dict[str, list[dict[str, Any]]]) -> None:
    assert bench_inputs.make_corpus() == splits


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=kind.name, marks=[pytest.mark.thorough] if kind.name != "qwen2" else [])
        for kind in kinds().values()
    ],
)
def test_a_tokenizer_counts_as_a_real_one_does_on_the_official_corpus(
    kind: Kind, train: list[Any], test: list[Any]
) -> None:
    prompt = load_prompt("entry")
    encoder = bench_inputs.make_encoder(bench_inputs.train_tokenizer(train, prompt, kind), prompt)
    facts = bench_inputs.corpus_statistics(encoder, train, test)
    wanted = {
        "tokens_mean": (kind.mean_tokens, 0.02),
        "tokens_max": (kind.longest_tokens, 0.04),
        "shared_prompt_tokens": (kind.shared_tokens, 0.01),
        "computed_tokens": (kind.computed_tokens, 0.03),
        "training_ratio": (kind.training_ratio, 0.03),
        "scoring_ratio": (kind.scoring_ratio, 0.03),
    }
    for name, (value, share) in wanted.items():
        assert facts[name] == pytest.approx(value, rel=share), name
    tokenizer = encoder.tokenizer
    assert tokenizer.bos_token_id > 0 and len(tokenizer) <= bench_inputs.VOCABULARY
    text = train[0].dialogue[0].text
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_each_backbone_is_measured_with_its_kind_of_tokenizer() -> None:
    found = {short: bench_inputs.kind_for(short).name for short in backbones()}
    assert found["bllossom"] == "llama3" and found["kogemma"] == "gemma2" and found["polar"] == "solar"
    assert {found[short] for short in ("qwen2", "qwen2it", "spow12")} == {"qwen2"}


@pytest.mark.parametrize("short", SHORTS)
def test_a_model_made_layer_by_layer_is_the_architectures_own(short: str) -> None:
    config = bench_inputs.model_config(short, "cpu", 2)
    attention = FAMILIES[config.model_type].attention
    made = bench_inputs.make_model(config, CPU, torch.float32, attention)
    whole = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    shapes = {name: value.shape for name, value in made.state_dict().items()}
    assert shapes == {name: value.shape for name, value in whole.state_dict().items()}
    assert made.config.num_hidden_layers == config.num_hidden_layers == 2
    ids = torch.arange(1, 40)[None]
    logits = made(input_ids=ids).logits
    assert logits.isfinite().all()
    whole.load_state_dict(made.state_dict())
    torch.testing.assert_close(whole(input_ids=ids).logits, logits)


@pytest.mark.parametrize("short", SHORTS)
def test_nf4_packs_every_linear_layer_but_the_head(short: str) -> None:
    config = bench_inputs.model_config(short, "cpu", 1)
    made = bench_inputs.make_model(config, CPU, torch.float32, "eager", nf4=torch.float32, double=True)
    packed = sum(2 * m.weight.numel() for m in made.modules() if isinstance(m, Linear4bit))
    assert packed == Shape.of_config(config).linear_parameters
    assert type(made.lm_head) is torch.nn.Linear
    assert made(input_ids=torch.arange(1, 9)[None]).logits.isfinite().all()


@pytest.mark.parametrize(("model_type", "like"), [("qwen2", "qwen2"), ("qwen3", "bllossom")])
def test_a_backbone_without_a_miniature_is_measured_on_a_cpu(
    model_type: str, like: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ninth = dataclasses.replace(backbones()["polar"], short="ninth", expect={"model_type": model_type})
    monkeypatch.setattr(bench_inputs, "backbones", lambda: {**backbones(), "ninth": ninth})
    config, other = bench_inputs.model_config("ninth", "cpu"), bench_inputs.model_config(like, "cpu")
    assert config.model_type == model_type and config.intermediate_size == other.intermediate_size
    assert Shape.of_config(config).layers == Shape.of_config(other).layers


@pytest.mark.parametrize("short", SHORTS)
def test_on_a_gpu_the_config_is_the_table_of_backbones(short: str) -> None:
    shape = Shape.of_config(bench_inputs.model_config(short, "cuda"))
    facts = backbones()[short]
    assert shape.parameters == pytest.approx(facts.parameters, rel=0.005)
    assert bench_inputs.model_config(short, "cuda", 3).num_hidden_layers == 3


assert toys  # imported for what it sets
