import json
import math
import os
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files.reading import read_json
from src.files.writing import lock_folder, write_json, write_jsonl, write_text, write_texts


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


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "run"
    with lock_folder(folder):
        with pytest.raises(UserError, match="run is being trained by another process"), lock_folder(folder):
            pass
        assert folder.is_dir()
    assert not folder.exists(), "nothing came to be in it"
    with lock_folder(folder):
        write_text(folder / "record.json", "{}")
    assert folder.is_dir()
    with pytest.raises(UserError, match=r"record\.json.* cannot be made"), lock_folder(folder / "record.json"):
        pass


def test_nobody_sees_a_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(path.read_text()))
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
