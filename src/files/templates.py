"""Jinja2 templates that somebody else wrote: what they may compute is bounded.

A limit on time cannot interrupt one long operation of Python (`10 ** 10 ** 9`, `'a' * 10 ** 9`), so those are refused
before they begin.
"""

import contextlib
from collections.abc import Iterator, Sized
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import do_round
from jinja2.sandbox import ImmutableSandboxedEnvironment

from src.files.limits import memory_limit, time_limit

MOST_BYTES = 200_000
"""Of a template's text."""
SECONDS, MEMORY = 1.5, 2**28
"""What one rendering may compute for, and how much memory it may take on top of the process's own."""
MOST_SIGNS = 10_000_000
"""Characters of a text, or entries of a list, that `*` may make."""
MOST_BITS = 10_000
"""Of a whole number that `*` or `**` may make."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which no single operation takes long. It raises SecurityError, which is a TemplateError."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.filters["round"] = _round

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MOST_BITS:
                raise SecurityError(f"{operator} makes a number of more than {MOST_BITS:,} bits")
        for many, times in ((left, right), (right, left)):
            if isinstance(many, Sized) and isinstance(times, int) and len(many) * times > MOST_SIGNS:
                raise SecurityError(f"{operator} makes something longer than {MOST_SIGNS:,}")
        return super().call_binop(context, operator, left, right)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if isinstance(precision, int) and abs(precision) > 300:
        raise SecurityError(f"round: found {precision} places, allowed: up to 300")
    return do_round(value, precision, method)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within the block, TimeoutError or MemoryError when what it renders exceeds `SECONDS` or `MEMORY`."""
    with time_limit(SECONDS), memory_limit(MEMORY):
        yield


def why(error: BaseException) -> str:
    """What a template did to raise `error`, for a message."""
    if isinstance(error, TimeoutError):
        return f"it has not ended after {SECONDS:g} s"
    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY / 2**20:.0f} MiB of memory"
    if isinstance(error, RecursionError):
        return "it calls itself without an end, or is nested too deeply"
    return f"{type(error).__name__}: {error}"
