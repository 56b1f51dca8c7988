import json
import subprocess
import sys
from pathlib import Path

import pytest

from run.evaluate import main
from src.console.cli import UserError
from src.data import Item, load_items, sha256
from src.files.paths import record_path
from src.files.writing import write_json
from src.worth.metrics import chance_range, wilson
from tests.conftest import OUTPUTS
from tests.made_runs import add_orders, make_predictions, make_run, make_split, name_data, stored


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Ten items with the labels 0 1 2 0 1 2 0 1 2 0, two of each category."""
    return make_split(tmp_path / "data", "dev", 10)


@pytest.fixture
def predicted(tmp_path: Path, items: list[Item]) -> Path:
    """Predictions that miss items 0 and 4."""
    answers = [item.label or 0 for item in items]
    answers[0], answers[4] = 2, 0
    return make_predictions(tmp_path / "predicted.json", items, answers)


def squeezed(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_one_input(tmp_path: Path, items: list[Item], predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(predicted), "--data", str(tmp_path / "data" / "data_dev.json"), "--json", str(tmp_path / "found.json")])
    printed = squeezed(capsys.readouterr().out)
    assert "8/10 80.00% 49.0% to 94.3% 80.00%" in printed
    assert "원인 1/2, 50.0%, 9% to 91%" in printed
    assert "후행사건 2/2, 100.0%, 34% to 100%" in printed
    assert "inference_1 3 0 1 3/4, 75.0%, 30% to 95%" in printed
    assert "inference_2 1 2 0 2/3" in printed
    assert "share of answers 40.0% 20.0% 40.0%" in printed
    low, high = chance_range(10)
    assert f"chance – 33.33% {low:.1%} to {high:.1%}" in printed
    assert "longest option" in printed and "shortest option" in printed and "needs no understanding" in printed
    assert "missed: 2 items ┏" in printed
    assert f"{items[4].id} 반응 inference_2 inference_1" in printed

    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["data"]["sha256"] == sha256(tmp_path / "data" / "data_dev.json")
    assert found["floors"]["chance"]["accuracy"] == pytest.approx(1 / 3)
    rules = {"longest option", "shortest option", "most alike option"}
    overlaps = {"overlap with dialogue", "overlap with targets"}
    assert set(found["floors"]) == {"chance", "trained on options"} | rules | overlaps
    (result,) = found["inputs"]
    assert (result["name"], result["sha256"]) == (str(predicted), sha256(predicted))
    assert (result["correct"], result["interval"]) == (8, [*wilson(8, 10)])
    assert result["missed"] == [
        {"id": items[place].id, "category": items[place].category, "label": OUTPUTS[label], "answer": OUTPUTS[answer]}
        for place, label, answer in ((0, 0, 2), (4, 1, 0))
    ]


def test_floors_are_those_of_the_options(tmp_path: Path, items: list[Item], predicted: Path) -> None:
    main([str(predicted), "--data", str(tmp_path / "data"), "--json", str(tmp_path / "found.json")])
    floors = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["floors"]
    lengths = [[len(option) for option in item.options] for item in items]
    longest = sum(row.index(max(row)) == item.label for row, item in zip(lengths, items, strict=True))
    assert floors["longest option"]["correct"] == longest


def test_several_inputs_are_compared(
    tmp_path: Path, items: list[Item], predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [item.label or 0 for item in items]
    make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", labels, dev_accuracy=1.0)
    main(["alpha", str(predicted), "--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")])
    printed = squeezed(capsys.readouterr().out)
    assert "alpha 10/10 100.00%" in printed and "8/10 80.00%" in printed
    assert "alpha 2/2 2/2 2/2 2/2 2/2 100.0% 100.0%" in printed
    assert "missed" not in printed


def made_answers(items: list[Item], right: int) -> list[int]:
    """The first `right` items right, the others wrong."""
    return [((item.label or 0) + (place >= right)) % 3 for place, item in enumerate(items)]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Five runs, of 40 items 38 to 20 right, each alone right on none that a better one misses."""
    items = make_split(tmp_path / "data", "dev", 40)
    counts = {"alpha": 20, "beta": 36, "gamma": 38, "delta": 21, "epsilon": 36}
    for name, right in counts.items():
        make_run(tmp_path / "results" / name, tmp_path / "data", "dev", made_answers(items, right))
    return ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]


