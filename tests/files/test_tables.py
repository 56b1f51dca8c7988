import csv
import io

from src.files.tables import as_csv, as_markdown

ROWS = [{"run": "a|b", "accuracy": "0.8"}, {"run": "가,나\n다", "accuracy": ""}]


def test_csv_holds_every_cell() -> None:
    assert list(csv.DictReader(io.StringIO(as_csv(ROWS), newline=""))) == ROWS
    assert as_csv(ROWS).startswith("run,accuracy\na|b,0.8\n")


def test_markdown_has_one_line_a_row() -> None:
    assert as_markdown(ROWS).splitlines() == [
        "| run | accuracy |",
        "| --- | --- |",
        "| a\\|b | 0.8 |",
        "| 가,나 다 |  |",
    ]
