"""A run's answers to changed dialogues, held against its own."""

from pathlib import Path

import pytest

from src.console.tables import make_console
from src.data import Item, sha256
from src.files.paths import record_path
from src.files.writing import write_json, write_text
from src.vote.ballots import Source, read_sources
from src.vote.changed import find_changed, show_changed
from src.worth.metrics import holm, mcnemar
from tests.made_runs import make_scored_run, make_split, stored


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    return make_split(tmp_path / "data", "dev", 30)


def make_changed(results: Path, items: list[Item], name: str, right: int, how: str | None = None) -> None:
    """A run that has the first `right` items right, and the others wrong."""
    answers = [((item.label or 0) + (place >= right)) % 3 for place, item in enumerate(items)]
    logits = [[float(option == answer) for option in range(3)] for answer in answers]
    run = make_scored_run(results / name, results.parent / "data", "dev", logits)
    if how:
        write_json(record_path(run), {**stored(run), "dialogue": how})


def read(results: Path, items: list[Item], *names: str) -> list[Source]:
    return read_sources(names, items, results.parent / "data" / "data_dev.json", "dev", results)


def test_changed_runs_are_tested_against_the_run_itself(
    tmp_path: Path, items: list[Item], capsys: pytest.CaptureFixture[str]
) -> None:
    results, data = tmp_path / "results", tmp_path / "data" / "data_dev.json"
    for name, right, how in (("a", 28, None), ("a-blanked", 10, "blanked"), ("a-shuffled", 29, "shuffled")):
        make_changed(results, items, name, right, how)
    make_changed(results, items, "b", 20)
    found, notes = find_changed(read(results, items, "a", "b"), items, data, "dev")
    assert [(one.name, one.run, one.how, one.result.correct) for one in found] == [
        ("a-blanked", "a", "blanked", 10),
        ("a-shuffled", "a", "shuffled", 29),
    ]
    assert not notes
    assert [one.pair.p for one in found] == [mcnemar(0, 18), mcnemar(1, 0)]
    assert [one.pair.corrected_p for one in found] == holm([mcnemar(0, 18), mcnemar(1, 0)])
    show_changed(make_console(), found)
    said = capsys.readouterr().out
    assert "a-blanked: 33.33%, -60.0 points, 0 items right only so, 18 only with the true dialogue" in said
    assert ": a needs the dialogue\n" in said
    assert "a-shuffled: 96.67%, +3.3 points, 1 items right only so, 0 only" in said
    assert "nothing shows that a needs the order of the utterances\n" in said
    # Those that were asked for are rows of their own.
    found, _ = find_changed(read(results, items, "a", "a-blanked"), items, data, "dev")
    assert [one.name for one in found] == ["a-shuffled"]


def test_what_was_scored_otherwise_is_left_out(tmp_path: Path, items: list[Item]) -> None:
    results, data = tmp_path / "results", tmp_path / "data" / "data_dev.json"
    make_changed(results, items, "a", 28)
    make_changed(results, items, "a-blanked", 10)  # a run of that name, which reads its dialogues
    for how in ("shuffled", "swapped"):
        make_changed(results, items, f"a-{how}", 10, how)
    record = stored(results / "a-shuffled")
    record["splits"]["dev"]["data_sha256"] = "0" * 64
    write_json(record_path(results / "a-shuffled"), record)
    weights = {"model/model.safetensors": {"bytes": 1, "sha256": sha256(data)}}
    for run, files in (("a", weights), ("a-swapped", {"model/model.safetensors": {"bytes": 2, "sha256": "0" * 64}})):
        write_json(record_path(results / run), {**stored(results / run), "files": files})
    found, notes = find_changed(read(results, items, "a"), items, data, "dev")
    assert not found
    assert [note.split(":")[0] for note in notes] == [
        f"a-{how} is left out" for how in ("blanked", "shuffled", "swapped")
    ]
    assert "does not say that its dialogues are blanked" in notes[0]
    assert "it has no scores of 1 order on" in notes[1] and "--split dev --dialogue shuffled" in notes[1]
    assert "scored with another model or prompt" in notes[2]


def test_other_items_than_the_run_names_are_named_in_the_advice(tmp_path: Path, items: list[Item]) -> None:
    results, data = tmp_path / "results", tmp_path / "data" / "data_dev.json"
    make_changed(results, items, "a", 28)
    make_changed(results, items, "a-blanked", 10, "blanked")
    other = tmp_path / "다른 자리" / "data_dev.json"
    write_text(other, f"{data.read_text('utf-8')}\n")
    _, (note,) = find_changed(read(results, items, "a"), items, other, "dev")
    assert note.endswith(f"--split dev --dialogue blanked --data '{other}'")