def shown_pairs(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str], str]:
    """What stands above the table of pairs, a text for each of its rows (of a frame's two lines each), and the rest."""
    printed = capsys.readouterr().out.split("Who is better?")[1]
    head, _, rest = printed.partition("┏")
    table, _, below = rest.partition("┘")
    rows = [[line.strip("│").split("│") for line in row.split("\n") if "│" in line] for row in table.split("├")]
    texts = [[" ".join(" ".join(cell).split()) for cell in zip(*row, strict=True)] for row in rows]
    return head, [" | ".join(row) for row in texts], " ".join(below.split())


def test_every_pair_is_tested_on_the_same_items(
    tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Intervals of alpha and beta would say so, too; those of 36 and 38 overlap, and nothing tells them apart."""
    monkeypatch.setenv("COLUMNS", "100")
    main(["alpha", "beta", "gamma", *runs, "--json", str(tmp_path / "found.json")])
    head, rows, below = shown_pairs(capsys)
    assert "the same 40 items of 14 dialogues, 3 pairs (all of 3 answers)" in " ".join(head.split())
    # The two items are of one dialogue, so twice as many are needed as of independent ones: 155, less the 40 here.
    assert [row.split(" | ")[:2] + row.split(" | ")[3:] for row in rows] == [
        ["gamma beta", "2 0", ".500 .500", "not told apart; about 280 more items would be needed"],
        ["gamma alpha", "18 0", "< .001 < .001", "gamma is better"],
        ["beta alpha", "16 0", "< .001 < .001", "beta is better"],
    ]
    assert "corrected after Holm for 3 pairs" in below and "note" not in below
    pairs = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["pairs"]
    assert [(pair["one"], pair["other"], pair["better"]) for pair in pairs] == [
        ("gamma", "beta", None),
        ("gamma", "alpha", "gamma"),
        ("beta", "alpha", "beta"),
    ]
    for pair, row in zip(pairs, rows, strict=True):
        low, high = pair["interval"]
        assert low < pair["difference"] < high
        assert f"{100 * pair['difference']:+.1f} {100 * low:+.1f} to {100 * high:+.1f}" in row
    assert [pair["more_items"] is None for pair in pairs] == [False, True, True]


def test_many_answers_are_held_against_the_best_or_a_named_one(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["alpha", "beta", "gamma", "delta", "epsilon"]
    main([*names, *runs])
    head, rows, _ = shown_pairs(capsys)
    assert len(rows) == 4 and all(row.startswith("gamma ") for row in rows)
    assert "10 pairs (all of 5 answers); shown: those with the best, gamma (--pairs all" in head
    main([*names, *runs, "--pairs", "all"])
    _, rows, _ = shown_pairs(capsys)
    assert len(rows) == 10
    (equal,) = [row for row in rows if row.startswith("beta epsilon")]
    assert equal.endswith("not told apart; no difference here, so no number of items can be given")
    main([*names[:3], *runs, "--pairs", "best"])
    assert len(shown_pairs(capsys)[1]) == 2
    main([*names, *runs, "--against", "alpha"])
    head, rows, _ = shown_pairs(capsys)
    assert len(rows) == 4 and all("alpha" in row for row in rows) and "4 pairs (those with alpha)" in head
    assert any("1.000 1.000" in row and "delta" in row and "not told apart" in row for row in rows)
    for wrong in (["--against", "zeta"], ["--against", "alpha", "--pairs", "all"]):
        with pytest.raises(SystemExit):
            main([*names, *runs, *wrong])


def test_what_whole_dialogues_do_not_show_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nine items more right, all of three dialogues of three: McNemar's p is .004."""
    items = make_split(tmp_path / "data", "dev", 30)
    for name, right in (("all", 30), ("fewer", 21)):
        make_run(tmp_path / "results" / name, tmp_path / "data", "dev", made_answers(items, right))
    where = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    main(["fewer", "all", *where])
    _, (row,), below = shown_pairs(capsys)
    assert "all fewer | 9 0" in row and ".004 .004" in row and "not told apart; about" in row
    assert "By dialogue these are not told apart: all and fewer (corrected p by dialogue" in below


def test_items_of_one_dialogue_say_nothing_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = make_split(tmp_path / "data", "dev", 3)
    for name, right in (("all", 3), ("none", 0)):
        make_run(tmp_path / "results" / name, tmp_path / "data", "dev", made_answers(items, right))
    main(["none", "all", "--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")])
    _, (row,), below = shown_pairs(capsys)
    assert "-100.0 to +100.0" in row and row.endswith("| not told apart")
    assert "note: all items are of one dialogue" in below


