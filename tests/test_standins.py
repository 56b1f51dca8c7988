"""What the bench measures with: the lengthened corpus, its tokenizer, models of random weights made layer by layer."""

import json
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM

from src import standins
from src.data import parse_items
from src.encode import Encoder
from src.prompts import load_prompt
from src.recipes import backbones
from src.shapes import FAMILIES, Shape
from tests import toys  # one thread

CPU = torch.device("cpu")
SHORTS = ("bllossom", "kogemma", "qwen2")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, Any]]]:
    return standins.make_corpus()


@pytest.fixture(scope="module")
def train(splits: dict[str, list[dict[str, Any]]]) -> list[Any]:
    found, problems = parse_items(json.dumps(splits["train"]).encode(), "train")
    assert not problems
    return found


@pytest.fixture(scope="module")
def encoder(train: list[Any]) -> Encoder:
    prompt = load_prompt("entry")
    return standins.make_encoder(standins.train_tokenizer(train, prompt), prompt)


def test_lengthened_dialogues_have_the_official_lengths(train: list[Any]) -> None:
    turns = [len(item.dialogue) for item in train]
    characters = [sum(len(turn.text) for turn in item.dialogue) for item in train]
    assert sum(turns) / len(turns) == pytest.approx(20.8, abs=0.5) and max(turns) <= 30 and min(turns) >= 10
    assert sum(characters) / len(characters) == pytest.approx(393, rel=0.05) and 900 < max(characters) < 1100


def test_lengthened_items_of_a_dialogue_still_share_it_and_know_their_targets(train: list[Any]) -> None:
    assert len(train) == 758 and len({item.dialogue_key for item in train}) == 163
    assert all(len(item.target_utterances) == len(item.targets) > 0 for item in train)


def test_the_corpus_is_the_same_each_time(splits: dict[str, list[dict[str, Any]]]) -> None:
    assert standins.make_corpus() == splits


def test_the_tokenizer_makes_the_wanted_tokens(train: list[Any], encoder: Encoder) -> None:
    facts = standins.corpus_statistics(encoder, train[:100], train[:10])
    assert facts["characters_per_token"] == pytest.approx(1.5, abs=0.15)
    assert 400 < facts["shared_prompt_tokens"] < 500 and 900 < facts["tokens_mean"] < 1200
    tokenizer = encoder.tokenizer
    assert tokenizer.bos_token_id > 0
    text = train[0].dialogue[0].text
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("short", SHORTS)
def test_a_model_made_layer_by_layer_is_the_architectures_own(short: str) -> None:
    config = standins.model_config(short, "cpu", 2)
    attention = FAMILIES[config.model_type].attention
    made = standins.make_model(config, CPU, torch.float32, attention)
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
    config = standins.model_config(short, "cpu", 1)
    made = standins.make_model(config, CPU, torch.float32, "eager", nf4=torch.float32, double=True)
    packed = sum(2 * m.weight.numel() for m in made.modules() if isinstance(m, Linear4bit))
    assert packed == Shape.of_config(config).linear_parameters
    assert type(made.lm_head) is torch.nn.Linear
    assert made(input_ids=torch.arange(1, 9)[None]).logits.isfinite().all()


@pytest.mark.parametrize("short", SHORTS)
def test_on_a_gpu_the_config_is_the_table_of_backbones(short: str) -> None:
    shape = Shape.of_config(standins.model_config(short, "cuda"))
    facts = backbones()[short]
    assert shape.parameters == pytest.approx(facts.parameters, rel=0.005)
    assert standins.model_config(short, "cuda", 3).num_hidden_layers == 3


assert toys  # imported for what it sets
