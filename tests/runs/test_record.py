import json
import math
import os
import platform
import subprocess
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files import writing
from src.files.writing import write_json, write_jsonl, write_text, write_texts
from src.runs import record as records
from src.runs.record import git_commit, predictions_path, read_record, record_path, scores_path, versions

# Writing


def test_text_is_written_as_it_is_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "글.txt"
    write_text(path, "한글\r\n둘\n")
    assert path.read_bytes() == "한글\r\n둘\n".encode()
    write_text(str(path), "다시")
    assert path.read_text("utf-8") == "다시"
    assert [entry.name for entry in path.parent.iterdir()] == ["글.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_texts({first: "old", second: "old"})

    synced = []

    def disk_full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", disk_full)
    with pytest.raises(UserError, match="second cannot be written: No space left"):
        write_texts({first: "new", second: "new"})
    assert first.read_text() == second.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first", "second"]


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "run"
    with writing.lock_folder(folder):
        with pytest.raises(UserError, match="run is being trained by another process"), writing.lock_folder(folder):
            pass
        assert folder.is_dir()
    assert not folder.exists(), "nothing came to be in it"
    with writing.lock_folder(folder):
        write_text(folder / "record.json", "{}")
    assert folder.is_dir()
    with pytest.raises(UserError, match=r"record\.json.* cannot be made"), writing.lock_folder(folder / "record.json"):
        pass


def test_nobody_sees_a_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")
    seen = []
    monkeypatch.setattr(records.os, "fsync", lambda descriptor: seen.append(path.read_text()))
    write_text(path, "new")
    assert seen == ["old"]
    assert path.read_text() == "new"


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_json_has_no_nan_and_paths_are_text(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"loss": [1.5, math.nan, -math.inf], "path": Path("a/b"), "이름": ("가", 1, None, True)})
    assert json.loads(path.read_text("utf-8"), parse_constant=pytest.fail) == {
        "loss": [1.5, None, None],
        "path": "a/b",
        "이름": ["가", 1, None, True],
    }
    assert "이름" in path.read_text("utf-8")
    assert path.read_text("utf-8").endswith("}\n")
    write_jsonl(path, [{"loss": math.nan}, {}])
    assert path.read_text("utf-8") == '{"loss": null}\n{}\n'
    with pytest.raises(TypeError):
        write_json(path, {"tensor": object()})


# The record


def test_paths_of_a_run() -> None:
    assert scores_path("runs/mini", "dev") == Path("runs/mini/scores_dev.jsonl")
    assert predictions_path("runs/mini", "test") == Path("runs/mini/predictions_test.json")
    assert record_path("runs/mini") == Path("runs/mini/record.json")


def test_a_record_is_read_back(tmp_path: Path) -> None:
    write_json(record_path(tmp_path), {"run": "mini", "seconds": 1.5})
    assert read_record(tmp_path) == {"run": "mini", "seconds": 1.5}


def test_a_run_without_record_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "mini-bllossom").mkdir()
    with pytest.raises(UserError, match=r"mini-bllossom is not finished: it has no record.json"):
        read_record(tmp_path / "mini-bllossom")
    with pytest.raises(UserError, match=r"no such run; runs there: mini-bllossom. Did you mean 'mini-bllossom'\?"):
        read_record(tmp_path / "mini-blossom")
    with pytest.raises(UserError, match=r"there are no runs there"):
        read_record(tmp_path / "nowhere" / "mini")


@pytest.mark.parametrize("text", ["", '{"run": ', "[]", "null"])
def test_a_damaged_record_is_not_a_record(tmp_path: Path, text: str) -> None:
    record_path(tmp_path).write_text(text)
    with pytest.raises(UserError, match=r"record.json is damaged"):
        read_record(tmp_path)


def test_versions_are_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PACKAGES", ("pytest", "no-such-package"))
    assert versions() == {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "pytest": pytest.__version__,
    }


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which src/runs/record.py seems to lie."""
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "records.py").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "src" / "runs" / "record.py"))
    return tmp_path


def test_the_commit_says_when_files_differ_from_it(repository: Path) -> None:
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert git_commit() == head
    (repository / "src" / "records.py").write_text("2")
    assert git_commit() == f"{head}-dirty"


def test_there_is_no_commit_without_a_repository_of_our_own(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = repository / "unpacked" / "src"
    inner.mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(inner / "runs" / "record.py"))
    assert git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"splits": []}', "splits is no object"),
        ('{"splits": {"dev": 1}}', "splits: dev is no object"),
        ('{"recipe": "polar"}', "recipe is no object"),
        ('{"splits": {"dev": {"accuracy": "high"}}}', "splits: dev: accuracy is 'high'"),
        ('{"splits_6orders": {"dev": {"correct": 9, "items": 4}}}', "splits_6orders: dev: 9 of 4 items are right"),
    ],
)
def test_a_record_of_another_shape_is_damaged(tmp_path: Path, text: str, words: str) -> None:
    record_path(tmp_path).write_text(text)
    with pytest.raises(UserError, match=f"record.json is damaged: {words}"):
        read_record(tmp_path)
