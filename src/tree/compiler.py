"""What compiling for a GPU needs on the machine, and the fallback where it fails: standard layers, and one line of
output.

While triton compiles, it builds small C libraries for Python. So a GPU alone is not enough: a C compiler, Python.h and
writable folders are needed, too. `missing` looks for them before any weights are loaded. `failure` tells compile errors
from all others. Once compiling has failed, nothing more is compiled in this process (`give_up`).
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

SPEEDUP = 1.6
"""About how many times faster compiled layers are than standard ones for the same tokens, on an H200."""
PROBE = "#include <stdlib.h>\n#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n"
WAIT = 60
"""Seconds that a compiler may take for the probe."""
COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
"""Packages whose errors come from compiling. Look here after an upgrade of torch."""
_reasons: list[str] = []


def obstacle(device: torch.device) -> str:
    """Why nothing is compiled for `device`: what the machine lacks, or what failed before; "" for a CPU, and when
    nothing is in the way.
    """
    if device.type == "cpu":
        return ""
    return _reasons[0] if _reasons else missing()


@functools.cache
def missing() -> str:
    """What compiling for the GPU lacks on this machine, and how to get it; "" when nothing is missing.

    Where the folders of compiled code are not writable, temporary ones are used, and a printed line says so.
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
    """From here on nothing is compiled in this process. Says so once. slower: about how many times slower that is."""
    if why not in _reasons:
        _reasons.append(why)
        print(
            f"nothing is compiled and no prefixes are shared: {why}. "
            f"It goes on with the standard layers, about {slower:.1f} times slower",
            flush=True,
        )
    stay_eager()


def stay_eager() -> None:
    """From here on everything that asks for compiling, such as an optimizer, runs uncompiled."""
    torch.compiler.set_stance("force_eager")


def gave_up() -> str:
    """Why compiling was given up in this process; "" where it was not."""
    return _reasons[0] if _reasons else ""


def failure(error: BaseException) -> str:
    """The compile error in a line; "" for any other error.

    Running out of memory and a broken GPU are not failures of compiling, even if the compiler met them.
    """
    chain = list(_causes(error))
    others = (torch.OutOfMemoryError, torch.AcceleratorError, UserError, MemoryError)
    if not isinstance(error, Exception) or any(isinstance(one, others) for one in chain):
        return ""
    if not any(_of_compilers(type(one).__module__) or _passed_compilers(one.__traceback__) for one in chain):
        return ""
    cause = chain[-1]  # the error that the compilers wrapped
    words = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no message")
    return f"compiling failed ({type(cause).__name__}: {words[:200]})"


def try_out(device: torch.device) -> str:
    """Compiles a tiny function for `device`: what failed, or ""."""
    try:
        torch.compile(lambda values: values * 2 + 1)(torch.zeros(8, device=device))
    except Exception as error:
        if not (why := failure(error)):
            raise
        return why
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from; the first one comes last."""
    found: list[int] = []
    one: BaseException | None = error
    while one is not None and id(one) not in found:
        found.append(id(one))
        yield one
        wrapped = getattr(one, "inner_exception", None)  # torch's own attribute for the cause
        one = one.__cause__ or wrapped or (None if one.__suppress_context__ else one.__context__)


def _of_compilers(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in COMPILERS)


def _passed_compilers(trace: TracebackType | None) -> bool:
    """Whether an error was raised in a compiler's own code, and did not just pass through a compiled layer."""
    passed = ("torch._dynamo.convert_frame", "torch._inductor", "triton")
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if any(name == one or name.startswith(f"{one}.") for one in passed):
            return True
        trace = trace.tb_next
    return False


def _writable_folders() -> Path:
    """The folder of torch's compiled code. Where it or triton's is not writable, a temporary one takes its place.
    OSError where that cannot be made either.
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
            f"compiled code cannot be kept in {' and '.join(refused.values())}, which may not be written to; "
            f"it lies in {temporary} until this command ends. Set {' and '.join(refused)} to folders that last",
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
    """Why a C library for Python cannot be built and loaded as triton does it; "" when it can."""
    # triton takes CC for a path or a name without arguments.
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
            f"what {found} builds in {folder} cannot be used ({error}; "
            "set TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR to folders on a disk that programs may be started from)"
        )
    return ""


def _message(said: bytes) -> str:
    """The compiler's message: its first line with an error, else its last."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), (lines or ["no message"])[-1])[:200]
