"""Printing on any terminal: characters that it lacks are replaced, and control characters in texts are spelled out.

The text of a corpus, the name of a file or the answer of an endpoint may contain anything. An output may have any
encoding, or its reader may be gone (`| head`). None of this ends a command with a traceback.
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
"""The name, as `errors` of a stream, of our replacement of characters that its encoding lacks."""
NO_READER = 141
"""Exit code if the output's reader is gone: 128 + SIGPIPE, the same as a shell's."""
ALIKE = {
    "–": "-", "—": "-", "−": "-", "·": ".", "×": "x", "…": "...", "⟦": "[", "⟧": "]", "“": '"', "”": '"', "‘": "'",
    "’": "'", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "±": "+-", "█": "#", "━": "-", "╸": "-", "╺": "-", "•": "*",
}  # fmt: skip
"""Characters that we print ourselves, and their replacements."""
# Sequences that rich and tqdm write: colours, moves to another line, lines cleared, the cursor hidden and shown.
_DRAWN = r"\x1b\[(?:[0-9;]*m|[0-9]*[AB]|[0-2]?K|\?25[lh])"
# Everything that a terminal obeys: control characters, and those that turn the direction of writing or end a line.
_OBEYED = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
# Line ends and tabs belong to a text. A carriage return within a line would write over its beginning.
CONTROL = re.compile(_OBEYED + r"|(?<=[^\n])\r(?=[^\r\n])")
DRAWING = re.compile(f"(?P<drawn>{_DRAWN})|{CONTROL.pattern}")
BAR_MOVES = re.compile(r"(?:\r|\n|\x1b\[A|\x1b\[K)*")
"""tqdm writes these by themselves, between texts."""
IN_NAMES = re.compile(_OBEYED + "|[\t\r\n\ud800-\udfff]")
"""What no name of a file or folder may hold, half a character included."""


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = []
    for sign in error.object[error.start : error.end]:
        alike = ALIKE.get(sign) or unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
        signs.append(alike or "?")
    return "".join(signs), error.end


codecs.register_error(REPLACING, _replaced)


def harmless(text: str) -> str:
    """`text` with everything spelled out (`\\x07`, `\\u202e`) that a terminal would obey."""
    return CONTROL.sub(lambda found: spelled(found[0]), text)


def spelled(sign: str) -> str:
    return f"\\x{ord(sign):02x}" if ord(sign) < 256 else f"\\u{ord(sign):04x}"


def name_problem(name: str) -> str:
    """Why `name` is none for a file or folder that is to be made: it holds what a terminal would obey. Or ""."""
    found = IN_NAMES.search(name)
    if not found:
        return ""
    shown = IN_NAMES.sub(lambda one: spelled(one[0]), name)
    return f"found the character U+{ord(found[0]):04X} in '{shown[:100]}'; allowed: characters that can be seen"


class Unread(SystemExit):
    """The output's reader is gone. This is not an OSError, because argparse and rich would catch that."""


class Stream:
    """A text stream whose `write` goes through `harmless`, and which ends the command if its reader is gone. Everything
    else is left to the stream itself.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._write(text if BAR_MOVES.fullmatch(text) else harmless(text))
        return len(text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except BrokenPipeError as error:
            raise Unread(NO_READER) from error

    @property
    def rich_proxied_file(self) -> "Drawn":
        """Where rich writes instead, by its own convention."""
        return Drawn(self._stream)

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


class Drawn(Stream):
    """As `Stream`, for rich: colours and moves are obeyed. `make_console` spells them out in texts before."""

    def write(self, text: str) -> int:
        self._write(DRAWING.sub(lambda found: found[0] if found["drawn"] else spelled(found[0]), text))
        return len(text)


@contextlib.contextmanager
def on_any_terminal() -> Iterator[None]:
    """Within the block, stdout and stderr take any text."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):  # a notebook's stream has none
            stream.reconfigure(errors=REPLACING)
    sys.stdout, sys.stderr = map(Stream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush() -> None:
    """Writes out what was printed, so that a missing reader is noticed while it can be handled."""
    sys.stdout.flush()
    sys.stderr.flush()


def drop_unread() -> None:
    """Discards pending output to a pipe without a reader, also when Python exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (Unread, OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
