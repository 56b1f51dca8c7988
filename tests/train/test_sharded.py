"""Two ranks with sharded parameters do what one process does with whole ones. They are started once for all tests."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from src.console.cli import UserError
from src.model import memory
from src.model.load import load_base, load_tokenizer
from src.score.letters import LetterScorer
from src.train.sharded import choose_layout, emptied
from src.tree.layouts import TrainingSteps
from tests import launched, toys
from tests.forked_ranks import Forks
from tests.made_trainings import CPU, DEV, TRAIN, encoder, weights
from tests.train import sharded_cases as cases

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for short, changes in cases.ODD.items():
        toys.save(short, folder / short, **changes)
    damaged = folder / "damaged base"
    shutil.copytree(folder / "qwen2", damaged)
    kept = load_file(damaged / "model.safetensors")
    kept.pop("model.layers.1.mlp.up_proj.weight")
    save_file(kept, damaged / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def by_two(place: Path) -> dict[str, Any]:
    """What two ranks found. They begin with one process's half of a training, and end with a base that lacks a tensor,
    so all of them fail.
    """
    with torch.compiler.set_stance("force_eager"):
        cases.interrupted(place, "from 1 to 2")
    with contextlib.closing(Forks(place)) as forks:
        _, told = launched.run(["tests.train.sharded_job", place], place, code=2, start=forks.start)
    assert (place / "found.json").is_file(), told
    found: dict[str, Any] = json.loads((place / "found.json").read_text())
    return {**found, "damaged": told}


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        apart = float((value - theirs[name]).abs().max())
        assert apart < 1e-5, f"{name}: {apart}"


@pytest.mark.parametrize("name", cases.CASES)
def test_sharded_parameters_learn_what_whole_ones_do(name: str, place: Path, by_two: dict[str, Any]) -> None:
    alone = cases.trained(name, place, f"{name}, alone")
    assert_same_weights(place / name / "model", place / f"{name}, alone" / "model")
    before = load_file(place / cases.CASES[name][0] / "model.safetensors")
    after = weights(place / name / "model")
    assert max(float((after[key] - before[key]).abs().max()) for key in after) > 1e-4
    ours = by_two[name]
    assert ours["steps"] == alone["steps"] and ours["best_step"] == alone["best_step"]
    for one, other in zip(ours["evaluations"], alone["evaluations"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert [loss for _, loss in ours["loss"]] == pytest.approx([loss for _, loss in alone["loss"]], rel=1e-4)
    assert ours["ranks"] == {
        "world": 2,
        "devices": ["cpu", "cpu"],
        "sharded": "FSDP2",
        "scattered": "once a step",
    }
    assert "ranks" not in alone and ours["weights_moved"] > 0.9


def test_what_is_saved_is_an_ordinary_model(place: Path, by_two: dict[str, Any]) -> None:
    kept = place / cases.FIRST / "model"
    files = {path.name for path in kept.iterdir()}
    assert files == {path.name for path in (place / "qwen2").iterdir()} | {"whole.json"}
    stock = AutoModelForCausalLM.from_pretrained(kept)
    assert stock.config.architectures == ["Qwen2ForCausalLM"]
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    assert "lm_head.weight" not in weights(kept)
    # As run.test reads it, it answers dev as the last evaluation has found.
    recipe = cases.recipe(cases.FIRST, place)
    network = load_base(recipe, CPU, folder=kept).eval()
    assert len(load_tokenizer(recipe, kept)) == len(toys.tokenizer("qwen2"))
    one = encoder("qwen2")
    read = one.for_scoring(DEV)  # which finds the letters' ids
    scores = LetterScorer(network, one.letter_ids or (), one.pad_id).score(read).items
    best = next(one for one in by_two[cases.FIRST]["evaluations"] if one["step"] == by_two[cases.FIRST]["best_step"])
    right = sum(score.prediction == item.label for score, item in zip(scores, DEV, strict=True))
    assert right == best["eval_correct"]


@pytest.mark.parametrize("which", ["from 1 to 2", "from 2 to 1"])
def test_a_training_goes_on_with_another_number_of_ranks(which: str, place: Path, by_two: dict[str, Any]) -> None:
    whole = place / f"whole, not {which}"
    alone = cases.trained(cases.FIRST, place, whole.name)
    found = by_two.get(which) or cases.trained(cases.FIRST, place, "from 2")
    assert found["resumed_from"].endswith("checkpoint-2") and found["steps"] == alone["steps"]
    assert_same_weights(place / ("from 2" if which == "from 2 to 1" else which) / "model", whole / "model")


def test_states_in_8_bits_are_handed_out_as_they_were(by_two: dict[str, Any]) -> None:
    found = by_two["states"]
    assert found["apart"] == 0 and found["after"][0] == found["after"][1]
    # Whole blocks stay in 8 bits; those that a rank's part cuts are numbers.
    assert found["kinds"] == ["OptimState8bit", "Tensor"] and all(norm > 0.1 for norm in found["norms"])


def test_ranks_with_other_numbers_of_passes_wait_for_each_other(by_two: dict[str, Any]) -> None:
    assert by_two["passes"] == [0, 3]


def test_compiled_layers_have_the_same_gradients(by_two: dict[str, Any]) -> None:
    assert by_two["compiled"] < 1e-6


def test_what_cannot_be_sharded_is_refused(by_two: dict[str, Any]) -> None:
    told = by_two["refused"]
    assert "optimizer fp32-8bit cannot be sharded" in told and "allowed there: fp32, bf16-stochastic" in told


def test_missing_weights_are_refused(by_two: dict[str, Any]) -> None:
    assert "lacks 1 of the tensors that its config asks for: model.layers.1.mlp.up_proj.weight" in by_two["damaged"]
    assert "Traceback" not in by_two["damaged"]


def test_rows_that_weigh_nothing_have_no_gradient() -> None:
    from src.train.objectives import make_objective
    from tests.made_trainings import LAYOUTS

    recipe = toys.recipe(Path("made"), "qwen2", objective="orpo", method="full")
    objective, one = make_objective(recipe), encoder("qwen2")
    (row,) = objective.collate(objective.examples(one, TRAIN[:2]), LAYOUTS["tree"])
    network = toys.network("qwen2")
    loss = objective.loss(objective.outputs(network, emptied(row)), emptied(row), objective.totals([row]), (1, 2, 3))
    loss.backward()
    assert loss.item() == 0 and all(p.grad is None or not p.grad.any() for p in network.parameters())
    assert row["weight"].any()  # the row itself is as it was


def test_one_process_shards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainingSteps] = []
    monkeypatch.setattr("src.train.sharded.training_layout", lambda training, *more: asked.append(training))
    choose_layout(_steps("on"), CPU, False)
    assert [one.cards for one in asked] == [1]


@pytest.mark.parametrize(("fsdp", "fits", "cards"), [("auto", True, [1]), ("auto", False, [1, 2]), ("on", True, [2])])
def test_what_one_card_does_not_hold_is_sharded(
    fsdp: str, fits: bool, cards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def layout(training: TrainingSteps, *more: Any) -> Any:
        asked.append(training.cards)
        plan = memory.MemoryPlan("fp32", False, memory.Memory(1, 1, 1, 1, 1), fits or training.cards > 1)
        return type("Layout", (), {"memory": plan})

    monkeypatch.setattr("src.train.sharded.training_layout", layout)
    monkeypatch.setattr("src.train.sharded.ranks.world", lambda: 2)
    monkeypatch.setattr("src.train.sharded.ranks.all_true", lambda value: value)
    choose_layout(_steps(fsdp), CPU, False)
    assert asked == cards


def _steps(fsdp: str) -> TrainingSteps:
    recipe = toys.recipe(Path("made"), "qwen2", method="full", fsdp=fsdp)
    return TrainingSteps(recipe, None, [], [], 0, lambda items: 0)  # type: ignore[arg-type]


def test_adapters_are_not_sharded() -> None:
    with pytest.raises(UserError, match="fsdp: found on, allowed with method lora: auto, off"):
        toys.recipe(Path("made"), "qwen2", method="lora", fsdp="on")
