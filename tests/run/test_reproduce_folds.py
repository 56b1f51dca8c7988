"""run.reproduce --folds: what is done, what is left, what is refused, with a stand-in for the training."""

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import run.reproduce as reproduce
from run.train import make_parser
from src import task
from src.console.cli import UserError
from src.data import dump_items, load_items, load_split, sha256, split_path
from src.files.paths import predictions_path, record_path, scores_path
from src.files.writing import write_json, write_text
from src.model.recipe_flags import read_recipe
from src.score.item_scores import read_scores
from tests.conftest import make_item
from tests.made_reproduce import make_house, set_run_job
from tests.made_runs import make_scored_run, stored

RESULTS = Path("resource/results")


@pytest.fixture(autouse=True)
def official_afterwards() -> Iterator[None]:
    yield
    task.use(None)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 labelled items of ten dialogues, of which train and dev share one, and nine of test."""
    make_house(tmp_path, monkeypatch)
    put(train=range(20), dev=range(20, 30), test=range(30, 39))
    return tmp_path


def put(**splits: Sequence[int]) -> None:
    for split, numbers in splits.items():
        changes = {"output": ""} if split == "test" else {}
        raw = [make_item(number, **changes) for number in numbers]
        write_text(split_path("data", split), dump_items(raw))


class Trainings:
    """Stands in for `run_job`: a run answers with its recipe's letter, and knows every third item better. The vote is
    the real one. `stop`: interrupted before so many more trainings, with what a kill leaves of the next one.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.stop: int | None = None
        self.fail: dict[str, str] = {}

    def __call__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], update: Callable[..., None], *rest: Any
    ) -> str:
        module, words = command[2], list(command[3:])
        if module == "run.vote":
            import run.vote as vote

            self.seen.append(f"vote {words[words.index('--split') + 1]}")
            vote.main(words)
            return ""
        assert module == "run.train", module
        arguments = make_parser().parse_args(words)
        recipe = read_recipe(arguments)
        folder = RESULTS / recipe.name
        self.seen.append(recipe.name)
        if recipe.name in self.fail:
            return self.fail[recipe.name]
        if self.stop == 0:
            write_text(folder / "recipe.yaml", recipe.dump())
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            assert rest[0].wait(20), "the others are told to stop"
            return "interrupted"
        self.stop = None if self.stop is None else self.stop - 1
        assert recipe.keep == "last"
        data = {}
        for split in ("train", "dev"):
            path = split_path(arguments.data, split)
            data[split] = {"path": str(path), "sha256": sha256(path), "items": len(load_items(path))}
        results = {}
        for split in ("dev", *arguments.score):
            items = load_split(arguments.data, split)
            known = [(item.label or 0) if place % 3 == 0 else recipe.seed % 3 for place, item in enumerate(items)]
            make_scored_run(
                folder, arguments.data, split, [[float(option == one) for option in range(3)] for one in known]
            )
            right = sum(item.label == one for item, one in zip(items, known, strict=True))
            results[split] = {
                "items": len(items),
                "data_sha256": sha256(split_path(arguments.data, split)),
                **({"accuracy": right / len(items), "correct": right} if split == "dev" else {}),
            }
        record = {"run": recipe.name, "recipe": asdict(recipe), "data": data, "splits": results, "seconds": 2.0}
        write_json(record_path(folder), record)
        return ""


