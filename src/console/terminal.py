"""What commands print, on any terminal: signs it lacks are replaced, control characters of texts are shown, not obeyed.

A corpus's text, a file's name or an endpoint's answer may hold anything, and an output may be in any encoding, or
nobody may read it any more (`| head`). None of it ends a command with a traceback.
"""

import codecs
import contextlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

REPLACING = "cci.replacing"
"""Our way with signs that an encoding lacks, as the `errors` of a stream."""
NO_READER = 141
"""Exit code where nobody reads the output any more: 128 + SIGPIPE, as shells have it."""
ALIKE = {
    "–": "-", "—": "-", "−": "-", "·": ".", "×": "x", "…": "...", "⟦": "[", "⟧": "]", "“": '"', "”": '"', "‘": "'",
    "’": "'", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "±": "+-", "█": "#", "━": "-", "╸": "-", "╺": "-", "•": "*",
}  # fmt: skip
"""Signs that we print ourselves, and what stands for them."""
CONTROL = re.compile(
    # What rich and tqdm write: colours, moves to another line, lines cleared, the cursor hidden and shown.
    r"(?P<drawn>\x1b\[(?:[0-9;]*m|[0-9]*[AB]|[0-2]?K|\?25[lh]))"
    # All else that a terminal obeys; line ends, tabs and the return to the line's start are for the text.
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = []
    for sign in error.object[error.start : error.end]:
        alike = ALIKE.get(sign) or unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
        signs.append(alike or "?")
    return "".join(signs), error.end


codecs.register_error(REPLACING, _replaced)


def harmless(text: str) -> str:
    """`text` with control characters spelled out (`\\x07`), but for those that draw colours and bars."""
    return CONTROL.sub(lambda found: found[0] if found["drawn"] else f"\\x{ord(found[0]):02x}", text)


class Unread(SystemExit):
    """Nobody reads the output any more. No OSError, which argparse and rich would take for theirs."""


class Stream:
    """A text stream whose `write` goes through `harmless`, and that ends the command where nobody reads it; all else is
    the stream's own.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(harmless(text))
        except BrokenPipeError as error:
            raise Unread(NO_READER) from error
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError as error:
            raise Unread(NO_READER) from error

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def on_any_terminal() -> Iterator[None]:
    """Within, stdout and stderr take any text."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors=REPLACING)
    sys.stdout, sys.stderr = map(Stream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush() -> None:
    """What was printed goes out now, so that a missing reader is known while it can be handled."""
    sys.stdout.flush()
    sys.stderr.flush()


def drop_unread() -> None:
    """Whatever is still to be printed to a pipe that nobody reads goes nowhere, also when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Unread:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
