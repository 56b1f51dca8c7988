import json
import math
import os
import socket
import subprocess
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files.reading import read_json
from src.files.writing import write_json, write_jsonl, write_text, write_texts


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

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(UserError, match="second cannot be written: No space left"):
        write_texts({first: "new", second: "new"})
    assert first.read_text() == second.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first", "second"]


def test_files_of_one_set_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is removed first and written last: where it is there, all are of one call."""
    train, dev = tmp_path / "train", tmp_path / "dev"
    write_texts({train: "old", dev: "old"}, all_or_none=True)
    seen = []
    replaced = os.replace

    def look(one: Path, other: Path) -> None:
        replaced(one, other)
        seen.append((train.exists() and train.read_text(), dev.exists() and dev.read_text()))

    monkeypatch.setattr(os, "replace", look)
    write_texts({train: "new", dev: "new"}, all_or_none=True)
    assert seen == [(False, "new"), ("new", "new")]


def test_what_killed_processes_were_writing_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as done:
        pass
    host = socket.gethostname().replace(".", "-")
    gone, running, elsewhere = (
        tmp_path / f".scores.jsonl.{place}.{pid}.tmp"
        for place, pid in ((host, done.pid), (host, os.getpid()), ("other", done.pid))
    )
    for path in (gone, running, elsewhere):
        path.write_text("half")
    write_text(tmp_path / "record.json", "{}")
    assert sorted(tmp_path.iterdir()) == sorted([running, elsewhere, tmp_path / "record.json"])


def test_nobody_sees_a_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")
    seen, replaced = [], os.replace
    monkeypatch.setattr(os, "replace", lambda one, other: seen.append(path.read_text()) or replaced(one, other))
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


def test_a_path_that_is_not_utf_8_can_be_written_and_read_again(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"data": Path(os.fsdecode(b"/tmp/\xff")), "text": "\ud800"})
    assert read_json(tmp_path / "a.json") == {"data": "/tmp/\\udcff", "text": "\\ud800"}
