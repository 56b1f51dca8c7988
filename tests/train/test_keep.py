"""What evaluations find, which weights are kept, and what is left in the folder of a run."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from src.files.paths import CHECKPOINTS
from src.prompt.encode import Example
from src.score.item_scores import ItemScores
from src.score.letters import HowRead, LetterScorer, Scored
from src.train.keep import Evaluated, best_of, dev_metrics, sample_weights, share_moved, weights_digest
from tests import toys
from tests.made_trainings import (
    CPU,
    DEV,
    Folder,
    Recorder,
    encoder,
    equal,
    train,
    weights,
)


def test_dev_metrics_by_hand() -> None:
    items = toys.items(3)
    logits = ((2.0, 0.0, 0.0), (3.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    rows = [ItemScores(item.id, ("012",), (row,)) for item, row in zip(items, logits, strict=True)]
    found = dev_metrics(items, rows)
    right = [math.exp(2) / (math.exp(2) + 2), 1 / (math.exp(3) + 2), math.e / (math.e + 2)]
    assert (found["accuracy"], found["correct"]) == (2 / 3, 2)
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, right)) / 3)
    by_category = {items[0].category: 1.0, items[1].category: 0.0, items[2].category: 1.0}
    assert {key: value for key, value in found.items() if key.startswith("accuracy_")} == {
        f"accuracy_{category}": value for category, value in by_category.items()
    }


@given(st.lists(st.tuples(st.integers(0, 605), st.floats(0, 1e6)), min_size=1, max_size=8))
def test_the_best_has_most_right_then_the_lowest_log_loss_then_is_first(pairs: list[tuple[int, float]]) -> None:
    best = best_of([{"eval_correct": correct, "eval_log_loss": log_loss} for correct, log_loss in pairs])
    most = max(correct for correct, _ in pairs)
    lowest = min(log_loss for correct, log_loss in pairs if correct == most)
    assert best == pairs.index((most, lowest))
    history = [{"eval_correct": correct, "eval_log_loss": log_loss} for correct, log_loss in pairs]
    assert best_of(history, keep="last") == len(pairs) - 1


@pytest.mark.trains
@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.thorough)])
def test_the_best_evaluation_is_kept_not_the_last(
    method: str,
    backbone_folder: Folder,
    tmp_path: Path,
    recorder: type[Recorder],
    dev_results: list[tuple[int, float]],
) -> None:
    dev_results += [(2, 0.5), (4, 1.0), (4, 0.9), (4, 0.9), (3, 0.1)]
    recipe = toys.recipe(backbone_folder("polar"), "polar", method=method, epoch=5, batch_size=4)
    outcome = train(recipe, tmp_path)
    assert outcome.training["best_step"] == 6 and outcome.training["steps"] == 10
    assert [entry["eval_correct"] for entry in outcome.training["evaluations"]] == [2, 4, 4, 4, 3]
    kept = weights(tmp_path / ("adapter" if method == "lora" else "model"))
    third = {name.replace(".default", ""): value for name, value in recorder.evaluated[2].items()}
    assert equal(kept, third) and not equal(kept, weights(tmp_path / CHECKPOINTS / "checkpoint-10"))
    # The best, and one checkpoint to go on from; nothing else.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [CHECKPOINTS, "adapter" if method == "lora" else "model", "training.csv"]
    )
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["checkpoint-10"]


@pytest.mark.trains
def test_the_last_weights_are_kept_where_dev_may_choose_nothing(
    backbone_folder: Folder, tmp_path: Path, recorder: type[Recorder], dev_results: list[tuple[int, float]]
) -> None:
    dev_results += [(4, 0.9), (6, 0.0), (3, 1.0)]
    recipe = toys.recipe(backbone_folder("polar"), "polar", method="lora", epoch=3, batch_size=4, keep="last")
    outcome = train(recipe, tmp_path)
    assert outcome.training["best_step"] == outcome.training["steps"] == 6
    last = {name.replace(".default", ""): value for name, value in recorder.evaluated[2].items()}
    assert equal(weights(tmp_path / "adapter"), last)


@pytest.mark.trains
def test_early_stopping_and_going_on_after_it(
    backbone_folder: Folder, tmp_path: Path, recorder: type[Recorder], dev_results: list[tuple[int, float]]
) -> None:
    dev_results += [(2, 1.0), (4, 1.0), (4, 1.1), (3, 0.1), (6, 0.0)]
    recipe = toys.recipe(
        backbone_folder("polar"), "polar", method="full", epoch=5, batch_size=4, early_stopping_patience=2
    )
    outcome = train(recipe, tmp_path)
    assert (outcome.training["steps"], outcome.training["best_step"]) == (8, 4)
    assert dev_results == [(6, 0.0)]
    # A run that was stopped before its record was written does not train on.
    again = train(recipe, tmp_path)
    assert dev_results == [(6, 0.0)] and recorder.gradients == []
    same = ("steps", "best_step", "evaluations", "loss", "weights_moved")
    assert {key: again.training[key] for key in same} == {key: outcome.training[key] for key in same}


@pytest.mark.trains
def test_evaluations_by_steps(backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1, batch_size=1, eval_steps=3)
    outcome = train(recipe, tmp_path)
    # The end is looked at too.
    assert [entry["step"] for entry in outcome.training["evaluations"]] == [3, 6, 8]
    few = train(recipe.replace(eval_steps=100), tmp_path / "few")
    assert [entry["step"] for entry in few.training["evaluations"]] == [8]


@pytest.mark.trains
def test_the_kept_adapter_scores_as_it_did_in_training(backbone_folder: Folder, tmp_path: Path) -> None:
    from src.model.load import load_run

    recipe = toys.recipe(backbone_folder("kogemma"), "kogemma", epoch=3, objective="letters")
    outcome = train(recipe, tmp_path)
    one = encoder("kogemma")
    examples = one.for_scoring(DEV)
    found = LetterScorer(load_run(tmp_path, recipe, CPU), one.letter_ids or (), one.pad_id).score(examples)
    best = outcome.training["evaluations"][best_of(outcome.training["evaluations"])]
    assert dev_metrics(DEV, found.items)["log_loss"] == pytest.approx(best["eval_log_loss"], abs=1e-6)


@pytest.mark.trains
@pytest.mark.parametrize(
    "lost",
    [
        "renamed",
        pytest.param("removed", marks=pytest.mark.thorough),
        "damaged",
    ],
)
def test_the_best_weights_are_made_again_from_the_checkpoint(
    lost: str, backbone_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", epoch=1)
    train(recipe, tmp_path)
    kept, before = tmp_path / "adapter", (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    if lost == "renamed":
        kept.rename(tmp_path / "adapter.old")
    elif lost == "removed":
        shutil.rmtree(kept)
    else:
        (kept / "adapter_model.safetensors").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    again = train(recipe, tmp_path)
    assert again.training["resumed_from"] and again.training["steps"] == 4
    assert (kept / "adapter_model.safetensors").read_bytes() == before
    assert not (tmp_path / "adapter.old").exists()


def test_the_share_of_weights_that_moved(backbone_folder: Folder, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 3))
    network[0].bias.requires_grad_(False)
    before = sample_weights(network, per_tensor=7)
    assert {name: value.numel() for name, value in before.items()} == {"0.weight": 8, "1.weight": 8, "1.bias": 3}
    assert share_moved(before, sample_weights(network, per_tensor=7)) == 0
    with torch.no_grad():
        network[1].bias += 1
    assert share_moved(before, sample_weights(network, per_tensor=7)) == 3 / 19


@pytest.mark.trains
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param("fp32", marks=pytest.mark.thorough),
        "bf16-stochastic",
        pytest.param("auto", marks=pytest.mark.thorough),
    ],
)
def test_full_fine_tuning_says_what_share_moved(optimizer: str, backbone_folder: Folder, tmp_path: Path) -> None:
    recipe = toys.recipe(backbone_folder("qwen2"), "qwen2", method="full", optimizer=optimizer, lr=2e-5)
    outcome = train(recipe, tmp_path)
    assert outcome.training["optimizer"] == ("fp32" if optimizer == "auto" else optimizer)
    # Words that no item holds have no gradient.
    assert (0.05 if optimizer == "bf16-stochastic" else 0.3) < outcome.training["weights_moved"] <= 1
    assert outcome.trainable_parameters == outcome.parameters
    moved = weights(tmp_path / "model")
    assert {value.dtype for value in moved.values()} == {torch.float32}, "as scoring on a CPU loads them"
    if optimizer == "bf16-stochastic":
        assert all(torch.equal(value, value.bfloat16().float()) for value in moved.values())


def test_scores_of_an_evaluation_are_those_of_its_very_weights() -> None:
    network, other = (toys.network("qwen2") for _ in range(2))
    other.load_state_dict(network.state_dict())
    scored = Scored([], HowRead("tree"))
    prompts = [Example(id, "012", (1, 2, 3), 3, 0, id) for id in ("one", "two")]
    evaluated = Evaluated(scored, prompts, weights_digest(network))
    assert evaluated.by(other, [*prompts]) is scored
    for others in (prompts[:1], prompts[::-1], [prompts[0], replace(prompts[1], ids=(1, 2, 4))]):
        assert evaluated.by(other, others) is None
    last = list(other.parameters())[-1]
    with torch.no_grad():
        last.view(-1)[-1] = torch.nextafter(last.view(-1)[-1], torch.tensor(9.0))
    assert evaluated.by(other, prompts) is None
    assert evaluated.by(network.to(torch.bfloat16), prompts) is None, "rounded weights are others"


def test_of_a_model_with_adapters_they_alone_count() -> None:
    network = get_peft_model(toys.network("qwen2"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    before = weights_digest(network)
    with torch.no_grad():
        network.get_input_embeddings().weight[0] += 1
        assert weights_digest(network) == before
        next(one for name, one in network.named_parameters() if "lora_B" in name)[0] += 1
    assert weights_digest(network) != before


def test_parameters_of_all_shapes_count() -> None:
    network = torch.nn.ParameterDict(
        {"scale": torch.tensor(2.0), "none": torch.empty(0, 3), "turned": torch.ones(2, 3).T}
    )
    before = weights_digest(network)
    with torch.no_grad():
        network["scale"] += 1
    assert weights_digest(network) != before
