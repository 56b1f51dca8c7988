import json

import pytest
import torch

from src.data import Item, parse_items
from src.prompt.prompts import load_prompt
from src.toy import bench_inputs
from src.toy.bench_setting import Setting


@pytest.fixture(scope="session")
def lengthened_train() -> list[Item]:
    return parse_items(json.dumps(bench_inputs.make_corpus()["train"]).encode(), "train")[0]


@pytest.fixture(scope="session")
def setting(lengthened_train: list[Item]) -> Setting:
    """A few short items and the smallest model."""
    prompt = load_prompt("entry")
    tokenizer = bench_inputs.train_tokenizer(lengthened_train, prompt, bench_inputs.kind_for("bllossom"))
    encoder = bench_inputs.make_encoder(tokenizer, prompt)
    few = sorted(lengthened_train, key=lambda item: sum(len(turn.text) for turn in item.dialogue))[:16]
    config = bench_inputs.model_config("bllossom", "cpu", 1)
    return Setting("bllossom", config, torch.device("cpu"), encoder, few, few[:3])
