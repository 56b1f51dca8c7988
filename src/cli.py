"""What every command shares: a parser that names the nearest flag, and one way to tell users of their mistakes."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from src import environment
from src.terminal import NO_READER, Unread, drop_unread, flush, on_any_terminal

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class UserError(ValueError):
    """The user's mistake. The message says what is wrong, what was found, what is allowed and what to do; it is all
    they see.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known word closest to `word`, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
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

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse's own overloads
        known, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            word = next((one for one in unknown if one.startswith("-")), unknown[0]).split("=")[0]
            self.error(f"unknown argument {word!r}.{nearest(word, self._option_string_actions)} See --help.")
        return known

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def new_folder(text: str) -> Path:
    """A folder that will be written to, as the `type` of an argument: what cannot be is known before all work."""
    path = Path(text)
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file, where a folder is needed; give another path")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{there} may not be written to; give another path")
    return path


def new_file(text: str) -> Path:
    """A file that will be written, as the `type` of an argument."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, where a file is needed; give another path")
    new_folder(str(path.parent))
    return path


def run_main(main: Callable[[], int | None], resumes: bool = False) -> int:
    """Exit code of a command: 0, or 2 after one line on stderr when the user made a mistake, 130 after Ctrl-C, or 141
    when nobody reads the output any more.

    What could change a result is taken out of the environment first, and any terminal will do. resumes: whether the
    command, given again, goes on where it was interrupted.
    """
    with on_any_terminal():
        try:
            try:
                if names := environment.clear():
                    print(environment.ignored(names), file=sys.stderr)
                return _exit_code(main, resumes)
            finally:
                flush()
        except (Unread, BrokenPipeError):  # also the pipe of a `run.reproduce` that is gone
            drop_unread()
            return NO_READER


def _exit_code(main: Callable[[], int | None], resumes: bool) -> int:
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted" + ("; the same command goes on from here" if resumes else ""), file=sys.stderr)
        return INTERRUPTED
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not loaded for this
            raise
        print(
            "error: the GPU's memory does not suffice. An untrained model takes about a third of it with --method "
            f"qlora; else a larger GPU is needed. ({str(error).splitlines()[0]})",
            file=sys.stderr,
        )
        return 2