# Seeds


@pytest.fixture
def seeds(tmp_path: Path) -> list[str]:
    """Recipe `a` under three seeds, `b` under two and `c` under one; of 40 items some are right."""
    items = make_split(tmp_path / "data", "dev", 40)
    counts = {"a-s1": 38, "a-s2": 39, "a-s3": 40, "b-s1": 12, "b-s2": 13, "c": 30}
    for name, right in counts.items():
        run = make_run(tmp_path / "results" / name, tmp_path / "data", "dev", made_answers(items, right))
        record = stored(run)
        record["recipe"] = {"name": name, "seed": right, "epoch": "abc".index(name[0]) + 1}
        write_json(record_path(run), record)
    return ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]


def test_runs_of_one_recipe_are_one_row(tmp_path: Path, seeds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    names = ["b-s1", "a-s1", "a-s2", "c", "a-s3", "b-s2"]
    main([*names, *seeds, "--seeds", "--json", str(tmp_path / "found.json")])
    printed = squeezed(capsys.readouterr().out)
    assert "b 2 31.25% 1.77 30.00% 32.50% 31.25%" in printed
    assert "a 3 97.50% 2.50 95.00% 100.00% 97.50%" in printed
    assert "c 1 75.00% – 75.00% 75.00% 75.00%" in printed
    assert "a: a-s1 (seed 38), a-s2 (seed 39), a-s3 (seed 40); epoch 1" in printed
    assert "chance – 33.33%" in printed and "longest option" in printed and "38/40" not in printed
    assert "Which recipe is better? 3 pairs of recipes" in printed and "Who is better?" not in printed
    assert printed.count("cannot be told:") == 2 and printed.count("is better ") == 1
    assert "corrected after Holm for 1 pair" in printed
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in found["inputs"]] == names
    assert [(one["name"], one["seeds"], one["runs"]) for one in found["seeds"]["recipes"]] == [
        ("b", 2, {"b-s1": 12, "b-s2": 13}),
        ("a", 3, {"a-s1": 38, "a-s2": 39, "a-s3": 40}),
        ("c", 1, {"c": 30}),
    ]
    pairs = {(pair["one"], pair["other"]): pair for pair in found["seeds"]["pairs"]}
    assert list(pairs) == [("a", "c"), ("a", "b"), ("c", "b")]
    assert pairs["a", "b"]["better"] == "a" and pairs["a", "c"]["p"] is None


def test_recipes_of_one_seed_each_are_not_compared(seeds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "a-s1", "b-s1", *seeds])
    printed = squeezed(capsys.readouterr().out)
    assert "cannot be told" in printed and "each recipe needs a run of a second seed" in printed
    main(["--seeds", "a-s1", "a-s2", *seeds])
    printed = squeezed(capsys.readouterr().out)
    assert "a 2 96.25%" in printed and "better" not in printed
    main(["a-s1", "a-s2", *seeds])
    assert "note: a-s1, a-s2 are of one recipe under several seeds" in capsys.readouterr().out


