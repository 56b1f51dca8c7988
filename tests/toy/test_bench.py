"""Every case of `run.bench`, measured on a CPU."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from src.data import Item
from src.model.backbones import backbones
from src.model.shapes import Shape
from src.prompt.encode import Example
from src.score import letters
from src.toy import bench, bench_inputs, bench_ours
from src.toy.bench_cases import CASES
from src.toy.bench_clock import Clock
from src.toy.bench_inputs import mixed_lengths
from src.toy.bench_setting import Setting
from src.toy.bench_table import with_rates
from src.train.fixed_rows import signature
from src.train.objectives import make_objective
from src.tree.rows import Layout
from tests import toys  # one thread

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix is multiplied for its speed, and two steps are enough."""
    monkeypatch.setattr(bench, "matmul_rates", lambda device: (1e12, 0.9e12))
    monkeypatch.setattr(bench, "WARM_AND_LEAST", {"training": (1, 1), "scoring": (1, 1)})


def test_every_stretch_of_mixed_lengths_is_of_mean_length(lengthened_train: list[Item], setting: Setting) -> None:
    examples = setting.encoder.for_scoring(lengthened_train[:200])
    mixed = mixed_lengths(examples)
    assert sorted(one.id for one in mixed) == sorted(one.id for one in examples)
    mean = sum(len(one.ids) for one in examples) / len(examples)
    for start in range(0, 180, 20):
        assert sum(len(one.ids) for one in mixed[start : start + 20]) / 20 == pytest.approx(mean, rel=0.04)


def test_cases_have_a_case_to_compare_with() -> None:
    for case in CASES.values():
        base = CASES[case.base]
        assert (base.kind, base.flops, base.base) == (case.kind, case.flops, base.name)
        assert base is case or not base.what.startswith("ours")


