"""One process in a folder, and what the second one is told."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files.locks import at_work, lock_folder
from src.files.paths import LOCK
from src.files.writing import write_text


def test_the_second_one_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "run"
    with lock_folder(folder):
        told = rf"run is in use by process {os.getpid()} on \S+, since .* \(.+\)\. Wait"
        with pytest.raises(UserError, match=told), lock_folder(folder):
            pass
        assert folder.is_dir() and at_work(folder).startswith(f"is in use by process {os.getpid()} on ")
        # Before it has written who it is, the machine tells.
        (folder / LOCK).write_text("")
        assert at_work(folder).startswith(f"is in use by process {os.getpid()} on ")
    assert at_work(folder) == "" and not folder.exists(), "nothing came to be in it"
    with lock_folder(folder):
        write_text(folder / "record.json", "{}")
    assert [path.name for path in folder.iterdir()] == ["record.json"]
    with (
        pytest.raises(UserError, match=r"record\.json cannot be made or written to"),
        lock_folder(folder / "record.json"),
    ):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom src.files.locks import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    held = json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))
    assert held["pid"] != os.getpid()
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_folder_that_was_moved_away_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with lock_folder(folder) as held:
        held.refuse_gone()
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="run was moved or deleted while this command worked in it"):
            held.refuse_gone()
        folder.mkdir()
        with pytest.raises(UserError, match=re.escape("so it is not finished")):
            held.refuse_gone()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "mine.txt"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(target)
    with pytest.raises(UserError, match="cannot be made or written to"), lock_folder(tmp_path / "run"):
        pass
    assert target.read_text() == "mine"
