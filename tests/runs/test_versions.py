import os
import platform
import subprocess
from pathlib import Path

import pytest

from src.runs import versions as software
from src.runs.versions import git_commit, made_with, versions


def test_versions_are_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "PACKAGES", ("pytest", "no-such-package"))
    assert versions() == {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "pytest": pytest.__version__,
    }


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which src/runs/versions.py seems to lie."""
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "code.py").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(software, "__file__", str(tmp_path / "src" / "runs" / "versions.py"))
    return tmp_path


def test_the_commit_says_when_files_differ_from_it(repository: Path) -> None:
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert git_commit() == head
    (repository / "src" / "code.py").write_text("2")
    assert git_commit() == f"{head}-dirty"


def test_there_is_no_commit_without_a_repository_of_our_own(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = repository / "unpacked" / "src"
    inner.mkdir(parents=True)
    monkeypatch.setattr(software, "__file__", str(inner / "runs" / "versions.py"))
    assert git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_records_say_both() -> None:
    assert made_with() == {"versions": versions(), "commit": git_commit()}
