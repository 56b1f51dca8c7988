import errno
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from src.console.cli import INTERRUPTED, Parser, UserError, announced, nearest, new_file, new_folder, run_main


def test_nearest_names_a_close_word_only() -> None:
    assert nearest("epcoh", ["epoch", "lr"]) == " Did you mean 'epoch'?"
    assert nearest("zzz", ["epoch", "lr"]) == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--epcoh", "3"], "'--epcoh'. Did you mean '--epoch'?"), (["--epo", "3"], "'--epo'."), (["stray"], "'stray'")],
)
def test_unknown_arguments_end_with_2_and_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser("doc", "run.thing")
    parser.add_argument("--epoch", type=int)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_what_cannot_be_written_is_known_before_all_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser("doc", "run.thing")
    parser.add_argument("--out", type=new_folder)
    parser.add_argument("--json", type=new_file)
    found = parser.parse_args(["--out", str(tmp_path / "a" / "b"), "--json", "x.json"])
    assert (found.out, found.json) == (tmp_path / "a" / "b", Path("x.json")) and not found.out.parent.exists()
    (tmp_path / "file").write_text("")
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != locked)  # root may write anywhere
    for flag, path, said in (
        ("--out", tmp_path / "file", "file is a file, where a folder is needed"),
        ("--out", tmp_path / "file" / "under", "file is a file, where a folder is needed"),
        ("--json", tmp_path / "file" / "x.json", "file is a file, where a folder is needed"),
        ("--json", tmp_path, "is a folder, where a file is needed"),
        ("--out", locked / "new", "locked may not be written to"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([flag, str(path)])
        message = capsys.readouterr().err
        assert f"argument {flag}: " in message and said in message and message.count("\n") == 1


def test_files_may_stand_on_both_sides_of_a_flag() -> None:
    parser = Parser("doc", "run.thing")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--split")
    assert parser.parse_args(["a", "--split", "dev", "b"]).files == ["a", "b"]


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def mistake() -> None:
        raise UserError("what was wrong")

    def interrupted() -> None:
        raise KeyboardInterrupt

    def ours() -> None:
        raise ValueError("a bug keeps its traceback")

    assert run_main(lambda: None) == 0
    assert run_main(lambda: 1) == 1
    assert run_main(mistake) == 2
    assert capsys.readouterr().err == "error: what was wrong\n"
    assert run_main(interrupted) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    assert run_main(interrupted, resumes=True) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"
    with pytest.raises(ValueError, match="traceback"):
        run_main(ours)


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def crowded() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore words")

    def ours() -> None:
        raise RuntimeError("a bug keeps its traceback")

    assert run_main(crowded) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: the GPU's memory") and "Tried to allocate 2 GiB.)" in said
    with pytest.raises(RuntimeError, match="traceback"):
        run_main(ours)


def test_a_name_that_no_disk_takes_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(lambda: Path("a" * 5000).is_dir() and None) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: this name is too long") and "5000 characters" in said and len(said) < 200
    with pytest.raises(FileNotFoundError):
        run_main(lambda: Path("no such file").read_text() and None)


def test_files_to_read_are_found_in_the_repository_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser("doc", "run.thing")
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--recipes", type=Path, nargs="+")
    parser.add_argument("--out", type=new_folder)
    words = ["--recipe", "resource/backbones.yaml", "--recipes", "resource/recipes", "mine", "--out", "resource/out"]
    here = parser.parse_args(words)
    assert (here.recipe, here.recipes) == (Path("resource/backbones.yaml"), [Path("resource/recipes"), Path("mine")])
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    found = parser.parse_args(words)
    assert (found.recipe, found.recipes) == (
        root / "resource/backbones.yaml",
        [root / "resource/recipes", Path("mine")],
    )
    assert found.out == Path("resource/out")  # what is written is written where the user is


def test_flags_of_other_commands_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("doc", "run.thing")
    parser.elsewhere = {"--lr": " It is a setting of training: python -m run.train."}
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--lr=3"])
    assert "unknown argument '--lr'. It is a setting of training: python -m run.train." in capsys.readouterr().err


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_what_takes_long_is_on_the_screen_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, seconds, shown in ((True, 0.0, True), (True, 60.0, False), (False, 0.0, False)):
        screen = Screen(terminal)
        monkeypatch.setattr("sys.stderr", screen)
        with announced("loading torch", seconds):
            deadline = time.monotonic() + 5
            while shown and not screen.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
        assert screen.getvalue() == ("loading torch …\r\033[K" if shown else "")


def test_an_error_of_the_disk_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "file"))

    assert run_main(full, resumes=True) == 2
    told = f"error: {tmp_path}/file: No space left on device. Mend that (room, rights, the disk itself) and start"
    assert capsys.readouterr().err == f"{told} the same command again: it goes on from here.\n"


def test_an_output_on_a_full_disk_is_one_line() -> None:
    code = "import sys\nfrom src.console.cli import run_main\nsys.exit(run_main(lambda: print('x' * 10**6)))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "No space left on device" in done.stderr and done.stderr.count("\n") == 1
