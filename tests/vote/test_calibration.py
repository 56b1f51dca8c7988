"""Runs and votes judged on invented items whose true probabilities are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from src.console.cli import UserError
from src.data import Item, dump_items, load_items, split_path
from src.vote.ballots import Source, read_sources
from src.vote.calibration import Calibration, Judged, calibrate
from src.vote.fits import labels_of
from src.vote.voters import Request
from src.worth.calibration import CALIBRATED, OVER, TEMPERATURES, UNDER, Floats, fit_temperature, losses
from tests.conftest import OUTPUTS, make_item
from tests.made_probabilities import drawn
from tests.made_runs import add_orders, make_predictions, make_scored_run

ITEMS = {"dev": 150, "train": 60}


def make_labelled(folder: Path, split: str, labels: Sequence[int], first: int = 0) -> list[Item]:
    """Items with these labels, three in a dialogue."""
    made = [make_item(first + place, output=OUTPUTS[label]) for place, label in enumerate(labels)]
    path = split_path(folder / "data", split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump_items(made), encoding="utf-8")
    return load_items(path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Labels that come from the probabilities of a run `honest`; `sharp` multiplies its logits by 3, `flat` by 0.3."""
    rng = np.random.default_rng(0)
    for split, count in ITEMS.items():
        logits = rng.normal(0, 3, (count, 3))
        first = 0 if split == "dev" else ITEMS["dev"]
        make_labelled(tmp_path, split, drawn(rng, softmax(logits, axis=1)).tolist(), first)
        for name, factor in (("honest", 1), ("sharp", 3), ("flat", 0.3)):
            make_scored_run(tmp_path / "results" / name, tmp_path / "data", split, (logits * factor).tolist())
    return tmp_path


def judged(place: Path, *names: str, split: str = "dev", fitted_on: str | None = None) -> Calibration:
    request = Request(names, [], split, place / "results", place / "data")
    items, data, sources = read(place, names, split)
    return calibrate(request, items, data, sources, fitted_on)


def read(place: Path, names: Sequence[str], split: str) -> tuple[list[Item], Path, list[Source]]:
    data = split_path(place / "data", split)
    items = load_items(data)
    return items, data, read_sources(names, items, data, split, place / "results")


def logprobs(place: Path, name: str, split: str) -> Floats:
    items, _, (source,) = read(place, [name], split)
    assert source.ballot.logprobs is not None
    return np.array([source.ballot.logprobs[item.id] for item in items])


def by_name(found: Calibration) -> dict[str, Judged]:
    return {one.name: one for one in found.judged}


def test_too_sharp_and_too_flat_runs_are_told_and_mended(place: Path) -> None:
    found = judged(place, "honest", "sharp", "flat")
    runs = by_name(found)
    assert {name: one.before.verdict for name, one in runs.items()} == {
        "honest": CALIBRATED,
        "sharp": OVER,
        "flat": UNDER,
    }
    for name, known in (("honest", 1), ("sharp", 3), ("flat", 0.3)):
        after = runs[name].after
        assert after is not None and after.measured.verdict == CALIBRATED
        assert after.temperature == pytest.approx(known, rel=0.25)
        assert after.between[0] < after.temperature < after.between[1]
        assert after.log_loss_change.gain == after.brier_change.gain == (name != "honest")
        # The three say the same after their temperatures.
        assert after.measured.log_loss == pytest.approx(runs["honest"].after.measured.log_loss, abs=1e-4)  # type: ignore[union-attr]
        assert after.measured.accuracy == runs[name].before.accuracy
    assert found.fitted is not None and found.notes == []
    assert (found.fitted.split, found.fitted.items, found.fitted.dialogues, found.fitted.folds) == ("dev", 150, 50, 50)


def test_no_item_is_judged_by_a_temperature_that_knows_its_dialogue(place: Path) -> None:
    """Each dialogue's share of the loss, computed by hand from what the other dialogues say."""
    items, _, _ = read(place, ["sharp"], "dev")
    own, labels = logprobs(place, "sharp", "dev"), labels_of(items)
    keys = np.array([item.dialogue_key for item in items])
    by_hand, temperatures = np.empty(150), []
    for key in dict.fromkeys(keys.tolist()):
        held = keys == key
        temperatures.append(fit_temperature(own[~held], labels[~held]))
        by_hand[held] = losses(softmax(own[held] / temperatures[-1], axis=1), labels[held])
    after = by_name(judged(place, "sharp"))["sharp"].after
    assert after is not None
    assert after.measured.log_loss == pytest.approx(by_hand.mean())
    assert after.between == pytest.approx((min(temperatures), max(temperatures)))
    before = losses(softmax(own, axis=1), labels)
    assert after.log_loss_change.mean == pytest.approx((by_hand - before).mean())
    low, high = after.log_loss_change.interval
    assert low < after.log_loss_change.mean < high


