"""Tables for a terminal of any width, a pipe or a file. A table that does not fit changes its form; nothing is cut."""

import copy
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from src.console.terminal import harmless

WIDE = 10_000
"""The width in characters that tables may take in a file or a pipe."""


def make_console(**options: Any) -> Console:
    """The console of a command. Text is printed as it is unless `markup=True`."""
    unseen = not sys.stdout.isatty() and not os.environ.get("COLUMNS")
    return _Console(**{"markup": False, "highlight": False, "width": WIDE if unseen else None, **options})


class _Console(Console):
    """rich itself lets the escape sequences of a text reach the terminal."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            one if one.control else Segment(harmless(one.text), one.style, None) for one in buffer
        )


class Fitted:
    """A table to print. If it is too wide it loses its frame, then its cells are broken at blanks, then each row
    becomes a paragraph. No word, row or column is left out.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width
        natural, least = _widths(self.table, console)
        for table in (self.table, frameless(self.table)):
            frame = console.measure(table, options=options.update(width=WIDE)).maximum - sum(natural)
            if frame + sum(natural) <= room:
                yield table
                return
        if frame + sum(least) <= room:
            yield _narrowed(table, natural, least, room - frame)
            return
        yield from _paragraphs(self.table, console, room)


def frameless(table: Table) -> Table:
    bare = copy.copy(table)
    bare.box, bare.collapse_padding, bare.pad_edge, bare.show_edge = box.SIMPLE_HEAD, True, False, False
    return bare


def _widths(table: Table, console: Console) -> tuple[list[int], list[int]]:
    """For each column the width of its longest line, and that of its longest word."""
    natural, least = [], []
    for column in table.columns:
        texts = [_text(cell, console) for cell in [column.header, *column.cells]]
        lines = [line.cell_len for text in texts for line in text.split("\n", allow_blank=True)]
        words = [Text(word).cell_len for text in texts for word in text.plain.split()]
        natural.append(max([0, column.min_width or 0, *lines]))
        least.append(natural[-1] if column.no_wrap else max([0, column.min_width or 0, *words]))
    return natural, least


def _text(cell: Any, console: Console) -> Text:
    return cell if isinstance(cell, Text) else console.render_str(str(cell))


def _narrowed(table: Table, natural: Sequence[int], least: Sequence[int], room: int) -> Table:
    """`table` with columns that are `room` wide in all. Columns that need the least more get their full width first;
    the columns with the longest texts share the rest.
    """
    widths, left = list(least), room - sum(least)
    for place in sorted(range(len(widths)), key=lambda place: natural[place] - least[place]):
        given = min(natural[place] - least[place], left)
        widths[place] += given
        left -= given
    narrow = copy.copy(table)
    narrow.columns = [copy.copy(column) for column in table.columns]
    for column, width in zip(narrow.columns, widths, strict=True):
        column.width, column.min_width, column.overflow = width, None, "fold"
    return narrow


def _paragraphs(table: Table, console: Console, room: int) -> Iterator[Any]:
    """A paragraph for each row: its first cell, and below it the others, each after the name of its column."""
    if table.title:
        yield Text(_text(table.title, console).plain, style="bold", overflow="fold")
    names = [" ".join(_text(column.header, console).plain.split()) for column in table.columns]
    cells = [list(column.cells) for column in table.columns]
    for row in zip(*cells, strict=True):
        head, *rest = [_text(cell, console) for cell in row]
        yield Text(head.plain, style="bold", overflow="fold")
        filled = [(name, cell) for name, cell in zip(names[1:], rest, strict=True) if cell.plain.strip()]
        if room < 2 * max((Text(name).cell_len for name, _ in filled), default=0):
            yield from (Text(f"{name}: {' '.join(cell.plain.split())}", overflow="fold") for name, cell in filled)
            continue
        paragraph = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
        for name, cell in filled:
            paragraph.add_row(f"  {name}", cell)
        yield paragraph
