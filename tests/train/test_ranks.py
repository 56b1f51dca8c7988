"""Two ranks do what one process does, with whole parameters and with sharded ones. They are started once for most
tests, and forked from one process, since loading takes longest.
"""

import functools
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from run.test import main as score
from src.model import ranks
from src.model.load import load_base, load_tokenizer
from src.score.letters import LetterScorer
from src.train.curves import read_steps
from src.train.ranks import GradientSum, seed_step
from tests import launched, toys
from tests.forked_ranks import Forks
from tests.made_runs import make_place, stored
from tests.made_trainings import CPU, DEV, encoder, weights
from tests.train import ranks_cases as cases
from tests.train import sharded_cases

pytestmark = pytest.mark.trains

CASES = list(cases.CASES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a prompt and a backbone, for trainings and commands."""
    folder = tmp_path_factory.mktemp("ranks")
    make_place(folder)
    toys.save("qwen2", folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def by_two(place: Path, forks: Forks) -> dict[str, Any]:
    """What the records have of all cases, by two ranks; their folders are beside it. Begins with one process's half of
    a training, which the ranks go on with.
    """
    cases.interrupted(place / "from 1 to 2")
    launched.run(["tests.train.ranks_job", place], place, start=forks.start)
    found: dict[str, Any] = json.loads((place / "found.json").read_text())
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        apart = float((value - theirs[name]).abs().max())
        assert apart < 1e-5, f"{name}: {apart}"


def by_one(name: str, place: Path) -> tuple[dict[str, Any], Path]:
    """(record, folder) of the case by one process, where no fault happens: cases of equal settings share a training."""
    first = next(one for one in CASES if cases.CASES[one] == cases.CASES[name])
    return alone(first, place), place / f"{first}, alone"


@functools.cache
def alone(name: str, place: Path) -> dict[str, Any]:
    return cases.trained(name, place, f"{name}, alone")


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_process_does(name: str, place: Path, by_two: dict[str, Any]) -> None:
    usual, whole = by_one(name, place)
    kept = "model" if name == "all parameters" else "adapter"
    assert_same_weights(place / name / kept, whole / kept)
    ours = by_two[name]
    assert ours["steps"] == usual["steps"] and ours["effective_batch"] == usual["effective_batch"]
    assert ours["best_step"] == usual["best_step"] and len(ours["evaluations"]) == len(usual["evaluations"])
    for one, other in zip(ours["evaluations"], usual["evaluations"], strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert one[key] == pytest.approx(value, abs=1e-4), key
    assert [loss for _, loss in ours["loss"]] == pytest.approx([loss for _, loss in usual["loss"]], rel=1e-4)
    rows, theirs = (read_steps(folder / "training.csv") for folder in (place / name, whole))
    assert [(one.step, one.lr) for one in rows] == [(one.step, one.lr) for one in theirs]
    assert [one.loss for one in rows] == pytest.approx([one.loss for one in theirs], rel=1e-4)
    assert ours["ranks"]["world"] == 2 and ours["ranks"]["devices"] == ["cpu", "cpu"] and "ranks" not in usual
    trained = sum(value.numel() for value in weights(place / name / kept).values())
    assert ours["ranks"]["bytes_per_step"] == 4 * (trained + 1) or kept == "model"


def test_what_one_rank_finds_holds_for_both(by_two: dict[str, Any]) -> None:
    assert by_two["steps in graphs"]["captured"] == {"kinds": 0}, "no obstacle"
    assert by_two["no more graphs on one"]["captured"] == {"obstacle": "there is no room"}
    rows = {name: one["rows"] for name, one in by_two.items()}
    assert rows["steps in graphs"]["kind"] == rows["no more graphs on one"]["kind"] == "tree"
    failed, disagreed = rows["compiling fails on one"], rows["the guard finds one at fault"]
    assert failed["kind"] == disagreed["kind"] == "padded", "both go on one by one"
    assert failed["obstacle"] == "a kernel cannot be compiled" and not disagreed["guard"]["agree"]


@pytest.mark.parametrize("which", ["from 1 to 2", "from 2 to 1"])
def test_a_training_goes_on_with_another_number_of_ranks(which: str, place: Path, by_two: dict[str, Any]) -> None:
    usual, whole = by_one(CASES[0], place)
    found = by_two[which] if which == "from 1 to 2" else cases.trained(CASES[0], place, which)
    assert found["resumed_from"].endswith("checkpoint-2") and found["steps"] == usual["steps"]
    assert_same_weights(place / which / "adapter", whole / "adapter")


def test_commands_share_their_work_and_rank_0_alone_speaks(place: Path, by_two: dict[str, Any]) -> None:
    """Training and scoring by two ranks leave what one process does; the job has seen that rank 1 writes nothing."""
    ours, record = place / "by two", stored(place / "by two")
    assert record["training"]["ranks"]["world"] == 2 and record["splits"].keys() == {"dev", "test"}
    assert (ours / "training.png").is_file() and not (ours / "lock").exists()
    assert launched.said(place, 0)[0].count("The run lies in") == 1
    names = ("scores_dev.jsonl", "scores_test.jsonl", "scores_test.6orders.jsonl")
    before = {name: [json.loads(line) for line in (ours / name).read_text().splitlines()] for name in names}
    score(["--model_id", str(ours), "--split", "dev", "test", "--device", "cpu"])
    score(["--model_id", str(ours), "--split", "test", "--orders", "6", "--device", "cpu"])
    for name, lines in before.items():
        alone = [json.loads(line) for line in (ours / name).read_text().splitlines()]
        assert [one["id"] for one in lines] == [one["id"] for one in alone]
        for one, other in zip(lines, alone, strict=True):
            assert one["prediction"] == other["prediction"] and one["orders"] == other["orders"]
            for values, theirs in zip(one["logits"], other["logits"], strict=True):
                assert values == pytest.approx(theirs, abs=1e-5)


def test_a_step_of_too_few_items_is_refused_before_anything_else(place: Path, forks: Forks) -> None:
    words = ["run.train", *cases.words(place, "small"), "--batch_size", "1"]
    out, err = launched.run(words, place, code=2, start=forks.start)
    assert out == "" and err.count("error:") == err.count("\n") == 1
    assert "has 1 item" in err and "at least 2 items" in err and "--batch_size 2" in err
    assert not (place / "small").exists()


def test_a_training_ends_with_a_killed_rank(place: Path, forks: Forks) -> None:
    words = ["run.train", *cases.words(place, "killed"), "--epoch", "500", "--batch_size", "2"]
    both = forks.start(words, place)
    try:
        wait_for(lambda: "step 4:" in launched.said(place, 0)[0] or both[0].poll() is not None)
        both[1].kill()
        died = time.monotonic()
        codes = launched.end(both)
    finally:
        for one in both:
            one.kill()
    told = launched.said(place, 0)[1]
    assert codes == [1, -signal.SIGKILL] and time.monotonic() - died < 10, told
    assert told == "error: rank 1 of 2 ended without a word: it was killed, or crashed\n"
    assert list((place / "killed" / "checkpoints").iterdir()), "what goes on from"


def wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + launched.PATIENCE
    while not done() and time.monotonic() < until:
        time.sleep(0.05)


# Sharded parameters


@pytest.fixture(scope="module")
def sharded_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for short, changes in sharded_cases.ODD.items():
        toys.save(short, folder / short, **changes)
    damaged = folder / "damaged base"
    shutil.copytree(folder / "qwen2", damaged)
    kept = load_file(damaged / "model.safetensors")
    kept.pop("model.layers.1.mlp.up_proj.weight")
    save_file(kept, damaged / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def sharded(sharded_place: Path, forks: Forks) -> dict[str, Any]:
    """What two ranks found. They begin with one process's half of a training, and end with a base that lacks a tensor,
    so all of them fail.
    """
    with torch.compiler.set_stance("force_eager"):
        sharded_cases.interrupted(sharded_place, "from 1 to 2")
    _, told = launched.run(["tests.train.sharded_job", sharded_place], sharded_place, code=2, start=forks.start)
    assert (sharded_place / "found.json").is_file(), told
    found: dict[str, Any] = json.loads((sharded_place / "found.json").read_text())
    return {**found, "damaged": told}


@functools.cache
def not_sharded(name: str, sharded_place: Path) -> tuple[dict[str, Any], Path]:
    """(record, folder) of the case by one process."""
    folder = sharded_place / f"{name}, alone"
    return sharded_cases.trained(name, sharded_place, folder.name), folder


@pytest.mark.parametrize("name", sharded_cases.CASES)
def test_sharded_parameters_learn_what_whole_ones_do(name: str, sharded_place: Path, sharded: dict[str, Any]) -> None:
    alone, whole = not_sharded(name, sharded_place)
    assert_same_weights(sharded_place / name / "model", whole / "model")
    before = load_file(sharded_place / sharded_cases.CASES[name][0] / "model.safetensors")
    after = weights(sharded_place / name / "model")
    assert max(float((after[key] - before[key]).abs().max()) for key in after) > 1e-4
    ours = sharded[name]
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


def test_what_is_saved_is_an_ordinary_model(sharded_place: Path, sharded: dict[str, Any]) -> None:
    kept = sharded_place / sharded_cases.FIRST / "model"
    files = {path.name for path in kept.iterdir()}
    assert files == {path.name for path in (sharded_place / "qwen2").iterdir()} | {"whole.json"}
    stock = AutoModelForCausalLM.from_pretrained(kept)
    assert stock.config.architectures == ["Qwen2ForCausalLM"]
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    assert "lm_head.weight" not in weights(kept)
    # As run.test reads it, it answers dev as the last evaluation has found.
    recipe = sharded_cases.recipe(sharded_cases.FIRST, sharded_place)
    network = load_base(recipe, CPU, folder=kept).eval()
    assert len(load_tokenizer(recipe, kept)) == len(toys.tokenizer("qwen2"))
    one = encoder("qwen2")
    read = one.for_scoring(DEV)  # which finds the letters' ids
    scores = LetterScorer(network, one.letter_ids or (), one.pad_id).score(read).items
    first = sharded[sharded_cases.FIRST]
    best = next(one for one in first["evaluations"] if one["step"] == first["best_step"])
    right = sum(score.prediction == item.label for score, item in zip(scores, DEV, strict=True))
    assert right == best["eval_correct"]


@pytest.mark.parametrize("which", ["from 1 to 2", "from 2 to 1"])
def test_a_sharded_training_goes_on_with_another_number_of_ranks(
    which: str, sharded_place: Path, sharded: dict[str, Any]
) -> None:
    alone, whole = not_sharded(sharded_cases.FIRST, sharded_place)
    found = sharded.get(which) or sharded_cases.trained(sharded_cases.FIRST, sharded_place, "from 2")
    assert found["resumed_from"].endswith("checkpoint-2") and found["steps"] == alone["steps"]
    assert_same_weights(sharded_place / ("from 2" if which == "from 2 to 1" else which) / "model", whole / "model")


def test_states_in_8_bits_are_handed_out_as_they_were(sharded: dict[str, Any]) -> None:
    found = sharded["states"]
    assert found["apart"] == 0 and found["after"][0] == found["after"][1]
    # Whole blocks stay in 8 bits; those that a rank's part cuts are numbers.
    assert found["kinds"] == ["OptimState8bit", "Tensor"] and all(norm > 0.1 for norm in found["norms"])


def test_ranks_with_other_numbers_of_passes_wait_for_each_other(sharded: dict[str, Any]) -> None:
    assert sharded["passes"] == [0, 3]


def test_compiled_layers_have_the_same_gradients(sharded: dict[str, Any]) -> None:
    assert sharded["compiled"] < 1e-6


def test_what_cannot_be_sharded_is_refused(sharded: dict[str, Any]) -> None:
    told = sharded["refused"]
    assert "optimizer fp32-8bit cannot be sharded" in told and "allowed there: fp32, bf16-stochastic" in told


def test_missing_weights_are_refused(sharded: dict[str, Any]) -> None:
    assert "lacks 1 of the tensors that its config asks for: model.layers.1.mlp.up_proj.weight" in sharded["damaged"]
    assert "Traceback" not in sharded["damaged"]


# What needs no ranks


@pytest.mark.parametrize(
    ("name", "hosts", "gpus"), [("two_gpus", 1, 2), ("four_gpus", 1, 4), ("eight_gpus", 1, 8), ("several_hosts", 2, 16)]
)
def test_accelerate_reads_its_settings(name: str, hosts: int, gpus: int) -> None:
    found = load_config_from_file(str(launched.ROOT / f"resource/accelerate/{name}.yaml"))
    assert (found.num_machines, found.num_processes, found.mixed_precision) == (hosts, gpus, "no")
    assert found.distributed_type == "MULTI_GPU" and not found.use_cpu


def test_gradients_lie_in_one_buffer() -> None:
    one, other = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    summed = GradientSum([one, other])
    summed.begin()
    ((one * 2).sum() + (other * 3).sum().float()).backward()
    ((one * 2).sum()).backward()
    assert summed.buffers[torch.float32].tolist() == [4] * 6 + [0] * 59, "the loss comes last"
    assert summed.buffers[torch.bfloat16].tolist() == [3] * 4 + [0] * 60
    assert one.grad is summed.gradients[0] and summed.bytes == 4 * 65 + 2 * 64
    assert [id(gradient) for gradient in summed.of([other, one])] == [id(other.grad), id(one.grad)]
    summed.begin()
    assert not summed.buffers[torch.float32].any() and not summed.buffers[torch.bfloat16].any()


def test_masks_differ_by_rank_and_rounding_does_not() -> None:
    drawn = []
    for step, rank in ((3, 0), (3, 1), (4, 0), (3, ranks.ALL), (3, 0)):
        seed_step(42, step, rank)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[4] and len({tuple(one) for one in drawn}) == 4


def test_alone_nothing_is_asked_of_others() -> None:
    assert ranks.gathered(3) == [3] and ranks.any_text("x") == "x" and ranks.any_text("") == ""
    assert ranks.decided(lambda: 5) == 5 and ranks.least(3, "y") == "y"
    assert ranks.is_first() and not ranks.several()
    with ranks.first_goes_first():
        pass