def test_notes_of_the_tables_are_in_the_file(
    tmp_path: Path, seeds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    record = stored(tmp_path / "results" / "c")
    record["splits"]["dev"]["data_sha256"] = "0" * 64
    write_json(record_path(tmp_path / "results" / "c"), record)
    main(["a-s1", "a-s2", "c", *seeds, "--json", str(tmp_path / "found.json")])
    printed = " ".join(capsys.readouterr().out.split())
    notes = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["notes"]
    assert len(notes) == printed.count("note: ") >= 2 and all(f"note: {one}" in printed for one in notes)


def test_a_damaged_record_beside_a_file_of_answers_does_no_harm(
    tmp_path: Path, seeds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results" / "c" / "record.json").write_text("{", encoding="utf-8")
    main(["a-s1", str(tmp_path / "results" / "c" / "predictions_dev.json"), *seeds])
    assert "Who is better?" in capsys.readouterr().out


def test_seeds_go_with_runs_alone(tmp_path: Path, seeds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = make_predictions(tmp_path / "x.json", load_items(tmp_path / "data" / "data_dev.json"), [0] * 40)
    with pytest.raises(UserError, match=r"--seeds takes runs.*x.json \(a file outside"):
        main(["--seeds", "a-s1", str(file), *seeds])
    for wrong in (["--against", "a-s1"], ["--pairs", "all"]):
        with pytest.raises(SystemExit):
            main(["--seeds", "a-s1", "a-s2", *seeds, *wrong])
        assert "--seeds compares every two recipes" in capsys.readouterr().err


# Data


def test_a_run_is_held_against_its_own_data(
    tmp_path: Path, items: list[Item], predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [item.label or 0 for item in items]
    run = make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", labels)
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    record["data"] = {"train": {"path": str(tmp_path / "data" / "data_train.json")}}
    (run / "record.json").write_text(json.dumps(record), encoding="utf-8")
    main([str(predicted), "alpha", "--results", str(tmp_path / "results")])
    assert "10 items of" in capsys.readouterr().out


def test_missed_limits_what_is_printed(
    tmp_path: Path, items: list[Item], predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(predicted), "--data", str(tmp_path / "data"), "--missed", "1"])
    printed = capsys.readouterr().out
    assert "missed: 2 items, the first 1" in printed
    assert items[0].id in printed and items[4].id not in printed
    with pytest.raises(SystemExit):
        main([str(predicted), "--missed", "-1"])


def test_all_right(tmp_path: Path, items: list[Item], capsys: pytest.CaptureFixture[str]) -> None:
    perfect = make_predictions(tmp_path / "perfect.json", items, [item.label or 0 for item in items])
    main([str(perfect), "--data", str(tmp_path / "data")])
    assert "missed: 0 items\n" in capsys.readouterr().out


def test_unlabelled_data_is_refused(tmp_path: Path, predicted: Path) -> None:
    make_split(tmp_path / "data", "test", 10, labelled=False)
    with pytest.raises(UserError, match=r"data_test.json: 10 of 10 items have no label.*--split dev"):
        main([str(predicted), "--data", str(tmp_path / "data"), "--split", "test"])


def test_other_ids_are_refused(tmp_path: Path, items: list[Item]) -> None:
    short = make_predictions(tmp_path / "short.json", items[:9], [0] * 9)
    with pytest.raises(UserError, match=rf"short.json: found 9 items, expected 10: lacks 1 \({items[9].id}\)"):
        main([str(short), "--data", str(tmp_path / "data")])


def test_help_shows_the_commands() -> None:
    done = subprocess.run([sys.executable, "-m", "run.evaluate", "--help"], capture_output=True, text=True, check=True)
    assert "python -m run.evaluate qwen2" in done.stdout


def test_the_data_of_the_run_is_the_default(
    tmp_path: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("src.data.DATA", tmp_path / "nothing")
    run = make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", [0] * 10, dev_accuracy=0.4)
    file = tmp_path / "data" / "data_dev.json"
    name_data(run, dev=file)
    for word in ("alpha", str(run), str(run / "predictions_dev.json")):
        main([word, "--results", str(tmp_path / "results")])
        assert f"10 items of {file}" in capsys.readouterr().out
    name_data(run, dev=tmp_path / "gone" / "data_dev.json")
    with pytest.raises(
        UserError, match=r"neither \S*gone/data_dev.json, which the record of alpha names, nor \S*nothing/"
    ):
        main(["alpha", "--results", str(tmp_path / "results")])
    make_split(tmp_path / "nothing", "dev", 10)
    main(["alpha", "--results", str(tmp_path / "results")])
    assert "gone/data_dev.json, which the record of alpha names, is gone; the items are" in capsys.readouterr().out


def test_six_orders_are_evaluated_when_asked_for(
    tmp_path: Path, items: list[Item], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", [0] * 10, dev_accuracy=0.4)
    add_orders(run, tmp_path / "data", "dev", [item.label or 0 for item in items])
    where = ("--data", str(tmp_path / "data"), "--results", str(tmp_path / "results"))
    main(["alpha", *where])
    said = squeezed(capsys.readouterr().out)
    assert "alpha 4/10" in said and "scores of 6 orders on dev, too, but not on test: --orders 6" in said
    main(["alpha", *where, "--orders", "6"])
    assert "alpha 10/10" in squeezed(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["nobody", "begun", "nothing.json"])
def test_a_run_that_is_not_there_is_told_before_its_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "results" / "begun").mkdir(parents=True)
    words = "no such run|is not finished|no such file. Allowed: a run's name"
    with pytest.raises(UserError, match=words):
        main([name, "--results", str(tmp_path / "results")])
