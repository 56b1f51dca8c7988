"""Shared by all commands: a parser that names the nearest flag, and one way to report users' mistakes."""

import argparse
import contextlib
import difflib
import errno
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from src.console import environment, launch, lifeline
from src.console.children import follow_parent
from src.console.other_names import hint
from src.console.start import find
from src.console.terminal import NO_READER, Unread, drop_unread, flush, name_problem, on_any_terminal

INTERRUPTED = 130
"""Exit code after Ctrl-C, the same as a shell's."""


LONGEST_WORD, MOST_WORDS = 100, 1_000
"""Comparing longer words, or more of them, would take seconds."""


OF_THE_SYSTEM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ELOOP),
)
"""Errors of disks, rights and limits, which are told without a traceback wherever they happen."""


class UserError(ValueError):
    """The user's mistake. The message says what is wrong, what was found, what is allowed and what to do. Users see
    nothing else.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the known word closest to `word`, or an empty string if none is close."""
    if len(word) > LONGEST_WORD:
        return ""
    known = [one for one in itertools.islice(known, MOST_WORDS) if len(one) <= LONGEST_WORD]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


class Parser(argparse.ArgumentParser):
    """`argparse` that shows the module's docstring as written, takes no abbreviations, and names the nearest known
    flag.
    """

    def __init__(self, doc: str | None, prog: str) -> None:
        super().__init__(
            prog=f"python -m {prog}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.elsewhere: dict[str, str] = {}
        """Flag that only other commands have → a sentence about it."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse's own overloads
        known, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            word = next((one for one in unknown if one.startswith("-")), unknown[0]).split("=")[0]
            self.error(f"unknown argument {word!r}.{self._advice(word)} See --help.")
        return self._found(known)

    def _advice(self, word: str) -> str:
        known = self._option_string_actions
        return self.elsewhere.get(word) or hint(word, known) or nearest(word, known)

    def _found(self, known: argparse.Namespace) -> argparse.Namespace:
        """Replaces paths to read that do not exist in the working directory, but do in the repository."""
        for action in self._actions:
            value = getattr(known, action.dest, None)
            if action.type is Path and isinstance(value, Path):
                setattr(known, action.dest, Path(find(str(value))))
            elif action.type is Path and isinstance(value, list):
                setattr(known, action.dest, [Path(find(str(one))) for one in value])
        return known

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


@contextlib.contextmanager
def announced(words: str, after_seconds: float = 0.7) -> Iterator[None]:
    """Within the block, `words` appear on a terminal if it takes long, and vanish at the end. Logs do not get them."""
    shown = threading.Event()

    def show() -> None:
        shown.set()
        print(f"{words} …", end="", file=sys.stderr, flush=True)

    timer = threading.Timer(after_seconds, show)
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if shown.is_set():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def new_folder(text: str) -> Path:
    """argparse type: a writable folder, checked before any work."""
    path = Path(text)
    if problem := name_problem(text):
        raise argparse.ArgumentTypeError(f"{problem}; give another path")
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file, where a folder is needed; give another path")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{there} may not be written to; give another path")
    return path


def check_place(parser: argparse.ArgumentParser, flag: str, path: Path) -> None:
    """`parser.error` where a file that a command writes by default cannot be written."""
    try:
        new_file(str(path))
    except argparse.ArgumentTypeError as error:
        parser.error(f"{flag}: {error}")


def new_file(text: str) -> Path:
    """argparse type: a writable file, checked before any work."""
    path = Path(text)
    if problem := name_problem(text):
        raise argparse.ArgumentTypeError(f"{problem}; give another path")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, where a file is needed; give another path")
    new_folder(str(path.parent))
    return path


def run_main(main: Callable[[], int | None], resumes: bool = False, ranks: bool = False) -> int:
    """Exit code of a command: 0, or 2 after one line on stderr if the user made a mistake, 130 after Ctrl-C, or 141 if
    the output's reader is gone.

    Variables that could change a result are first removed from the environment. Output works on any terminal.

    resumes  whether the same command continues where it was interrupted
    ranks    whether several processes can share its work (torchrun); else it refuses to be one of them
    """
    follow_parent()
    with on_any_terminal():
        try:
            try:
                return _started(main, resumes, ranks)
            finally:
                flush()
        except (Unread, BrokenPipeError):
            drop_unread()
            return NO_READER
        except OSError as error:
            if error.errno not in OF_THE_SYSTEM:
                raise
            drop_unread()  # the disk that the output goes to is full
            with contextlib.suppress(OSError):
                os.write(2, f"error: the output cannot be written: {error.strerror}. Make room.\n".encode())
            return 2


def _started(main: Callable[[], int | None], resumes: bool, ranks: bool) -> int:
    try:
        here = launch.take()
        if here.several and not ranks:
            raise ValueError(
                f"started as one of {here.world} processes; this command takes one. "
                "Several share the work of run.train, run.train_base, orpo.orpo_train and run.test"
            )
    except ValueError as error:
        print(f"error: {error}.", file=sys.stderr)
        return 2
    if (names := environment.clear()) and here.rank == 0:
        print(environment.ignored(names), file=sys.stderr)
    if (line := environment.drop_lost_cache()) and here.rank == 0:
        print(line, file=sys.stderr)
    if here.several:
        return lifeline.together(here, functools.partial(_exit_code, main, resumes))
    return _exit_code(main, resumes, lambda text: print(text, file=sys.stderr))


def _exit_code(main: Callable[[], int | None], resumes: bool, tell: Callable[[str], None]) -> int:
    """As `run_main`. tell: shows the user a message."""
    try:
        return main() or 0
    except UserError as error:
        tell(f"error: {error}")
        return 2
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, *OF_THE_SYSTEM):
            raise
        name = str(error.filename)
        if error.errno == errno.ENAMETOOLONG:
            told = f"this name is too long for a file, a folder or a model: {name[:60]}…, {len(name)} characters"
        else:
            where = f"{name}: " if error.filename else ""
            again = "start the same command again" + (": it goes on from here" if resumes else "")
            told = f"{where}{error.strerror}. Mend that (room, rights, the disk itself) and {again}"
        tell(f"error: {told}.")
        return 2
    except KeyboardInterrupt:
        tell("interrupted" + ("; the same command goes on from here" if resumes else ""))
        return INTERRUPTED
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's class; torch is not imported just to compare it
            raise
        tell(
            "error: the GPU's memory does not suffice. "
            "An untrained model takes about a third of it with --method qlora; else a larger GPU is needed. "
            f"({str(error).splitlines()[0]})"
        )
        return 2
