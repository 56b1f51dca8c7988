"""Trainings in compiled layers, and the way back to the standard ones where compiling fails or cannot be."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import Qwen2ForCausalLM

from src.console.cli import UserError
from src.model.load import load_base
from src.score.letters import LetterScorer
from src.train import fine_tuning, trainer
from src.tree import compiled, layouts, prefix
from src.tree import compiler as compiling
from tests import toys
from tests.made_trainings import (
    CPU,
    TRAIN,
    Folder,
    Recorder,
    by_hand,
    encoder,
    in_trees,
    shares,
    train,
    weights,
    with_trained_adapters,
)

pytestmark = pytest.mark.trains

FEW = "q_proj,v_proj,down_proj"
"""Adapted layers: compiling takes the longer, the more there are."""


@pytest.mark.parametrize("sound", [pytest.param(True, marks=pytest.mark.thorough), False])
def test_compiled_rows_and_the_way_back_from_them(
    sound: bool, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: type[Recorder]
) -> None:
    made: list[Any] = []
    whole = trainer.make_trainer
    monkeypatch.setattr(fine_tuning, "make_trainer", lambda *args, **keys: made.append(whole(*args, **keys)) or made[0])
    monkeypatch.setattr(fine_tuning.load, "add_adapter", with_trained_adapters)
    changes = {"backbone": "polar", "gradient_checkpointing": "on", "epoch": 1, "lora_targets": FEW}
    recipe = shares(backbone_folder("polar"), **changes)
    one = encoder("polar")
    network = with_trained_adapters(load_base(recipe, CPU), recipe)
    expected = by_hand(network, one, one.for_training(TRAIN), "answer", "item")
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    checkpointed: list[Any] = []
    through = compiled.checkpoint
    monkeypatch.setattr(
        compiled, "checkpoint", lambda *args, **keys: checkpointed.append(args[0]) or through(*args, **keys)
    )
    with toys.compiled_on_a_cpu(monkeypatch):
        if not sound:
            in_trees(lambda logits: logits + 0.01)(monkeypatch)
        outcome = train(recipe, tmp_path)
        causal = made[0].network.get_base_model()
        found = outcome.training["rows"]
        assert found["guard"]["agree"] == sound
        if sound:
            assert (found["kind"], causal.config._attn_implementation) == ("tree", compiled.ATTENTION)
            assert found["tokens"] == found["lengths"][-1] and len(recorder.rows) == 1
            assert not causal.is_gradient_checkpointing and len(checkpointed) % len(causal.model.layers) == 0
            assert len({id(layer) for layer in checkpointed}) == len(causal.model.layers), "each compiled layer"
            assert recorder.rows[0]["input_ids"].shape[1] in found["lengths"]
        else:
            assert (found["kind"], causal.config._attn_implementation) == ("padded", "sdpa")
            assert causal.is_gradient_checkpointing, "as the recipe has it"
            assert not any(layer._compiled_call_impl for layer in causal.model.layers)
    assert recorder.losses == [pytest.approx(expected.item(), abs=1e-4)]
    for name, gradient in recorder.gradients[0].items():
        torch.testing.assert_close(gradient, gradients[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def compiling_fails(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Has compiling a layer fail while the list it gives holds something."""
    failing: list[bool] = []

    def backend(graph: Any, inputs: Any) -> Any:  # that computes as written: nothing is lowered
        if failing:
            raise OSError("Read-only file system")
        return graph.forward

    def compile_layer(layer: Any, **keys: Any) -> None:
        layer._compiled_call_impl = torch.compile(layer._call_impl, backend=backend, **keys)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_layer)
    return failing


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("when", "objective"),
    [
        ("forward", "answer"),
        *(
            pytest.param(when, objective, marks=pytest.mark.thorough)
            for when, objective in product(("guard", "forward", "backward", "evaluation"), ("answer", "orpo"))
            if (when, objective) != ("forward", "answer")
        ),
    ],
)
def test_compiling_that_fails_costs_no_step_and_is_in_the_record(
    when: str,
    objective: str,
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: type[Recorder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = shares(backbone_folder("qwen2"), objective=objective, batch_size=4, epoch=2, lora_targets=FEW)
    usual = train(recipe.replace(share_prefixes="off"), tmp_path / "usual")
    expected, losses = weights(tmp_path / "usual" / "adapter"), list(recorder.losses)
    with toys.compiled_on_a_cpu(monkeypatch) as patch:
        failing = compiling_fails(patch)
        if when == "guard":
            failing.append(True)

        def from_here_on(*args: Any, **keys: Any) -> None:
            torch._dynamo.reset()
            failing.append(True)

        def before(room: Any, name: str, at: int) -> None:
            whole, calls = getattr(room, name), []

            def call(*args: Any, **keys: Any) -> Any:
                calls.append(name)
                if len(calls) == at:
                    from_here_on()
                return whole(*args, **keys)

            monkeypatch.setattr(room, name, call)

        if when == "forward":
            before(Recorder, "training_step", 2)
        if when == "evaluation":
            before(LetterScorer, "score", 1)
        if when == "backward":
            left, backward = [2], Accelerator.backward

            def fails_late(self: Any, loss: torch.Tensor) -> None:
                backward(self, loss)
                left[0] -= 1
                if left[0] == 0:  # gradients are there already
                    raise RuntimeError("no message") from torch._dynamo.exc.InternalTorchDynamoError("in triton")

            monkeypatch.setattr(Accelerator, "backward", fails_late)
        outcome = train(recipe.replace(share_prefixes="auto"), tmp_path / "fails")
    found = outcome.training["rows"]
    assert found["kind"] == "padded" and (found["guard"] is None) == (when == "guard")
    assert found["obstacle"].startswith("compiling failed (") and compiling.gave_up() == found["obstacle"]
    said = capsys.readouterr().out
    assert said.count(f"nothing is compiled and no prefixes are shared: {found['obstacle']}. It goes on") == 1
    assert outcome.training["steps"] == usual.training["steps"]
    assert recorder.losses == pytest.approx(losses, abs=1e-4)
    for name, value in weights(tmp_path / "fails" / "adapter").items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("fresh")
def test_a_machine_that_cannot_compile_is_known_before_weights_are_loaded(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = shares(backbone_folder("qwen2"), share_prefixes="auto", epoch=1)
    order: list[str] = []
    load = fine_tuning.load_for_training

    def loading(*args: Any) -> Any:
        order.append(capsys.readouterr().out)
        return load(*args)

    monkeypatch.setattr(fine_tuning, "load_for_training", loading)
    monkeypatch.setattr(layouts, "WORTHWHILE", 1.1)  # the toys share little
    monkeypatch.setattr(compiling, "obstacle", lambda device: "there is no C compiler (apt-get install gcc)")
    found = train(recipe, tmp_path / "auto").training["rows"]
    assert found["kind"] == "padded" and found["obstacle"] == "there is no C compiler (apt-get install gcc)"
    (said,) = [line for line in order[0].splitlines() if "nothing is compiled" in line]
    sequences = [one.ids for one in encoder("qwen2").for_training(TRAIN)]
    times = compiling.SPEEDUP * sum(map(len, sequences)) / len(prefix.build(sequences))
    assert "no C compiler (apt-get install gcc). It goes on" in said and f"about {times:.1f} times slower" in said
    with pytest.raises(UserError, match=r"share_prefixes is on, but there is no C compiler .* Leave it at auto"):
        train(recipe.replace(share_prefixes="on"), tmp_path / "on")
    assert len(order) == 1


@pytest.mark.usefixtures("fresh")
def test_without_a_gpu_an_optimizer_compiles_nothing(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **keys: Any) -> None:
        raise AssertionError("something is compiled")

    monkeypatch.setattr(torch, "compile", refuse)
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="full", optimizer="bf16-stochastic", epoch=1)
    with torch.compiler.set_stance("default"):
        found = train(recipe, tmp_path).training
    assert found["optimizer"] == "bf16-stochastic" and found["weights_moved"] > 0 and "obstacle" not in found["rows"]


def test_a_model_that_cannot_branch_is_trained_side_by_side(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1)
    usual = train(recipe.replace(share_prefixes="off"), tmp_path / "usual")
    monkeypatch.setattr(Qwen2ForCausalLM, "_is_stateful", True)
    found = train(recipe, tmp_path / "stateful").training
    assert found["rows"]["kind"] == "padded" and "qwen2 carries a state" in found["rows"]["obstacle"]
    assert "no prefixes are shared: qwen2 carries a state" in capsys.readouterr().out
    assert found["evaluations"][0]["eval_log_loss"] == usual.training["evaluations"][0]["eval_log_loss"]
    with pytest.raises(UserError, match=r"qwen2: share_prefixes is on, but qwen2 carries a state.* Leave it at auto"):
        train(recipe.replace(share_prefixes="on"), tmp_path / "asked")
