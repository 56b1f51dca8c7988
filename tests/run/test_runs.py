from pathlib import Path

import pytest

from run.runs import main
from src.console.cli import UserError
from src.files.writing import write_json
from tests.made_runs import make_run, make_split

NAMES = ("a-run-with-a-rather-long-name-of-its-own", "short")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    make_split(tmp_path / "data", "dev", 4)
    for name in NAMES:
        run = make_run(tmp_path / "results" / name, tmp_path / "data", "dev", [0, 1, 2, 0])
        dev = {"accuracy": 1.0, "correct": 4, "items": 4, "orders": 6, "data_sha256": "0123456789"}
        write_json(run / "record.json", {"run": name, "recipe": {"lr": len(name)}, "splits": {"dev": dev}})
    make_run(tmp_path / "results" / "begun", tmp_path / "data", "dev", [0, 1, 2, 0], finished=False)
    return tmp_path / "results"


@pytest.mark.parametrize("columns", [20, 60, 80, 400])
def test_no_width_costs_a_name_or_a_column(
    results: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    main(["--results", str(results)])
    printed = capsys.readouterr().out
    shown = "".join(printed.split()) if columns == 20 else printed  # where words are wider than the terminal
    assert all(
        name.replace(" ", "") in shown if columns == 20 else name in shown
        for name in (*NAMES, "begun", "1.000 [0.510, 1.000]", "dev", "01234567", "unfinished", "lr")
    ), printed
    assert "…" not in printed and ("┏" in printed) == (columns == 400)
    assert "the command that started begun goes on" in printed


def test_tables_for_other_tools(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--results", str(results), "--csv"])
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("run,state,") and len(lines) == 5
    main(["--results", str(results), "--markdown"])
    assert capsys.readouterr().out.startswith("| run | state |")
    with pytest.raises(SystemExit):
        main(["--csv", "--markdown"])


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no runs there"):
        main(["--results", str(tmp_path)])