@pytest.fixture
def trainings(house: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    stand_in = Trainings()
    set_run_job(monkeypatch, stand_in)
    monkeypatch.setattr(reproduce.devices, "gpus", lambda: [])
    for name in ("obstacles", "check_room"):
        monkeypatch.setattr(reproduce.ready, name, lambda *given: {})
    return stand_in


def call(*more: str) -> int:
    return reproduce.main(["--recipes", "recipes", "--data", "data", "--name", "try", "--only", "eeve", *more])


def test_every_labelled_item_is_scored_by_a_run_that_never_saw_its_dialogue(
    trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--folds", "3") == 0
    assert trainings.seen == ["eeve-try-f1of3", "eeve-try-f2of3", "eeve-try-f3of3", "vote dev", "vote test"]
    labelled = {item.id: item for split in ("train", "dev") for item in load_split("data", split)}
    scored: list[str] = []
    for run in trainings.seen[:3]:
        trained = load_items(stored(RESULTS / run)["data"]["train"]["path"])
        own = [one.id for one in read_scores(scores_path(RESULTS / run, "dev"))]
        assert {item.id for item in trained} | set(own) == labelled.keys()
        assert not {item.dialogue_key for item in trained} & {labelled[id].dialogue_key for id in own}
        scored += own
    assert sorted(scored) == sorted(labelled)
    joined = {one.id: one.logits for one in read_scores(scores_path(RESULTS / "eeve-try-oof3", "dev"))}
    for run in trainings.seen[:3]:
        assert all(joined[one.id] == one.logits for one in read_scores(scores_path(RESULTS / run, "dev")))
    shown = capsys.readouterr().out
    assert "train and dev share 1 dialogue (2 items of train, 1 of dev): in one fold each" in shown
    assert "3 fold runs: 1 recipe, 3 folds, 1 seed" in shown and "The vote is of 3 of 3" in shown
    result = stored(RESULTS / "eeve-try-oof3")["splits"]["dev"]
    assert "eeve-try-oof3 " in shown and " 30/9 " in shown and f"{result['accuracy']:.3f} [" in shown


def test_the_fold_runs_vote_on_test_and_their_joint_answers_on_all_labelled_items(trainings: Trainings) -> None:
    assert call("--folds", "2", "--seeds", "2") == 0
    vote = RESULTS / "vote-folds-try"
    splits = stored(vote)["splits"]
    assert [voter["run"] for voter in splits["test"]["voters"]] == [
        *("eeve-try-f1of2", "eeve-try-f2of2", "eeve-try-s2-f1of2", "eeve-try-s2-f2of2")
    ]
    assert [voter["run"] for voter in splits["dev"]["voters"]] == ["eeve-try-oof2", "eeve-try-s2-oof2"]
    assert (splits["dev"]["items"], splits["test"]["items"]) == (30, 9)
    sources = [item.source for item in load_split("data", "test")]
    handed_in = json.loads(predictions_path(vote, "test").read_text(encoding="utf-8"))
    assert [{**one, "output": ""} for one in handed_in] == sources and all(one["output"] for one in handed_in)


def test_seeds_are_told_by_mean_and_spread(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--folds", "2", "--seeds", "2") == 0
    one, other = (stored(RESULTS / name)["splits"]["dev"]["accuracy"] for name in ("eeve-try-oof2", "eeve-try-s2-oof2"))
    assert one != other
    spread = abs(one - other) / 2**0.5
    assert "eeve, mean of 2 seeds" in (shown := capsys.readouterr().out)
    assert f"{(one + other) / 2:.3f} ± {spread:.3f}" in shown
    # One seed more keeps the runs that are there.
    trainings.seen.clear()
    assert call("--folds", "2", "--seeds", "3") == 0
    assert trainings.seen == ["eeve-try-s3-f1of2", "eeve-try-s3-f2of2", "vote dev", "vote test"]


def test_what_was_killed_goes_on_and_what_is_finished_is_kept(trainings: Trainings) -> None:
    trainings.stop = 1
    with pytest.raises(KeyboardInterrupt):
        call("--folds", "3")
    assert not (RESULTS / "eeve-try-oof3").exists() and not record_path(RESULTS / "eeve-try-f2of3").exists()
    before = record_path(RESULTS / "eeve-try-f1of3").read_bytes()
    left = {name: RESULTS / name / "checkpoints" / "checkpoint-1" for name in ("eeve-try-f1of3", "eeve-try-f2of3")}
    for folder in left.values():
        folder.mkdir(parents=True)
    trainings.stop, trainings.seen = None, []
    assert call("--folds", "3") == 0
    assert trainings.seen == ["eeve-try-f2of3", "eeve-try-f3of3", "vote dev", "vote test"]
    assert record_path(RESULTS / "eeve-try-f1of3").read_bytes() == before
    assert not any(folder.parent.exists() for folder in left.values())
    trainings.seen.clear()
    assert call("--folds", "3") == 0
    assert trainings.seen == ["vote dev", "vote test"]


def test_a_recipe_without_all_its_folds_is_not_joined(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    trainings.fail = {"polar-try-f2of2": "the disk is full"}
    assert call("--folds", "2", "--only", "eeve", "polar") == 1
    assert not (RESULTS / "polar-try-oof2").exists() and record_path(RESULTS / "eeve-try-oof2").is_file()
    shown = capsys.readouterr().out
    assert (
        "failed polar-try-f2of2: the disk is full" in shown
        and "The vote is of 3 of 4; missing: polar-try-f2of2" in shown
    )
    assert stored(RESULTS / "vote-folds-try")["splits"]["dev"]["missing"] == {"polar-try-oof2": "no such run"}
    trainings.fail, trainings.seen = {}, []
    assert call("--folds", "2", "--only", "eeve", "polar") == 0
    assert trainings.seen == ["polar-try-f2of2", "vote dev", "vote test"]


def test_other_data_and_another_number_of_folds_are_refused(trainings: Trainings) -> None:
    assert call("--folds", "2") == 0
    trainings.seen.clear()
    with pytest.raises(UserError, match=r"folds-try holds other folds: folds was 2, now 3\. .*another --name"):
        call("--folds", "3")
    with pytest.raises(UserError, match="drop_shared was False, now True"):
        call("--folds", "2", "--drop_shared")
    put(train=range(21))
    with pytest.raises(UserError, match="train is another file"):
        call("--folds", "2", "--dry_run")
    assert trainings.seen == []
    put(train=range(20))
    assert call("--folds", "3", "--name", "other") == 0
    assert trainings.seen[:3] == ["eeve-other-f1of3", "eeve-other-f2of3", "eeve-other-f3of3"]


def test_other_folds_have_other_runs(trainings: Trainings) -> None:
    assert call("--folds", "2") == 0
    assert call("--folds", "2", "--drop_shared", "--name", "other") == 0
    assert trainings.seen[-4:] == ["eeve-other-f1of2", "eeve-other-f2of2", "vote dev", "vote test"]


def test_runs_that_are_of_no_folds_are_not_taken(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--folds", "2", "--drop_shared") == 0
    shutil.rmtree(RESULTS / "folds-try")
    assert call("--folds", "2") == 1
    assert "eeve-try-f1of2 is a finished run with other settings (train data" in capsys.readouterr().out


def test_shared_dialogues_can_be_left_out(trainings: Trainings) -> None:
    assert call("--folds", "3", "--drop_shared") == 0
    assert stored(RESULTS / "eeve-try-oof3")["splits"]["dev"]["items"] == 27


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--folds", "1"], "--folds: found 1, allowed: 2 or more"),
        (["--folds", "0"], "--folds: found 0, allowed: 2 or more"),
        (["--folds", "11"], r"--folds 11: the 30 labelled items are of 10 dialogues, .*Allowed: 2 to 6"),
        (["--folds", "2", "--seeds", "0"], "--seeds: found 0, allowed: 1 or more"),
        (["--seeds", "2"], "--seeds: allowed with --folds K"),
        (["--drop_shared"], "--drop_shared: allowed with --folds K"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_is_made(
    trainings: Trainings, words: list[str], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        call(*words)
    assert trainings.seen == [] and not RESULTS.exists()


def test_without_dev_there_is_nothing_to_divide(trainings: Trainings, house: Path) -> None:
    (house / "data" / "data_dev.json").unlink()
    with pytest.raises(UserError, match=r"data_dev\.json: no such file"):
        call("--folds", "2")
    assert trainings.seen == [] and not RESULTS.exists()


def test_without_test_the_fold_runs_do_not_vote(trainings: Trainings, house: Path) -> None:
    (house / "data" / "data_test.json").unlink()
    assert call("--folds", "2") == 0
    assert trainings.seen == ["eeve-try-f1of2", "eeve-try-f2of2", "vote dev"]


def test_the_plan_is_of_all_fold_runs_and_starts_nothing(
    trainings: Trainings, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--folds", "5", "--seeds", "2", "--dry_run") == 0
    assert "10 fold runs: 1 recipe, 5 folds, 2 seeds" in (shown := capsys.readouterr().out) and "eeve x 10" in shown
    for split in ("train", "dev"):
        (house / "data" / f"data_{split}.json").unlink()
    assert call("--folds", "5", "--dry_run") == 0
    assert "eeve x 5" in capsys.readouterr().out
    assert trainings.seen == [] and not RESULTS.exists()