@pytest.mark.parametrize(
    "name",
    [
        "entry",
        pytest.param("entry-full", marks=pytest.mark.thorough),
        pytest.param("trl", marks=pytest.mark.thorough),
        pytest.param("lora-1", marks=pytest.mark.thorough),
        pytest.param("qlora-1", marks=pytest.mark.thorough),
        pytest.param("full-1", marks=pytest.mark.thorough),
        "full-16",
        "entry-score",
        "score-6",
    ],
)
def test_a_case_counts_what_it_computes(name: str, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    found = with_rates(bench.measure(case, setting, 0.0))
    items = {"trl": 8, "score-6": len(setting.test)}.get(name, case.items)
    assert found["items"] == items * found["steps"] and found["sequences"] == items * case.orders * found["steps"]
    assert 400 < found["raw_tokens"] / found["sequences"] < 1000
    assert 0 < found["unique_tokens"] <= found["raw_tokens"]
    assert found["items_per_second"] > 0 and 0 < found["share_of_peak"] < found["share_of_sustained"] < 1


def test_growth_is_that_of_trees(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ours, "GROWTH", (1, 2))
    monkeypatch.setattr(bench_ours, "SCORED_ON_CPU", 3)
    kinds = []
    lay_out = letters.lay_out
    monkeypatch.setattr(letters, "lay_out", lambda *given: kinds.append(given[2].kind) or lay_out(*given))
    found = bench.measure(CASES["growth"], setting, 0.0)
    assert kinds == ["tree", "padded", "padded", *["tree"] * 4], "once held against prompts one by one"
    assert found["guard"]["agree"]
    (one, _), (two, _) = found["points"]
    # Two splits are two rows, each with what all items begin with; what is shared makes them shorter than their items.
    assert 1.8 * one < two < 2.2 * one and found["unique_tokens"] == one + two < found["raw_tokens"] / 1.2
    assert found["items"] == 3 + 6


def test_what_was_read_one_by_one_after_all_was_not_shared(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ours.layouts, "scoring_layout", lambda *given: Layout("tree", 4096, 0))
    for kind in ("tree", "padded"):
        read = letters.Scored([], letters.HowRead(kind))
        monkeypatch.setattr(letters.LetterScorer, "score", lambda *given, read=read: read)
        found = bench.measure(CASES["score-6"], setting, 0.0)
        assert (found["unique_tokens"] == found["raw_tokens"]) == (kind == "padded") and f"{kind} rows" in found["note"]


@pytest.mark.parametrize("name", ["lora-1", pytest.param("orpo-full-1", marks=pytest.mark.thorough)])
def test_one_item_a_step_is_timed_by_its_tokens(name: str, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARM_AND_LEAST", {"training": (1, 8)})
    seen: list[str] = []
    collate = bench_ours.LetterTrainer._collate
    monkeypatch.setattr(
        bench_ours.LetterTrainer,
        "_collate",
        lambda self, step: seen.extend(one.id for one in step) or collate(self, step),
    )
    found = bench.measure(CASES[name], setting, 0.0)
    mean = found["unique_tokens"] / found["steps"]
    assert found["fixed_seconds"] >= 0 and found["token_seconds"] >= 0
    whole = found["fixed_seconds"] + mean * found["token_seconds"]
    assert whole == pytest.approx(found["seconds"] / found["steps"], rel=0.05)
    if name == "lora-1":
        mixed = [one.id for one in mixed_lengths(setting.encoder.for_training(setting.train))]
        assert seen == mixed[: len(seen)], "a few seconds are of items of mean length"
    expected = {"optimizer": "fp32", "dequantised": False, "recomputed": 0.0}
    assert {key: found[key] for key in expected} == expected
    assert found["captured"].startswith("not captured: ") and "captured" not in found["note"], "as ever on a CPU"


def test_many_items_a_step_are_not_timed_by_their_tokens(setting: Setting) -> None:
    found = bench.measure(dataclasses.replace(CASES["lora-16"], items=2), setting, 0.0)
    assert "fixed_seconds" not in found and found["captured"].startswith("not captured: ")


@pytest.mark.parametrize(
    ("captured", "timed"),
    [
        (False, 4),  # the fourth step has the first row of 512 tokens
        (True, 4 + bench_ours.QUIET),  # the fourth is of a new kind
    ],
)
def test_the_warm_up_has_all_that_is_compiled_or_captured(captured: bool, timed: int) -> None:
    def collate(examples: list[Example]) -> dict[str, Any]:
        return {"rows": [{"input_ids": torch.zeros(1, len(one.ids)), "copies": (1, 1)} for one in examples]}

    layout = Layout("single", 512, 0, (256, 512))
    trainer: Any = SimpleNamespace(layout=layout, data_collator=collate, graphs=object() if captured else None)
    clock = Clock(torch.device("cpu"), 0.0, warm=2, least=1)
    callback = bench_ours.CountedSteps(clock, trainer)
    clock.begin()
    stops = []
    for number, length in enumerate((256, 256, 256, 512, *(256, 512) * 10)):
        trainer.data_collator([Example(str(number), "012", (0,) * length, 1, 0)])
        control = SimpleNamespace(should_training_stop=False)
        callback.on_step_end(None, None, control)
        stops.append(control.should_training_stop)
    assert stops.index(True) == timed


def test_the_warm_up_begins_with_one_item_of_each_kind_of_step(setting: Setting) -> None:
    objective = make_objective(bench_ours.recipe_of(CASES["lora-1"], setting))
    examples = objective.examples(setting.encoder, setting.train)
    middle = sorted(one.tokens for one in examples)[len(examples) // 2]
    layout = Layout("single", 1408, setting.encoder.pad_id, (middle, 1408))
    kinds = [signature(objective.collate([one], layout)) for one in examples]
    first = bench_ours.one_of_each_kind(examples, objective, layout)
    assert 1 < len(first) == len(set(kinds)) < len(examples)
    assert {signature(objective.collate([one], layout)) for one in first} == set(kinds)
    assert bench_ours.one_of_each_kind(examples, objective, Layout("padded", 2048, 0)) == []


@pytest.mark.parametrize("name", [pytest.param("trl-orpo-full", marks=pytest.mark.thorough), "orpo-full-1"])
def test_pairs_of_one_item_are_counted_alike(name: str, setting: Setting) -> None:
    found = bench.measure(CASES[name], setting, 0.0)
    # One item is two pairs to us; TRL takes one pair a step.
    assert found["items"] == found["sequences"] == found["steps"] * (2 if name == "orpo-full-1" else 1)
    assert 1000 < found["raw_tokens"] / found["items"] < 2000, "a pair is two sequences"


@pytest.mark.parametrize("name", [pytest.param("trl-orpo", marks=pytest.mark.thorough), "orpo-16"])
def test_preference_pairs_are_counted_alike(name: str, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench.measure(dataclasses.replace(CASES[name], items=4), setting, 0.0)
    assert found["items"] == found["sequences"] == 8 * found["steps"], "8 pairs are TRL's batch"
    # Two pairs are four sequences, of which the tree computes hardly more than one.
    assert 1000 < found["raw_tokens"] / found["items"] < 2000
    shared = found["raw_tokens"] / found["unique_tokens"]
    assert shared == 1 if name == "trl-orpo" else shared > 3


def test_qlora_is_quantised(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    add_adapter = bench_ours.add_adapter

    def see(network: Any, recipe: Any) -> Any:
        linear = [module for module in network.modules() if isinstance(module, Linear4bit)]
        packed.append(sum(2 * module.weight.numel() for module in linear))
        assert all(module.weight.quant_state.nested for module in linear), "the scales are quantised as well"
        return add_adapter(network, recipe)

    monkeypatch.setattr(bench_ours, "add_adapter", see)
    for name in ("qlora-64", "lora-64"):
        bench.measure(dataclasses.replace(CASES[name], items=2), setting, 0.0)
    assert packed == [Shape.of_config(setting.config).linear_parameters, 0]


@pytest.mark.parametrize("model_type", ["qwen3", pytest.param("smollm3", marks=pytest.mark.thorough)])
def test_a_backbone_of_another_architecture_is_measured(
    model_type: str, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    ninth = dataclasses.replace(backbones()["polar"], short="ninth", expect={"model_type": model_type})
    monkeypatch.setattr(bench_inputs, "backbones", lambda: {**backbones(), "ninth": ninth})
    config = bench_inputs.model_config("ninth", "cpu", 1)
    found = bench.measure(CASES["score-1"], dataclasses.replace(setting, config=config), 0.0)
    assert config.model_type == model_type and found["items"] == len(setting.test) * found["steps"]


assert toys  # imported for what it sets
