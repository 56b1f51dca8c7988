import io
import re

import pytest
from rich.table import Table

from src.console.tables import WIDE, Fitted, make_console

ROWS = (
    ("vote-miniature-of-eight", "hard vote", "0.808 [0.738, 0.863]"),
    ("대화맥락추론", "qlora", "0.742 [0.667, 0.805]"),
)


def table() -> Table:
    made = Table("run", "method", "dev accuracy", title="What came out")
    for row in ROWS:
        made.add_row(*row)
    return made


def shown(width: int, made: Table | None = None, **options: bool) -> str:
    console = make_console(width=width, file=io.StringIO(), **options)
    console.print(Fitted(made or table()))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [12, 20, 30, 40, 50, 60, 80, 120])
def test_no_word_is_lost_at_any_width(width: int) -> None:
    text = shown(width)
    assert "…" not in text
    solid = re.sub(r"[\s│┃]", "", text)
    for word in " ".join(sum(ROWS, ("run", "method", "dev accuracy"))).split():
        assert word in solid or word == "run", (width, word)  # the first cell heads a paragraph without a name
    assert all(len(line.rstrip()) <= width for line in text.splitlines())


def test_the_form_follows_the_width() -> None:
    assert shown(120).splitlines()[1].startswith("┏━") and "┃ run " in shown(120)
    assert shown(60).splitlines()[1].split() == ["run", "method", "dev", "accuracy"]
    broken = shown(44).splitlines()
    assert any(line.split() == ["vote-miniature-of-eight", "hard", "vote", "0.808"] for line in broken), broken
    assert "vote-miniature-of-eight\n  method        hard vote" in shown(34)


def test_a_name_is_never_broken_while_there_is_another_way() -> None:
    for width in range(24, 130):
        assert "vote-miniature-of-eight" in shown(width), width


def test_what_may_not_wrap_does_not() -> None:
    made = table()
    made.columns[2].no_wrap = True
    assert "0.808 [0.738, 0.863]" in shown(56, made) and "  dev accuracy  0.808 [0.738, 0.863]" in shown(50, made)


def test_the_table_itself_stays_as_it_is() -> None:
    made = table()
    before = shown(120, made)
    for width in (30, 44, 60):
        shown(width, made)
    assert shown(120, made) == before


def test_markup_is_for_those_who_ask() -> None:
    made = Table("run")
    made.add_row("run[red]")
    assert "run[red]" in shown(80, made) and "run[red]" in shown(4, made).replace("\n", "")
    bold = Table("run")
    bold.add_row("[bold]one[/]")
    assert "[bold]" not in shown(80, bold, markup=True) and "one" in shown(80, bold, markup=True)


def test_a_pipe_has_no_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console().width == WIDE
    monkeypatch.setenv("COLUMNS", "60")
    assert make_console().width == 60


def test_a_cell_cannot_draw_on_the_terminal() -> None:
    console = make_console(file=io.StringIO(), force_terminal=True, width=60, color_system="standard")
    made = Table("name", title="\x1b[2J")
    made.add_row("red \x1b[31m \x9b \u202e", style="bold")
    console.print(made)
    console.print("\x1b[1A", style="bold")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    left = re.sub(r"\x1b\[[0-9;]*m", "", text)  # the styles that are ours
    assert "\x1b" not in left and "\x9b" not in left and "\u202e" not in left
    assert r"red \x1b[31m \x9b \u202e" in left and r"\x1b[2J" in left and r"\x1b[1A" in left
