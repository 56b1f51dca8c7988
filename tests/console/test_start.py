"""Real processes: where a command is started from, and by which Python, is only seen from outside."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.console import start

ROOT = Path(__file__).parents[2]
BY_DEFAULT = ("train", "vote", "orpo_data")
COMMANDS = sorted([*ROOT.glob("run/*.py"), *ROOT.glob("orpo/*.py")])


def call(*command: str | Path, cwd: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *map(str, command)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the code in a folder of its own, without an environment."""
    for name in ("run", "src"):
        shutil.copytree(ROOT / name, tmp_path / "house" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "house" / "requirements.txt").write_text("rich\n")
    return tmp_path / "house"


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A Python of the right version with nothing installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    return str(tmp_path / "bare" / "bin" / "python")


# From any folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in BY_DEFAULT else [pytest.mark.thorough])
        for path in COMMANDS
    ],
)
def test_every_command_can_be_started_as_a_file(command: Path, tmp_path: Path) -> None:
    done = call(command, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "usage: python -m " in done.stdout


def test_it_starts_in_its_own_folder_and_by_a_relative_path() -> None:
    for cwd, path in ((ROOT / "run", "vote.py"), (ROOT, "run/vote.py"), (ROOT / "tests", "../run/vote.py")):
        done = call(path, "--help", cwd=cwd)
        assert (done.returncode, done.stderr) == (0, ""), path


def test_the_folder_of_the_commands_hides_no_package_of_others(house: Path) -> None:
    (house / "run" / "probe.py").write_text(
        (house / "run" / "vote.py")
        .read_text(encoding="utf-8")
        .replace("def make_parser", "import test.support\n\ndef make_parser")
    )
    done = call("probe.py", "--help", cwd=house / "run")
    assert done.returncode == 0, done.stderr  # the test of the standard library, not run/test.py


def test_paths_of_the_repository_and_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start.ours("resource/data") == Path("resource/data")
    assert start.find("resource/backbones.yaml") == "resource/backbones.yaml"
    monkeypatch.chdir(tmp_path)
    assert start.ours("resource/data") == ROOT / "resource" / "data"
    assert start.find("resource/backbones.yaml") == str(ROOT / "resource" / "backbones.yaml")
    assert start.find("Qwen/Qwen2-7B") == "Qwen/Qwen2-7B" and start.find("./nowhere") == "./nowhere"
    (tmp_path / "resource").mkdir()
    (tmp_path / "resource" / "backbones.yaml").write_text("")
    assert start.find("resource/backbones.yaml") == "resource/backbones.yaml"  # the user's own goes first


def test_no_path_of_the_repository_depends_on_the_working_directory() -> None:
    for file in [*COMMANDS, *ROOT.glob("src/*.py")]:
        found = re.findall(r"(?<![\w.])Path\(\"(?:resource|eda)\b[^)]*\)", file.read_text(encoding="utf-8"))
        assert not found, f"{file.name}: {found}; use src.console.start.ours"


# The wrong Python, or environment


def test_a_missing_package_is_one_line_that_says_what_to_type(house: Path, bare: str) -> None:
    for command in (("-m", "run.vote"), ("run/train.py", "--help")):
        done = call(*command, cwd=house, python=bare)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("error: the package rich is not installed for ")
        assert "Install what is missing: python -m pip install -r requirements.txt" in done.stderr
    (house / ".venv" / "bin").mkdir(parents=True)
    (house / ".venv" / "bin" / "activate").touch()
    assert "Activate the environment: . .venv/bin/activate\n" in call("-m", "run.vote", cwd=house, python=bare).stderr
    elsewhere = call(house / "run" / "vote.py", cwd=house.parent, python=bare)
    assert f"Activate the environment: . {house}/.venv/bin/activate\n" in elsewhere.stderr


def test_a_package_that_is_missed_later_is_one_line_too(house: Path) -> None:
    vote = house / "run" / "vote.py"
    text = vote.read_text(encoding="utf-8")
    vote.write_text(text.replace("def make_parser", "import torch_of_yore.nn\n\ndef make_parser"), encoding="utf-8")
    done = call("-m", "run.vote", cwd=house)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: the package torch_of_yore is not installed for ")
    # What is missing of ours is a bug.
    vote.write_text(text.replace("def make_parser", "import src.nowhere\n\ndef make_parser"), encoding="utf-8")
    done = call("-m", "run.vote", cwd=house)
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 10, 1), (3, 13, 0)])
def test_another_python_is_refused_in_one_line(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(ROOT / "run" / "vote.py"), raising=False)
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as stopped:
        start.check()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert f"Python 3.11 or 3.12 is needed; {sys.executable} is {'.'.join(map(str, version))}. " in said


def test_old_pythons_can_read_what_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in [*COMMANDS, ROOT / "src" / "console" / "start.py", ROOT / "src" / "__init__.py"]:
        ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))
        if file.parent.name in start.COMMANDS:
            text = file.read_text(encoding="utf-8")
            first = re.search(r"^from (src\S*) import", text, re.MULTILINE)
            assert first and "sys.path.insert(0" in text[: first.start()], file


def test_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    before = sys.excepthook, list(sys.path)
    start.check()
    assert (sys.excepthook, list(sys.path)) == before