def test_scores_that_follow_the_dialogue_do_not_leak(tmp_path: Path) -> None:
    """In one dialogue of twenty all answers are wrong and sure. In fold it would be known."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 60)
    answers = np.where(np.arange(60) < 3, (labels + 1) % 3, labels)
    make_labelled(tmp_path, "dev", labels.tolist())
    make_scored_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", (4.0 * np.eye(3)[answers]).tolist())
    found = judged(tmp_path, "alpha")
    (one,) = found.judged
    assert one.after is not None and one.after.temperature > 0.5
    assert one.after.between[0] == pytest.approx(TEMPERATURES[0], rel=0.01), "without that dialogue no mistake is left"
    assert one.after.measured.log_loss > 5 * (one.before.log_loss or 0)  # type: ignore[operator]
    assert any(
        "alpha makes so few mistakes that without 1 of the 20 folds none is left" in note for note in found.notes
    )


def test_a_run_without_mistakes_is_told(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    make_labelled(tmp_path, "dev", labels.tolist())
    make_scored_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", (2.0 * np.eye(3)[labels]).tolist())
    found = judged(tmp_path, "alpha")
    assert [note for note in found.notes if "alpha makes no mistake on dev" in note] and len(found.notes) == 1
    (one,) = found.judged
    assert one.before.verdict == UNDER, "of 60 answers of .79 some would be wrong"
    assert one.after is not None and one.after.measured.ece == pytest.approx(0, abs=1e-9)


def test_a_single_dialogue_gets_no_temperature(tmp_path: Path) -> None:
    make_labelled(tmp_path, "dev", [0, 1, 2])
    make_scored_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", np.eye(3).tolist())
    found = judged(tmp_path, "alpha")
    assert found.fitted is None and found.judged[0].after is None and found.judged[0].before.items == 3
    assert found.notes[0].startswith("no temperature: the items are of a single dialogue")
    assert found.as_json()["answers"][0]["after"] is None


def test_temperatures_of_another_split_are_those_of_its_items(place: Path) -> None:
    found = judged(place, "sharp", "flat", split="train", fitted_on="dev")
    assert found.fitted is not None
    assert (found.fitted.split, found.fitted.items, found.fitted.folds, found.fitted.shared) == ("dev", 150, None, 0)
    train, _, _ = read(place, ["sharp"], "train")
    dev, _, _ = read(place, ["sharp"], "dev")
    for name, one in by_name(found).items():
        temperature = fit_temperature(logprobs(place, name, "dev"), labels_of(dev))
        assert one.after is not None and one.after.temperature == temperature
        assert one.after.between == (temperature, temperature)
        scaled = softmax(log_softmax(logprobs(place, name, "train"), axis=1) / temperature, axis=1)
        assert one.after.measured.log_loss == pytest.approx(losses(scaled, labels_of(train)).mean())
    assert found.notes == []
    assert "a run is surer" in judged(place, "sharp", fitted_on="train").notes[0]


def test_dialogues_that_were_fitted_on_are_told(place: Path) -> None:
    items = load_items(split_path(place / "data", "dev"))
    make_labelled(place, "train", [item.label or 0 for item in items[:30]])
    scores = logprobs(place, "sharp", "dev")[:30].tolist()
    make_scored_run(place / "results" / "sharp", place / "data", "train", scores)
    found = judged(place, "sharp", split="train", fitted_on="dev")
    assert found.fitted is not None and found.fitted.shared == 30
    assert "30 of the train items are of dialogues that the temperatures were fitted on" in found.notes[0]


def test_answers_alone_are_skipped_and_refused_by_themselves(place: Path) -> None:
    items = load_items(split_path(place / "data", "dev"))
    alone = str(make_predictions(place / "alone.json", items, [0] * 150))
    found = judged(place, "honest", alone)
    assert list(by_name(found)) == ["honest"] and found.answers_alone == [alone]
    with pytest.raises(UserError, match=r"--calibration needs probabilities.*alone\.json"):
        judged(place, alone)


def test_scores_of_other_orders_are_not_mixed(place: Path) -> None:
    """All have six orders on dev only: those of one order are taken on both splits."""
    items = load_items(split_path(place / "data", "dev"))
    add_orders(place / "results" / "sharp", place / "data", "dev", [item.label or 0 for item in items])
    (one,) = judged(place, "sharp", split="train", fitted_on="dev").judged
    assert one.after is not None
    assert one.after.temperature == fit_temperature(logprobs(place, "sharp", "dev"), labels_of(items))


def test_files_of_scores_are_fitted_by_what_lies_beside_them(place: Path) -> None:
    file = str(place / "results" / "sharp" / "scores_train.jsonl")
    (one,) = judged(place, file, split="train", fitted_on="dev").judged
    (run,) = judged(place, "sharp", split="train", fitted_on="dev").judged
    assert one.after is not None and run.after is not None and one.after.temperature == run.after.temperature
    lonely = place / "mine.jsonl"
    lonely.write_bytes(Path(file).read_bytes())
    with pytest.raises(UserError, match=r"mine\.jsonl: its temperature is fitted on its scores on dev.*a name without"):
        judged(place, str(lonely), split="train", fitted_on="dev")
