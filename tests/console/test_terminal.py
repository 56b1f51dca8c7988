"""Outputs of any encoding, texts with control characters, and readers that are gone, in real processes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.console.terminal import NO_READER, REPLACING, Stream, harmless, on_any_terminal

ENCODINGS = {
    "euc-kr": {"PYTHONIOENCODING": "euc-kr"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "no locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
SAYS = """
import sys
from src.console.cli import UserError, run_main
def main():
    from rich.console import Console
    from rich.table import Table
    print("⟦정답⟧ ± 똠방각하 \\udcff")
    table = Table("화자", "…")
    table.add_row("가", "—")
    Console(width=40).print(table)
    raise UserError("똠방각하 – 없음")
sys.exit(run_main(main))
"""


@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_sign_that_cannot_be_shown_is_replaced(kind: str, tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(SAYS, encoding="utf-8")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, tmp_path / "says.py"],
        env={**plain, **ENCODINGS[kind], "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        check=False,
    )
    encoding = "euc-kr" if kind == "euc-kr" else "ascii"
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 2 and "Traceback" not in err
    assert out.splitlines()[0].startswith("[정답] ± ") if kind == "euc-kr" else out.startswith("[??] +- ")
    assert out.splitlines()[0].endswith(" ?") and "+--" in out, "a box of ASCII"
    assert err.startswith("error: ") and "- 없음" in err if kind == "euc-kr" else "- ??" in err


def test_signs_we_print_have_something_alike() -> None:
    assert "95 % – ⟦A⟧ · 3 × 2 → é Ⅳ 가".encode("ascii", REPLACING) == b"95 % - [A] . 3 x 2 -> e IV ?"
    assert "가–".encode("euc-kr", REPLACING).decode("euc-kr") == "가-"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("가나 abc\t\r\n", "가나 abc\t\r\n"),
        ("\x1b[1;31mred\x1b[0m", "\\x1b[1;31mred\\x1b[0m"),
        ("a\u202eb\u2066\u200f\u061c\u2028", "a\\u202eb\\u2066\\u200f\\u061c\\u2028"),
        ("right\rwrong", "right\\x0dwrong"),
        ("\r  50%", "\r  50%"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("\x1bc\x9b31m\x00\b", "\\x1bc\\x9b31m\\x00\\x08"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert harmless(text) == shown
    inner = io.StringIO()
    assert Stream(inner).write(text) == len(text) and inner.getvalue() == shown.replace("\r\n", "\r\n")


def test_the_streams_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with on_any_terminal():
        assert isinstance(sys.stdout, Stream) and isinstance(sys.stderr, Stream)
        print("\x07", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().err == "\\x07\n"


def left_unread(code: str, merged: bool = False) -> tuple[int, str]:
    """(exit code, stderr) of a command whose stdout nobody reads; merged: nor stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    stderr = writing if merged else subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=stderr, text=True)
    os.close(writing)
    _, said = child.communicate(timeout=60)
    return child.returncode, said or ""


HEAD = "import sys\nfrom src.console.cli import Parser, UserError, run_main\n"


@pytest.mark.parametrize(
    "body",
    [
        "print('x' * 10**6)",
        "print('little')",
        "Parser('doc', 'run.x').parse_args(['--help'])",
        "from rich.console import Console; Console().print('x')",
    ],
)
def test_output_that_nobody_reads_ends_a_command_quietly(body: str) -> None:
    code = f"{HEAD}def main():\n    {body}\nsys.exit(run_main(main))"
    assert left_unread(code) == (NO_READER, "")
    assert left_unread(code, merged=True)[0] == NO_READER


def test_a_message_still_arrives_where_only_stdout_is_unread() -> None:
    code = f"{HEAD}def main():\n    raise UserError('what was wrong')\nsys.exit(run_main(main))"
    assert left_unread(code) == (2, "error: what was wrong\n")
    assert left_unread(code, merged=True)[0] == NO_READER
