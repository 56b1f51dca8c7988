"""What compiling lacks is found as on a slim machine: the tools are hidden, the rest is real."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.console.cli import UserError
from src.tree import compiled, compiler

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_gcc = pytest.mark.skipif(
    not shutil.which("gcc") or not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")),
    reason="builds a small C library",
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """triton and a GPU for it are there, folders are fresh, and nothing was tried before."""
    monkeypatch.setattr(compiler, "has_triton_package", lambda: True)
    monkeypatch.setattr(compiler, "has_triton", lambda: True)
    monkeypatch.setattr(compiler, "_reasons", [])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.delenv("CC", raising=False)
    compiler.missing.cache_clear()
    with torch.compiler.set_stance("default"):
        yield
    compiler.missing.cache_clear()


@needs_gcc
def test_a_machine_that_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compiler.missing() == "" == compiler.obstacle(CUDA)
    assert compiled.rows_on_gpu(CUDA) and not compiled.rows_on_gpu(CPU)
    assert list((tmp_path / "inductor").iterdir()) == [] and capsys.readouterr().out == "", "nothing stays"


def test_triton_or_a_gpu_that_it_knows_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "has_triton", lambda: False)
    assert "too old" in compiler.missing()
    compiler.missing.cache_clear()
    monkeypatch.setattr(compiler, "has_triton_package", lambda: False)
    assert "pip install triton" in compiler.missing() and not compiled.rows_on_gpu(CUDA)


@pytest.mark.parametrize("name", [None, "no-such-cc", "gcc -m64"])
def test_no_c_compiler(name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if name:
        monkeypatch.setenv("CC", name)
    why = compiler.missing()
    assert "apt-get install gcc" in why and (f"CC is {name!r}, which is no program" in why if name else "no C compiler")
    assert not compiled.rows_on_gpu(CUDA) and compiler.obstacle(CUDA) == why and compiler.obstacle(CPU) == ""


@needs_gcc
def test_no_python_h(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert compiler.missing() == (
        f"Python.h is missing in {tmp_path}, and triton needs it (apt-get install {version}-dev)"
    )


def test_a_compiler_that_fails_is_named_with_its_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    include = tmp_path / "include"
    include.mkdir()
    (include / "Python.h").write_text("")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(include)})
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'stdlib.h: fatal error: no such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert f"{broken} fails (stdlib.h: fatal error: no such file; apt-get install gcc libc6-dev" in compiler.missing()
    compiler.missing.cache_clear()
    broken.write_text('#!/bin/sh\necho text > "$5"\n')  # as on a disk that no program may be started from
    assert f"what {broken} builds in" in compiler.missing()


@needs_gcc
@pytest.mark.parametrize("which", ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HOME"])
def test_folders_that_cannot_be_written_have_others_in_their_place(
    which: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").write_text("in the way, for root too")
    if which == "HOME":
        monkeypatch.delenv("TRITON_CACHE_DIR")
        monkeypatch.delenv("TRITON_HOME", raising=False)
    monkeypatch.setenv(which, str(tmp_path / "file"))
    assert compiler.missing() == compiler.missing() == ""
    said = capsys.readouterr().out
    assert said.count("compiled code cannot be kept in") == 1 and said.count(str(tmp_path / "file")) == 1
    name = "TRITON_CACHE_DIR" if which == "HOME" else which
    assert Path(os.environ[name]).parent.name.startswith("compiled-") and f"Set {name} to" in said


def test_nowhere_to_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path / "none"))
    assert "no folder for compiled code can be written to (set TORCHINDUCTOR_CACHE_DIR" in compiler.missing()


def test_giving_up_is_said_once_and_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        compiler.give_up("gcc is gone", 5.44)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "gcc is gone. It goes on with the usual layers, about 5.4 times slower" in said
    assert compiler.gave_up() == compiler.obstacle(CUDA) == "gcc is gone" and not compiled.rows_on_gpu(CUDA)

    def refuse(*args: object) -> None:
        raise AssertionError("asked to compile")

    assert torch.compile(lambda one: one + 1, backend=refuse)(torch.zeros(1)) == 1


def caught(backend: object) -> Exception:
    torch._dynamo.reset()
    with pytest.raises(Exception) as found:  # of whatever kind
        torch.compile(lambda one: one + 1, backend=backend)(torch.zeros(3))
    torch._dynamo.reset()
    return found.value


def failing(error: BaseException) -> object:
    def backend(*args: object) -> None:
        raise error

    return backend


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore"),
        OSError(30, "Read-only file system"),
        AssertionError("libcuda.so cannot found!"),
    ],
)
def test_what_fails_while_compiling_is_told_from_the_rest(error: Exception) -> None:
    why = compiler.failure(caught(failing(error)))
    assert why == f"compiling failed ({type(error).__name__}: {str(error).splitlines()[0]})"


def test_what_is_no_failure_of_compiling() -> None:
    assert compiler.failure(caught(failing(torch.OutOfMemoryError("CUDA out of memory")))) == ""
    assert compiler.failure(caught(failing(torch.AcceleratorError("an illegal memory access")))) == ""
    assert compiler.failure(RuntimeError("shapes do not fit")) == compiler.failure(UserError("yours")) == ""
    assert compiler.failure(KeyboardInterrupt()) == ""


def test_trying_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda body: whole(body, backend="eager"))
    assert compiler.try_out(CPU) == ""
    monkeypatch.setattr(torch, "compile", lambda body: whole(body, backend=failing(OSError("no g++"))))
    assert compiler.try_out(CPU) == "compiling failed (OSError: no g++)"
    torch._dynamo.reset()
