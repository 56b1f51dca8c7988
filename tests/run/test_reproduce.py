"""What is done, what is left, what failed: with stand-ins for the training, and once with the real commands."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import run.reproduce as reproduce
from src import task
from src.console.cli import UserError
from src.console.tables import make_console
from src.data import load_split, sha256, split_path
from src.files.paths import record_path
from src.files.writing import write_json
from src.model.recipe_files import load_recipe
from tests.made_reproduce import ROOT, make_house, set_run_job
from tests.made_runs import make_run, make_split, stored


@pytest.fixture(autouse=True)
def official_afterwards() -> Iterator[None]:
    yield
    task.use(None)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_house(tmp_path, monkeypatch)


class Commands:
    """Stands in for `run_job`: leaves what the command would leave, or the failure it is told to report."""

    def __init__(self, house: Path) -> None:
        self.house, self.seen, self.fail = house, [], {}  # type: ignore[var-annotated]

    def __call__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], update: Callable[..., None], *rest: Any
    ) -> str:
        module, arguments = command[2], list(command[3:])
        self.seen.append((module, arguments))
        if module == "run.train":
            recipe = load_recipe(arguments[arguments.index("--recipe") + 1])
            if recipe.name in self.fail:
                return str(self.fail[recipe.name])
            update({"stage": "train", "done": 1, "total": 2, "note": ""})
            folder = Path("resource/results") / recipe.name
            make_run(folder, self.house / "data", "dev", [0, 1, 2, 0, 1, 1])
            splits = {"dev": {"items": 6, "accuracy": 5 / 6, "correct": 5, "data_sha256": self.sha("dev")}}
            if "--score" in arguments:
                make_run(folder, self.house / "data", "test", [0] * 9)
                splits["test"] = {"items": 9, "accuracy": None, "correct": None, "data_sha256": self.sha("test")}
            record = {"run": recipe.name, "recipe": asdict(recipe), "splits": splits}
            record |= {"data": {split: {"sha256": self.sha(split)} for split in ("train", "dev")}}
            write_json(record_path(folder), record | {"trainable_parameters": 7, "seconds": 1.0})
        elif module == "run.test":
            folder = Path(arguments[arguments.index("--model_id") + 1])
            record = stored(folder)
            make_run(folder, self.house / "data", "test", [0] * 9)
            record["splits"]["test"] = {"items": 9, "accuracy": None, "correct": None, "data_sha256": self.sha("test")}
            write_json(record_path(folder), record)
        else:
            assert module == "run.vote"
            import run.vote as vote

            vote.main(arguments)
        return ""

    def sha(self, split: str) -> str:
        return sha256(split_path(self.house / "data", split))

    def modules(self) -> list[str]:
        return [module for module, _ in self.seen]


@pytest.fixture
def commands(house: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    stand_in = Commands(house)
    set_run_job(monkeypatch, stand_in)
    monkeypatch.setattr(reproduce.devices, "gpus", lambda: [])
    for name in ("obstacles", "check_room"):  # what this machine could really do
        monkeypatch.setattr(reproduce.ready, name, lambda *given: {})
    return stand_in


def call(*more: str) -> int:
    return reproduce.main(["--recipes", "recipes", "--data", "data", "--name", "try", *more])


def test_a_name_is_one_folder(commands: Commands) -> None:
    with pytest.raises(UserError, match=r"--name: found 'a/b', allowed: the name of one folder"):
        call("--name", "a/b")
    assert commands.seen == []


def test_all_of_it_then_nothing(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    assert commands.modules() == ["run.train"] * 3 + ["run.vote"] * 2
    shown = capsys.readouterr().out
    assert "0.833 [0.436, 0.970]" in shown and "The vote is of 3 of 3" in shown
    record = stored("resource/results/vote-try")
    assert [voter["run"] for voter in record["splits"]["test"]["voters"]] == ["eeve", "polar", "qwen2"]
    commands.seen.clear()
    assert call() == 0
    assert commands.modules() == ["run.vote"] * 2


def test_a_failure_is_reported_and_the_rest_goes_on(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.fail = {"polar": "x2bee/POLAR-14B-v0.2 is gated"}
    assert call() == 1
    shown = capsys.readouterr().out
    assert "failed polar: x2bee/POLAR-14B-v0.2 is gated" in shown
    assert "The vote is of 2 of 3; missing: polar" in shown
    assert stored("resource/results/vote-try")["splits"]["test"]["missing"] == {"polar": "not finished"}
    commands.fail, commands.seen = {}, []
    assert call() == 0
    assert commands.modules() == ["run.train", "run.vote", "run.vote"]


def test_when_all_fail_there_is_no_vote(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.fail = dict.fromkeys(("eeve", "polar", "qwen2"), "no disk")
    assert call() == 1
    assert commands.modules() == ["run.train"] * 3
    assert "Runs lie in" not in capsys.readouterr().out


def test_only_some(commands: Commands) -> None:
    assert call("--only", "eeve") == 0
    assert commands.modules().count("run.train") == 1


def test_a_new_test_split_is_scored_without_training(commands: Commands, house: Path) -> None:
    assert call("--only", "eeve") == 0
    make_split(house / "data", "test", 9, labelled=True)
    commands.seen.clear()
    assert call("--only", "eeve") == 0
    assert commands.modules()[0] == "run.test"


def test_a_run_of_other_settings_or_data_is_not_taken_for_this_one(
    commands: Commands, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call() == 0
    (house / "recipes" / "eeve.yaml").write_text("backbone: eeve\nmethod: lora\nepoch: 9\n", encoding="utf-8")
    assert call() == 1
    shown = capsys.readouterr().out
    assert "failed eeve" in shown and "other settings (epoch)" in shown and "missing: eeve" in shown
    make_split(house / "data", "train", 9)
    assert call() == 1
    assert "train data" in capsys.readouterr().out


def test_the_dry_run_starts_nothing(commands: Commands, house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(house / "data")
    assert call("--dry_run") == 0
    assert commands.seen == []
    shown = capsys.readouterr().out
    assert "eeve" in shown and "apache-2.0" in shown


def test_the_plan_says_which_items_are_too_long(
    commands: Commands, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--dry_run") == 0
    assert "too long" not in capsys.readouterr().out
    path = split_path(house / "data", "test")
    items = json.loads(path.read_text(encoding="utf-8"))
    items[0]["input"]["conversation"][0]["utterance"] = "가" * 4000
    path.write_text(json.dumps(items), encoding="utf-8")
    assert call("--dry_run") == 0
    shown = capsys.readouterr().out
    for name in ("eeve", "polar"):
        assert f"{name}: items too long for its context of 4,096 tokens with prompt entry: test 1 of 9; " in shown
    assert "qwen2: items too long" not in shown and shown.rstrip().endswith("doing without that backbone (--only).")


def test_the_longest_by_the_plan_comes_first(commands: Commands, house: Path) -> None:
    (house / "recipes" / "zz.yaml").write_text("backbone: eeve\nmethod: qlora\n", encoding="utf-8")
    assert call() == 0
    trained = [arguments[1] for module, arguments in commands.seen if module == "run.train"]
    assert [Path(file).stem for file in trained] == ["polar", "eeve", "zz", "qwen2"]


# What this machine cannot do


@pytest.fixture
def machine(house: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """One without a GPU, an empty cache and a hub that does not answer."""
    from huggingface_hub import constants

    stand_in = Commands(house)
    set_run_job(monkeypatch, stand_in)
    monkeypatch.setattr(reproduce.devices, "gpus", lambda: [])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(house / "hub"))
    monkeypatch.setattr(reproduce.ready.hub, "unreachable", lambda: "the hub is asleep")
    return stand_in


def small(house: Path) -> None:
    """A base model that any machine can train, for recipe eeve."""
    (house / "base").mkdir()
    (house / "recipes" / "eeve.yaml").write_text("backbone: eeve\nmodel_id: base\nmethod: lora\n", encoding="utf-8")


def test_without_a_gpu_large_models_are_refused_before_anything_is_made(machine: Commands) -> None:
    with pytest.raises(UserError, match=r"nothing can be run here\. eeve, polar, qwen2: there is no GPU .*--dry_run"):
        call()
    assert machine.seen == [] and not Path("resource/results").exists()


def test_what_does_not_fit_the_gpu_is_left_out(
    machine: Commands, house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(house)
    gpu = reproduce.devices.Gpu("NVIDIA RTX 2060", 6 * 2**30, 6 * 2**30)
    monkeypatch.setattr(reproduce.devices, "gpus", lambda: [gpu])
    assert call() == 1
    shown = capsys.readouterr().out
    assert machine.modules() == ["run.train", "run.vote", "run.vote"]
    assert 0 < shown.index("left out polar: it takes") < shown.index("done eeve")
    assert "failed polar: it takes" in shown and "the largest GPU here has 6" in shown
    assert not Path("resource/results/polar").exists()


def test_a_hub_that_does_not_answer_is_said_once(
    machine: Commands, house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = reproduce.devices.Gpu("NVIDIA H200", 141 * 2**30, 141 * 2**30)
    monkeypatch.setattr(reproduce.devices, "gpus", lambda: [gpu])
    reason = "its base model is not on this machine and the hub is asleep"
    with pytest.raises(UserError, match=rf"eeve, polar, qwen2: {reason}\. Nothing was fetched"):
        call()
    assert machine.seen == [] and not Path("resource/results").exists()
    small(house)
    assert call() == 1
    assert f"failed polar, qwen2: {reason}" in capsys.readouterr().out
    assert not Path("resource/results/polar").exists()
    # What is finished needs neither.
    machine.seen.clear()
    assert call("--only", "eeve") == 0
    assert machine.modules() == ["run.vote", "run.vote"]


def test_a_disk_without_room_for_all_is_told_before_the_first(
    machine: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = reproduce.devices.Gpu("NVIDIA H200", 141 * 2**30, 141 * 2**30)
    monkeypatch.setattr(reproduce.devices, "gpus", lambda: [gpu])
    monkeypatch.setattr(reproduce.ready.hub, "unreachable", lambda: "")
    usage = shutil.disk_usage(".")._replace(free=40 * 10**9)  # enough for one of them
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"3 run\(s\) and 65\.3 GB of downloads needs .* 40\.0 GB free.*--only NAME"):
        call()
    assert machine.seen == [] and not Path("resource/results").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGKILL", marks=pytest.mark.thorough)])
def test_a_termination_ends_the_runs_too(house: Path, name: str) -> None:
    """The real thing, interrupted: no child is left behind, and the message says how to go on, where there is time."""
    (house / "run").unlink()
    shutil.copytree(ROOT / "run", house / "run")
    (house / "run" / "train.py").write_text(
        "import os, sys, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n", encoding="utf-8"
    )
    text = (house / "run" / "reproduce.py").read_text(encoding="utf-8")
    imported = re.search(r"^IMPORTED = \(.*\)$", text, re.MULTILINE)
    assert imported, "what is loaded before the runs are forked; these need nothing of it"
    (house / "run" / "reproduce.py").write_text(text.replace(imported[0], 'IMPORTED = ("json",)'), encoding="utf-8")
    (house / "base").mkdir()  # nothing to fetch, and nobody knows that it is too large
    for file in (house / "recipes").iterdir():
        file.write_text("model_id: base\nmethod: lora\n", encoding="utf-8")
    command = [sys.executable, "-m", "run.reproduce", "--recipes", "recipes", "--data", "data"]
    parent = subprocess.Popen(command, cwd=house, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pid = house / "pid"
    deadline = time.monotonic() + 60
    while not (pid.is_file() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    parent.send_signal(getattr(signal, name))
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid.read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid.read_text()}").exists()
    _, error = parent.communicate(timeout=60)
    assert "Traceback" not in error
    assert name == "SIGKILL" or (parent.returncode == 130 and "goes on from here" in error)


def test_the_splits_have_labels_where_they_must(commands: Commands, house: Path) -> None:
    assert load_split("data", "test")[0].label is None
    make_split(house / "data", "dev", 6, labelled=False)
    with pytest.raises(ValueError, match="dev"):
        call()
    assert json.dumps(commands.seen) == "[]"


def test_the_log_of_the_vote_is_that_of_the_last_one(
    commands: Commands, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logged(command: Sequence[str], log: Path, *rest: Any) -> str:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{command[2]}\n")
        return commands(command, log, *rest)

    set_run_job(monkeypatch, logged)
    for _ in range(3):
        assert call() == 0
    log = house / "resource" / "results" / "vote-try" / "log.txt"
    assert log.read_text().splitlines() == ["run.vote"] * 2  # dev and test


def test_an_unknown_prompt_is_known_before_all_work(commands: Commands, house: Path) -> None:
    (house / "recipes" / "polar.yaml").write_text("backbone: polar\nprompt: koraen\n", encoding="utf-8")
    with pytest.raises(UserError, match="there is no prompt 'koraen'"):
        call()
    assert commands.seen == []


def test_no_name_is_cut_on_a_narrow_terminal(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call() == 0
    for width in (40, 60, 80):
        console = make_console(markup=True, width=width, file=io.StringIO())
        runs = [Path("resource/results") / name for name in ("eeve", "polar")]
        console.print(reproduce.table(runs, Path("resource/results/vote-try")))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "vote-try" in text and "hard" in text and "…" not in text and "0.833" in text


def test_the_task_is_handed_on(commands: Commands, house: Path) -> None:
    (house / "mine.yaml").write_text((ROOT / "resource" / "task.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert call("--only", "eeve", "--task", "mine.yaml") == 0
    assert [arguments[-2:] for _, arguments in commands.seen] == [["--task", "mine.yaml"]] * 3


def test_code_of_models_is_allowed_for_the_recipes_that_ask_alone(commands: Commands, house: Path) -> None:
    with (house / "recipes" / "polar.yaml").open("a", encoding="utf-8") as file:
        file.write("trust_remote_code: true\n")
    with pytest.raises(UserError, match=r"polar: a file asks to run Python code .*add --trust_remote_code"):
        call()
    assert commands.seen == []
    assert call("--trust_remote_code") == 0
    asked = [arguments[1] for _, arguments in commands.seen if "--trust_remote_code" in arguments]
    assert asked == ["recipes/polar.yaml"]


def test_a_task_whose_sizes_are_not_known_is_planned_for_its_data(
    commands: Commands, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "resource" / "task.yaml").read_text(encoding="utf-8")
    (house / "mine.yaml").write_text(text.split("official:")[0], encoding="utf-8")
    assert call("--dry_run", "--task", "mine.yaml") == 0
    assert "eeve" in capsys.readouterr().out
    shutil.rmtree(house / "data")
    with pytest.raises(UserError, match=r"data_train\.json: no such file"):
        call("--dry_run", "--task", "mine.yaml")


# Engines


def test_status_starts_nothing_and_needs_no_data(
    commands: Commands, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["run"] for one in found["jobs"]] == ["eeve", "polar", "qwen2"] and found["counts"]["waiting"] == 3
    assert call() == 0
    assert len(commands.seen) == 5
    capsys.readouterr()
    assert call("--status") == 0
    assert "3 runs: 3 done" in capsys.readouterr().out and len(commands.seen) == 5
    (house / "resource/results/polar/scores_test.jsonl").unlink()
    shutil.rmtree(house / "data")
    assert call("--status") == 0
    assert "data_train.json" in capsys.readouterr().out


def test_status_of_folds(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--only", "eeve", "--folds", "2", "--seeds", "2", "--status", "--json") == 0
    names = [one["run"] for one in json.loads(capsys.readouterr().out)["jobs"]]
    assert names == ["eeve-try-f1of2", "eeve-try-f2of2", "eeve-try-s2-f1of2", "eeve-try-s2-f2of2"]


def test_a_script_for_slurm_is_written_and_shown_and_nothing_is_started(
    commands: Commands, house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--engine", "slurm", "--sbatch", "time=24:00:00") == 0
    assert commands.seen == []
    shown = capsys.readouterr().out
    script = (house / "resource/results/jobs-try/1gpu.sbatch").read_text(encoding="utf-8")
    assert "#SBATCH --time=24:00:00\n" in script and "-m run.train --recipe recipes/polar.yaml" in script
    assert "#SBATCH --array=0-2" in shown and "--submit submits them" in shown
    assert call() == 0, "by hand, on this machine"
    commands.seen.clear()
    assert call("--engine", "slurm") == 0
    assert commands.modules() == ["run.vote"] * 2, "all is done, and votes"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--json"], "--json: allowed with --status"),
        (["--status", "--dry_run"], "--status and --dry_run: found both"),
        (["--submit"], "--submit: allowed with --engine slurm"),
        (["--sbatch", "time=1"], "--sbatch: allowed with --engine slurm"),
        (["--address", "h:1"], "--address: allowed with --engine ray"),
        (["--bench", "0"], "--bench: found 0, allowed: 1 or more"),
        (["--engine", "slurm", "--bench", "3"], "--bench: allowed with --engine local and ray"),
    ],
)
def test_flags_of_engines_that_do_not_go_together(commands: Commands, flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call(*flags)
    assert commands.seen == []


def test_an_engine_without_submitting_commands_says_so(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--submit: there is no sbatch on this machine"):
        call("--engine", "slurm", "--submit")


def test_what_the_local_engine_costs_is_printed(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--bench", "5"]) == 0
    shown = capsys.readouterr().out
    assert "local: 5 empty jobs in" in shown and "(0 failed)" in shown
    assert not (house / "resource/results/jobs-bench").exists()


def test_jobs_that_need_more_gpus_than_there_are_are_named_before_any_start(tmp_path: Path) -> None:
    from src.console.jobs import Job
    from src.engines import local

    wide = Job("wide", ("false",), tmp_path / "log.txt", 1.0, gpus=4)
    console = make_console(markup=True, file=io.StringIO())
    with pytest.raises(UserError, match=r"wide needs 4 GPUs, and this machine has 2\. Nothing was started"):
        local.run([replace(wide, name="small", gpus=1), wide], 2, 2, console, {}, ())
    assert not (tmp_path / "log.txt").exists()
