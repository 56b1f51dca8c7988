"""What compiling for a GPU needs of a machine, and what is done where it fails: the usual layers, and one line.

triton builds small C libraries for Python while it compiles, so a GPU alone does not suffice: it takes a C compiler,
Python.h, and folders that may be written to. `missing` looks for them before any weights are loaded; what else fails,
`failure` tells from other errors. Once compiling has failed, nothing more is compiled in this process (`give_up`).
"""

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch.utils._triton import has_triton, has_triton_package

from src.console.cli import UserError

QUICKER = 1.6
"""About how many times quicker compiled layers are than the usual ones at the same tokens, on an H200."""
PROBE = "#include <stdlib.h>\n#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n"
WAIT = 60
"""Seconds that a compiler may take for the probe."""
COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
"""Packages whose errors are of compiling. Look here after an upgrade of torch."""
_reasons: list[str] = []


def obstacle(device: torch.device) -> str:
    """Why nothing is compiled for `device` on this machine or any more in this process; "" when it is, or is a CPU."""
    if device.type == "cpu":
        return ""
    return _reasons[0] if _reasons else missing()


@functools.cache
def missing() -> str:
    """What compiling for the GPU lacks on this machine, with what to do about it; "" when nothing.

    Where the folders that compiled code is kept in cannot be written to, temporary ones are taken, and it is said.
    """
    if not has_triton_package():
        return "triton, which compiles for the GPU, is missing (pip install triton)"
    if not has_triton():
        return "triton does not compile for this GPU, which is too old"
    try:
        folder = _writable_folders()
    except OSError as error:
        return f"no folder for compiled code can be written to (set TORCHINDUCTOR_CACHE_DIR to one; {error})"
    return _c_compiler(folder)


def give_up(why: str, slower: float) -> None:
    """From here on nothing is compiled in this process, which is said once. slower: about how many times."""
    if why not in _reasons:
        _reasons.append(why)
        print(
            f"nothing is compiled and no prefixes are shared: {why}. It goes on with the usual layers, "
            f"about {slower:.1f} times slower",
            flush=True,
        )
    stay_eager()


def stay_eager() -> None:
    """What asks for compiling, an optimizer for one, runs uncompiled from here on."""
    torch.compiler.set_stance("force_eager")


def gave_up() -> str:
    """Why compiling was given up in this process; "" where it was not."""
    return _reasons[0] if _reasons else ""


def failure(error: BaseException) -> str:
    """What failed while compiling, in a line; "" for an error of anything else.

    Memory that does not suffice and a GPU in disorder are no failures of compiling, whoever asked for the memory.
    """
    chain = list(_causes(error))
    others = (torch.OutOfMemoryError, torch.AcceleratorError, UserError, MemoryError)
    if not isinstance(error, Exception) or any(isinstance(one, others) for one in chain):
        return ""
    if not any(_of_compilers(type(one).__module__) or _passed_compilers(one.__traceback__) for one in chain):
        return ""
    cause = chain[-1]  # what the compilers wrapped
    words = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no message")
    return f"compiling failed ({type(cause).__name__}: {words[:200]})"


def try_out(device: torch.device) -> str:
    """Compiles next to nothing for `device`: what failed, or ""."""
    try:
        torch.compile(lambda values: values * 2 + 1)(torch.zeros(8, device=device))
    except Exception as error:
        if not (why := failure(error)):
            raise
        return why
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from, the first one last."""
    found: list[int] = []
    one: BaseException | None = error
    while one is not None and id(one) not in found:
        found.append(id(one))
        yield one
        wrapped = getattr(one, "inner_exception", None)  # torch's own way
        one = one.__cause__ or wrapped or (None if one.__suppress_context__ else one.__context__)


def _of_compilers(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in COMPILERS)


def _passed_compilers(trace: TracebackType | None) -> bool:
    """Whether an error came up within a compiler's own code, and not only through a layer that is compiled."""
    passed = ("torch._dynamo.convert_frame", "torch._inductor", "triton")
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if any(name == one or name.startswith(f"{one}.") for one in passed):
            return True
        trace = trace.tb_next
    return False


def _writable_folders() -> Path:
    """The folder of torch's compiled code. Where it or triton's cannot be written to, a temporary one takes its place;
    OSError where there is none.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    wanted = {
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir(),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR")
        or os.path.join(os.environ.get("TRITON_HOME") or os.path.expanduser("~"), ".triton", "cache"),
    }
    refused = {name: folder for name, folder in wanted.items() if not _may_write(folder)}
    if refused:
        temporary = tempfile.mkdtemp(prefix="compiled-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        for name in refused:
            os.environ[name] = os.path.join(temporary, name.partition("_")[0].lower())
        print(
            f"compiled code cannot be kept in {' and '.join(refused.values())}, which may not be written to; it lies "
            f"in {temporary} until this command ends. Set {' and '.join(refused)} to folders that last",
            flush=True,
        )
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or wanted["TORCHINDUCTOR_CACHE_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _may_write(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"compiled")
    except OSError:
        return False
    return True


def _c_compiler(folder: Path) -> str:
    """What keeps a C library for Python from being built as triton does it, and loaded; "" when nothing does."""
    # triton takes CC as it is: a path or a name, no arguments.
    name = os.environ.get("CC")
    found = shutil.which(name) if name else shutil.which("gcc") or shutil.which("clang")
    if found is None:
        words = f"CC is {name!r}, which is no program here" if name else "there is no C compiler (gcc or clang)"
        return f"{words}, and triton needs one (apt-get install gcc libc6-dev, or conda install gcc; or set CC to one)"
    headers = sysconfig.get_paths()["include"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not os.path.isfile(os.path.join(headers, "Python.h")):
        return f"Python.h is missing in {headers}, and triton needs it (apt-get install {version}-dev)"
    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            source, library = os.path.join(place, "probe.c"), os.path.join(place, "probe.so")
            Path(source).write_text(PROBE, encoding="ascii")
            command: list[str] = [found, source, "-shared", "-fPIC", "-o", library, f"-I{headers}"]
            built = subprocess.run(command, capture_output=True, timeout=WAIT, check=False)
            if built.returncode != 0:
                said = _message(built.stderr)
                return f"the C compiler {found} fails ({said}; apt-get install gcc libc6-dev {version}-dev)"
            ctypes.CDLL(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (
            f"what {found} builds in {folder} cannot be used ({error}; set TORCHINDUCTOR_CACHE_DIR and "
            "TRITON_CACHE_DIR to folders on a disk that programs may be started from)"
        )
    return ""


def _message(said: bytes) -> str:
    """The compiler's message: its first line with an error, else its last."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), (lines or ["no message"])[-1])[:200]
