"""Captured steps: on a GPU they learn what uncaptured ones do; what decides about them is tested anywhere."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from accelerate import Accelerator

from src.model.dropout import SeededDropout
from src.train import step_graphs, trainer
from src.train.adamw8bit import AdamW8bit
from src.train.captured_optimizers import FRESH, SteppedInGraph
from src.train.checkpoints import Place
from src.train.fine_tuning import Outcome, fine_tune
from src.train.fixed_rows import signature
from src.train.keep import KeepBest
from src.train.objectives import OBJECTIVES, make_objective
from src.tree import layouts
from src.tree.rows import Layout, Row
from tests import toys
from tests.made_trainings import DEV, TRAIN, Folder, Killed, encoder, weights

GPU = torch.device("cuda", 0)
ITEMS = [
    *TRAIN,
    *toys.items(8, 16, inference_1="나는 그 일을 오래전부터 알고 있었지만 아무에게도 말하지 않았다. " * 4),
]
"""Items of two lengths."""
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora_dropout": 0.05},
    "lora-checkpointing": {"method": "lora", "lora_dropout": 0.5, "gradient_checkpointing": "on"},
    "qlora": {"method": "qlora", "lora_dropout": 0.05},
    "full-bf16": {"method": "full", "optimizer": "bf16-stochastic"},
    "full-8bit": {"method": "full", "optimizer": "fp32-8bit"},
    "full-fp32": {"method": "full", "optimizer": "fp32"},
    "orpo": {"method": "lora", "objective": "orpo", "lora_dropout": 0.05},
    "letters": {"method": "lora", "objective": "letters", "lora_dropout": 0.05},
    "ranking": {"method": "lora", "objective": "ranking", "lora_dropout": 0.05},
    "two-rows": {"method": "lora", "lora_dropout": 0.05, "batch_size": 2, "share_prefixes": "off"},
}


def learn(folder: Path, place: Path, **changes: Any) -> Outcome:
    values = {"batch_size": 1, "epoch": 3, "lr": 1e-3, "gradient_checkpointing": "off", **changes}
    recipe = toys.recipe(folder, "qwen2", **values)
    return fine_tune(recipe, encoder("qwen2"), ITEMS, DEV, Place.at(place), GPU)


def others(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """Name → largest difference of the weights that are not the same in both, bit for bit."""
    assert one.keys() == other.keys()
    return {
        name: float((one[name].float() - other[name].float()).abs().max())
        for name in one
        if not torch.equal(one[name], other[name])
    }


@pytest.fixture
def many_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another length costs nothing, so that rows have several."""
    for cost in ("COMPILING_SECONDS", "CAPTURING_SECONDS"):
        monkeypatch.setattr(layouts, cost, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler", "many_lengths")
@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_learn_what_uncaptured_ones_do(
    kind: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit."""
    folder, changes = backbone_folder("qwen2"), KINDS[kind]
    captured = learn(folder, tmp_path / "captured", **changes)
    assert captured.training["captured"]["kinds"] > 1, captured.training["captured"]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "obstacle", lambda *given: "not wanted")
        usual = learn(folder, tmp_path / "usual", **changes)
    assert usual.training["captured"] == {"obstacle": "not wanted"}
    kept = "model" if changes["method"] == "full" else "adapter"
    ours, theirs = (weights(tmp_path / name / kept) for name in ("captured", "usual"))
    assert others(ours, theirs) == {}
    assert dict(captured.training["loss"]) == pytest.approx(dict(usual.training["loss"]), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler", "many_lengths")
@pytest.mark.parametrize("kind", ["lora", "full-8bit"])
def test_what_cannot_be_captured_goes_on_uncaptured(
    kind: str,
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, changes = backbone_folder("qwen2"), KINDS[kind]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "obstacle", lambda *given: "not wanted")
        usual = learn(folder, tmp_path / "usual", **changes)
    compute = trainer.LetterTrainer.row_loss
    calls: list[int] = []

    def waits(one: Any, *given: Any) -> Any:
        loss, outputs = compute(one, *given)
        if torch.cuda.is_current_stream_capturing():
            calls.append(1)
            if len(calls) > 1:  # the second kind of step
                loss.item()
        return loss, outputs

    monkeypatch.setattr(trainer.LetterTrainer, "row_loss", waits)
    failed = learn(folder, tmp_path / "failed", **changes)
    assert "steps are not captured" in capsys.readouterr().out
    assert "obstacle" in failed.training["captured"]
    assert dict(failed.training["loss"]) == pytest.approx(dict(usual.training["loss"]), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("compiler", "many_lengths")
@pytest.mark.parametrize("kind", ["lora", "full-bf16", "orpo"])
def test_a_stopped_training_goes_on_to_the_same_bits(
    kind: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, changes = backbone_folder("qwen2"), KINDS[kind]
    learn(folder, tmp_path / "whole", **changes)
    evaluated: list[int] = []
    told = KeepBest.on_evaluate

    def second(best: KeepBest, *given: Any, **keys: Any) -> None:
        evaluated.append(1)
        if len(evaluated) == 2:
            raise Killed
        told(best, *given, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(KeepBest, "on_evaluate", second)
        with pytest.raises(Killed):
            learn(folder, tmp_path / "stopped", **changes)
    outcome = learn(folder, tmp_path / "stopped", **changes)
    assert outcome.training["resumed_from"] and outcome.training["captured"]["kinds"] >= 1
    (last,) = (tmp_path / "whole" / "checkpoints").iterdir()
    ours, theirs = (weights(tmp_path / name / "checkpoints" / last.name) for name in ("stopped", "whole"))
    assert others(ours, theirs) == {}


# What decides, on any machine


def rows_of(sizes: list[int]) -> list[Row]:
    one, examples = encoder("qwen2"), encoder("qwen2").for_training(ITEMS)
    recipe = toys.recipe("none", "qwen2", batch_size=1)
    layout = Layout("single", 512, one.pad_id, (128, 256, 384, 512))
    return [make_objective(recipe).collate([examples[number]], layout)[0] for number in sizes]


def machine(**changes: Any) -> Any:
    values = {
        "device": GPU,
        "layout": Layout("single", 512, 0, (256, 512)),
        "network": torch.nn.Linear(2, 2),
    }
    return SimpleNamespace(**{**values, **changes})


def test_items_of_one_length_are_one_kind_of_step() -> None:
    kinds = [signature([row]) for row in rows_of([0, 1, 2, 3, 8])]
    assert kinds[0] == kinds[1] == kinds[2] and len(set(kinds)) == 3
    assert signature(rows_of([0, 3])) == kinds[0] + kinds[3]


@pytest.mark.parametrize(
    ("changes", "signatures", "why"),
    [
        ({}, [((1,),)] * 9, ""),
        ({"device": torch.device("cpu")}, [], "not compiled"),
        ({"layout": Layout("padded", 512, 0)}, [], "not compiled"),
        ({"layout": Layout("tree", 8192, 0, (8192,))}, [], "8,192 tokens"),
        ({"network": torch.nn.Dropout(0.1)}, [], "dropout of its own"),
        ({"network": SeededDropout(0.1, torch.zeros(1, 4, dtype=torch.int32), 0)}, [], ""),
        ({}, [((number,),) for number in range(step_graphs.MOST)], ""),
        ({}, [((number,),) for number in range(step_graphs.MOST + 1)], f"{step_graphs.MOST + 1} kinds"),
        ({}, [((0,),)] * 100 + [((number,),) for number in range(step_graphs.MOST + 1)], ""),
    ],
)
def test_what_is_captured(changes: dict[str, Any], signatures: list[Any], why: str) -> None:
    found = step_graphs.obstacle(machine(**changes), signatures)
    assert why in found and bool(why) == bool(found)


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_torch_8bit"])
def test_a_parameter_begins_with_the_state_that_the_optimizer_itself_gives_it(name: str) -> None:
    parameters = [torch.nn.Parameter(torch.randn(64, 128)), torch.nn.Parameter(torch.randn(16))]
    if name == "adamw_torch_fused":
        optimizer: Any = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    else:
        optimizer = AdamW8bit(parameters, lr=0.0)
    fresh = next(make for package, make in FRESH.items() if type(optimizer).__module__.startswith(package))
    made = [fresh(optimizer, parameter) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, ours in zip(parameters, made, strict=True):
        theirs = optimizer.state[parameter]
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert type(ours[key]) is type(theirs[key]) and ours[key].shape == theirs[key].shape, key
            one, other = (
                value.dequantize() if hasattr(value, "codes") else value for value in (ours[key], theirs[key])
            )
            assert one.dtype == other.dtype and torch.equal(one, other - (1 if key == "step" else 0)), key


def test_bitsandbytes_counts_its_steps_in_python() -> None:
    optimizer = bitsandbytes.optim.AdamW8bit([torch.nn.Parameter(torch.zeros(4))])
    assert not any(type(optimizer).__module__.startswith(package) for package in FRESH)


def test_a_lack_of_memory_is_known_by_what_led_to_an_error() -> None:
    try:
        try:
            raise torch.OutOfMemoryError("no room")
        finally:
            raise RuntimeError("the capture ended badly")
    except RuntimeError as error:
        assert step_graphs._short_of_memory(error)
    assert not step_graphs._short_of_memory(RuntimeError("something else"))


def test_trainer_steps_once() -> None:
    """After a step whose graph has updated the weights, Trainer's call does nothing; the next one does again."""
    Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = SteppedInGraph(torch.optim.SGD([weight], lr=1.0))
    weight.grad = torch.ones(2)
    optimizer.done = True
    optimizer.step()
    assert weight.tolist() == [1, 1]
    optimizer.step()
    assert weight.tolist() == [0, 0]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_loss_copies_nothing_from_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a graph is captured, no list of numbers can become a tensor on the GPU."""
    one, network = encoder("qwen2"), toys.network("qwen2")
    objective = make_objective(toys.recipe("none", "qwen2", objective=name))
    rows = objective.collate(objective.examples(one, TRAIN)[:2], Layout("tree", 512, one.pad_id, (512,)))
    outputs, totals = objective.outputs(network, rows[0]), objective.totals(rows)

    def refuse(*given: Any, **keys: Any) -> None:
        raise AssertionError("a tensor is made from numbers of the host")

    for maker in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, maker, refuse)
    assert objective.loss(outputs, rows[0], totals, one.letter_ids or ()).isfinite()


def test_an_optimizer_compiles_its_step_for_each_shape_and_keeps_its_state() -> None:
    """What is compiled during a capture would fail."""
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in (16, 16, 8)]
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "weight_decay": 0.0}]
    optimizer = AdamW8bit(groups, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = [(parameter.clone(), optimizer.state[parameter]["exp_avg"].clone()) for parameter in parameters]
    stepped: list[int] = []
    step = optimizer.step

    def recorded() -> None:
        stepped.extend(number for number, one in enumerate(parameters) if one.grad is not None)
        step()
        if len(stepped) == 2:
            raise RuntimeError("compiling failed")

    optimizer.step = recorded  # type: ignore[method-assign]
    graphs = object.__new__(step_graphs.StepGraphs)
    graphs.optimizer = SimpleNamespace(optimizer=optimizer)
    graphs.trained, graphs.rates = parameters, [torch.zeros(()) for _ in groups]
    with pytest.raises(RuntimeError, match="compiling failed"):
        graphs._compile_update()
    assert stepped == [1, 2], "one of each shape"
    for parameter, (weight, moment) in zip(parameters, before, strict=True):
        state = optimizer.state[parameter]
        assert torch.equal(parameter, weight) and torch.equal(state["exp_avg"], moment) and state["step"] == 1
