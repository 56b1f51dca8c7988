"""The lists of packages: requirements.lock is what requirements.txt asks for, and run/lock.bash says what it found."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from src.plan import speeds

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYTHONS = ({"python_version": "3.11", "python_full_version": "3.11.7"}, {"python_version": "3.12"})
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}


def locked() -> list[tuple[Requirement, list[str]]]:
    """Each entry, and its hashes."""
    whole = re.sub(r"^ *#.*\n", "", LOCK, flags=re.MULTILINE).replace("\\\n", " ")
    entries = [line.split("--hash=") for line in whole.splitlines() if line.strip() and not line.startswith("--")]
    return [(Requirement(first), [one.strip() for one in rest]) for first, *rest in entries]


def versions(environment: dict[str, str]) -> dict[str, str]:
    """The versions that are installed in an environment, by name."""
    there = [one for one, _ in locked() if one.marker is None or one.marker.evaluate(environment)]
    found = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in there}
    assert len(found) == len(there), "a package is locked twice"
    return found


def on(python: dict[str, str], machine: str) -> dict[str, str]:
    return {"python_full_version": f"{python['python_version']}.0", **LINUX, **python, "platform_machine": machine}


@pytest.mark.parametrize("python", PYTHONS, ids=["3.11", "3.12"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_lock_has_every_pin(python: dict[str, str], machine: str) -> None:
    wanted, found = pins("requirements.txt"), versions(on(python, machine))
    assert {name: found.get(canonicalize_name(name)) for name in wanted} == wanted, "run bash run/lock.bash"


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_list_for_gpus_differs_in_torch_alone() -> None:
    there, usual = pins("requirements-gpu.txt"), pins("requirements.txt")
    assert list(there) == list(usual)
    assert [name for name in usual if there[name] != usual[name]] == ["torch"]


def test_the_list_for_gpus_has_the_versions_that_were_measured() -> None:
    there = pins("requirements-gpu.txt")
    for step in speeds.measured():
        # torch's own index adds its build of CUDA, as in 2.11.0+cu130.
        found = {name: version.split("+")[0] for name, version in step.versions.items()}
        assert found == {name: there[name] for name in speeds.VERSIONS}, step.row


def test_every_entry_is_one_version_with_its_hashes() -> None:
    entries = locked()
    assert len(entries) > 100
    for one, hashes in entries:
        assert re.fullmatch(r"==[\w.]+", str(one.specifier)) and one.url is None, one
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", found) for found in hashes), one
        assert len(set(hashes)) == len(hashes), one


def test_the_lock_names_no_place() -> None:
    options = [line for line in LOCK.splitlines() if line.startswith("-")]
    assert options == ["--only-binary :all:"], "what is built runs code that no hash holds"
    assert not re.search(r"://|@|(?<![\w.])/\w|~/", LOCK)


def test_the_lock_has_what_its_packages_need() -> None:
    """As far as the very versions are installed here."""
    found, looked_at = versions({}), 0
    for name, version in found.items():
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed.version != version:
            continue
        looked_at += 1
        for need in map(Requirement, installed.requires or ()):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                there = found.get(canonicalize_name(need.name))
                assert there and need.specifier.contains(there, prereleases=True), f"{name} needs {need}: {there}"
    assert looked_at > 50


FAKE_PYTHON = """#!/usr/bin/env bash
# As python -m venv: an environment whose programs say what they are told to.
mkdir -p "$3/bin"
cat >"$3/bin/pip" <<'E'
#!/usr/bin/env bash
E
cat >"$3/bin/uv" <<'E'
#!/usr/bin/env bash
while [ "$1" != --output-file ]; do shift; done
echo "made==1 --hash=sha256:0" >>"$2"
E
cat >"$3/bin/pip-audit" <<'E'
#!/usr/bin/env bash
[[ " $* " == *" --strict "* ]] || exit 0
service="${2^^}"
case "${!service}" in
none) ;;
silent) echo "Error: cannot reach $2" >&2; exit 1 ;;
*) echo "${!service}"; exit 1 ;;
esac
E
chmod +x "$3"/bin/*
"""
NONE = "vulnerabilities: none known but those named in run/lock.bash ({})"


def lock(folder: Path, *words: str, pypi: str = "none", osv: str = "none") -> subprocess.CompletedProcess[str]:
    (folder / "run").mkdir(exist_ok=True)
    for name in ("run/lock.bash", "run/environment.bash"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "python").write_text(FAKE_PYTHON, encoding="utf-8")
    (folder / "python").chmod(0o755)
    variables = {**os.environ, "PYTHON": str(folder / "python"), "TMPDIR": str(folder), "PYPI": pypi, "OSV": osv}
    command = ["bash", str(folder / "run/lock.bash"), *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_a_lock_is_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("kept==1 --hash=sha256:0\n")
    done = lock(tmp_path)
    said = ["requirements.lock: 2 packages, 2 files", NONE.format("pypi")]
    assert (done.returncode, done.stderr, done.stdout.splitlines()) == (0, "", said)
    lines = (tmp_path / "requirements.lock").read_text().splitlines()
    assert lines[0].startswith("# ") and lines[-2:] == ["kept==1 --hash=sha256:0", "made==1 --hash=sha256:0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["python", "requirements.lock", "run"]


def test_a_vulnerability_ends_it_with_1(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("kept==1\n")
    done = lock(tmp_path, "--audit", pypi="made 1 CVE-1 2")
    assert done.returncode == 1 and done.stdout.splitlines()[1:] == ["made 1 CVE-1 2"]
    assert (tmp_path / "requirements.lock").read_text() == "kept==1\n", "asking alone changes nothing"


def test_another_service_is_asked_and_silence_is_said(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("kept==1\n")
    done = lock(tmp_path, "--audit", pypi="silent")
    assert (done.returncode, done.stdout) == (0, NONE.format("osv") + "\n")
    done = lock(tmp_path, "--audit", pypi="silent", osv="silent")
    assert done.returncode == 0 and done.stdout == (
        "vulnerabilities: not looked up, for no service answered: "
        "pypi: Error: cannot reach pypi; osv: Error: cannot reach osv\n"
    )


@pytest.mark.parametrize("words", [("--all",), ("--audit", "--upgrade")])
def test_what_it_does_not_know_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    done = lock(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "") and f"found: {' '.join(words)}. See" in done.stderr
