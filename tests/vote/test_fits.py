from pathlib import Path

import numpy as np
import pytest

from src.console.cli import UserError
from src.data import dump_items, load_items, sha256
from src.files.paths import record_path
from src.files.writing import write_json
from src.vote.fits import Fit, fit_voters, how_fitted
from src.vote.voters import Request, gather_voters
from src.vote.weights import dialogue_folds, fit
from tests.conftest import make_item
from tests.made_runs import add_orders, make_predictions, make_scored_run, make_split, name_data, stored

RUNS = ("alpha", "beta", "gamma")
ITEMS = {"dev": 30, "test": 12}


def logits_of(run: str, split: str) -> np.ndarray:
    """The later a run's name, the more it knows of labels that go 0, 1, 2, 0, …"""
    rng = np.random.default_rng([len(run), ord(run[0]), ITEMS[split]])
    labels = np.arange(ITEMS[split]) % 3
    return rng.normal(0, 1, (ITEMS[split], 3)) + (0.5 + RUNS.index(run)) * np.eye(3)[labels]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """30 dev items in 10 dialogues and 12 unlabelled test items, and three runs of increasing knowledge."""
    for split, count in ITEMS.items():
        make_split(tmp_path / "data", split, count, labelled=split == "dev")
        for run in RUNS:
            make_scored_run(tmp_path / "results" / run, tmp_path / "data", split, logits_of(run, split).tolist())
    return tmp_path


def fitted(place: Path, rule: str, split: str, *runs: str, data: Path | None = None) -> Fit:
    request = Request(runs, [], split, place / "results", data or place / "data")
    return fit_voters(rule, request, gather_voters(request))


def logprobs(split: str) -> np.ndarray:
    logits = np.stack([logits_of(run, split) for run in RUNS])
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("rule", ["soft", "weighted", "stack"])
def test_a_vote_on_test_is_fitted_on_all_of_dev(place: Path, rule: str) -> None:
    found = fitted(place, rule, "test", *RUNS)
    by_hand = fit(rule, logprobs("dev"), np.arange(30) % 3)
    assert np.array(found.probabilities) == pytest.approx(by_hand.probabilities(logprobs("test")), abs=1e-4)
    entry, dev = found.entry, place / "data" / "data_dev.json"
    assert (entry["rule"], entry["split"], entry["folds"]) == (rule, "dev", None)
    assert (entry["data"], entry["data_sha256"]) == (str(dev), sha256(dev))
    assert (entry["items"], entry["dialogues"]) == (30, 10)
    assert entry["scores"] == {run: sha256(place / "results" / run / "scores_dev.jsonl") for run in RUNS}
    for key, values in (("temperatures", by_hand.temperatures), ("weights", by_hand.weights)):
        assert entry[key] == pytest.approx(dict(zip(RUNS, values.tolist(), strict=True)), abs=1e-4)
    assert how_fitted(entry) == f"fitted on the 30 items of {dev}, 10 dialogues"


def test_labels_of_test_are_never_read(place: Path) -> None:
    before = fitted(place, "stack", "test", *RUNS)
    items = [make_item(number, output=f"inference_{1 + (number + 1) % 3}") for number in range(12)]
    (place / "labelled.json").write_text(dump_items(items), encoding="utf-8")
    request = Request(RUNS, [], "test", place / "results", place / "labelled.json")
    for run in RUNS:  # a file of the user's own names neither dev's place nor a folder: the records do
        name_data(place / "results" / run, dev=place / "data" / "data_dev.json")
    after = fit_voters("stack", request, gather_voters(request))
    assert after.probabilities == before.probabilities and after.entry == before.entry
    # The made items of both splits are of the same dialogues, which is worth a word where accuracy is told.
    assert any("12 items of test are of dialogues that the rule was fitted on" in note for note in after.notes)
    assert before.notes == []


@pytest.mark.parametrize("rule", ["soft", "weighted", "stack"])
def test_a_vote_on_dev_is_fitted_out_of_fold(place: Path, rule: str) -> None:
    found = fitted(place, rule, "dev", *RUNS)
    labels = np.arange(30) % 3
    assert (found.entry["folds"], found.entry["items"]) == (5, 30)
    folds = dialogue_folds([item.dialogue_key for item in load_items(place / "data" / "data_dev.json")])
    for fold in range(5):
        held = folds == fold
        by_hand = fit(rule, logprobs("dev")[:, ~held], labels[~held]).probabilities(logprobs("dev")[:, held])
        assert np.array(found.probabilities)[held] == pytest.approx(by_hand, abs=1e-4)
    whole = fit(rule, logprobs("dev"), labels)
    assert [found.entry["weights"][run] for run in RUNS] == pytest.approx(whole.weights.tolist(), abs=1e-4)
    likely = np.array(found.probabilities)[np.arange(30), labels]
    assert found.entry["log_loss"] == pytest.approx(-np.log(likely).mean())
    assert "in 5 folds by dialogue" in how_fitted(found.entry)


def test_the_order_in_which_runs_are_given_changes_nothing(place: Path) -> None:
    one = fitted(place, "weighted", "test", "alpha", "beta", "gamma")
    other = fitted(place, "weighted", "test", "gamma", "alpha", "beta")
    assert (other.probabilities, other.entry) == (one.probabilities, one.entry)


def test_files_of_scores_are_fitted_on_those_beside_them(place: Path) -> None:
    file = place / "results" / "beta" / "scores_test.jsonl"
    by_file = fitted(place, "soft", "test", "alpha", str(file), "gamma")
    assert by_file.probabilities == fitted(place, "soft", "test", *RUNS).probabilities
    assert by_file.entry["weights"].keys() == {"alpha", str(file), "gamma"}, "called as they vote"
    alone = place / "mine.jsonl"
    alone.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"mine.jsonl: its weight is fitted on its scores on dev.*a name without test"):
        fitted(place, "soft", "test", "alpha", str(alone))
    alone = alone.rename(place / "scores_test.jsonl")
    with pytest.raises(UserError, match=r"no scores_dev\.jsonl beside it"):
        fitted(place, "soft", "test", "alpha", str(alone))


def test_answers_alone_are_refused(place: Path) -> None:
    items = load_items(place / "data" / "data_test.json")
    elsewhere = make_predictions(place / "elsewhere.json", items, [0] * 12)
    with pytest.raises(UserError, match=r"--rule soft needs probabilities, and of 1 of 2 voters .*elsewhere.json"):
        fitted(place, "soft", "test", "alpha", str(elsewhere))
    (place / "results" / "beta" / "scores_dev.jsonl").unlink()
    with pytest.raises(UserError, match=r"--rule stack needs probabilities.*beta"):
        fitted(place, "stack", "test", "alpha", "beta")
    (place / "results" / "beta" / "predictions_dev.json").unlink()
    with pytest.raises(UserError, match=r"beta has answers for test, not for dev. Score it: .*--split dev"):
        fitted(place, "stack", "test", "alpha", "beta")


def test_both_splits_are_read_by_the_same_number_of_orders(place: Path) -> None:
    for run in RUNS:
        add_orders(place / "results" / run, place / "data", "test", [0] * 12)
    request = Request(RUNS, [], "test", place / "results", place / "data", 6)
    with pytest.raises(UserError, match=r"3 of 3 runs have no scores of 6 orders on dev"):
        fit_voters("soft", request, gather_voters(request))
    for run in RUNS:
        add_orders(place / "results" / run, place / "data", "dev", [0, 1, 2] * 10)
    found = fit_voters("soft", request, gather_voters(request))
    by_six = {run: sha256(place / "results" / run / "scores_dev.6orders.jsonl") for run in RUNS}
    assert found.entry["scores"] == by_six
    # All are right on all of dev, so no temperature is the best.
    assert [note.split()[0] for note in found.notes] == list(RUNS)


def test_dev_without_labels_or_of_one_dialogue_is_refused(place: Path) -> None:
    make_split(place / "data", "dev", 30, labelled=False)
    with pytest.raises(UserError, match="30 of 30 items have no label"):
        fitted(place, "soft", "test", *RUNS)
    make_split(place / "short", "dev", 3)
    for run in RUNS:
        make_scored_run(place / "few" / run, place / "short", "dev", logits_of(run, "dev")[:3].tolist())
    request = Request(RUNS, [], "dev", place / "few", place / "short")
    with pytest.raises(UserError, match=r"the 3 items are of 1 dialogue.*Allowed: .* 2 dialogues"):
        fit_voters("soft", request, gather_voters(request))


def test_voters_that_have_no_best_temperature_are_named(place: Path) -> None:
    make_scored_run(place / "results" / "alpha", place / "data", "dev", np.eye(3)[np.arange(30) % 3].tolist())
    make_scored_run(place / "results" / "beta", place / "data", "dev", (-np.eye(3)[np.arange(30) % 3]).tolist())
    found = fitted(place, "soft", "test", *RUNS)
    assert sorted(note.split(" on ")[0].split(" about ")[0] for note in found.notes) == [
        "alpha makes no mistake",
        "beta tells nothing",
    ]


def test_experts_of_one_category_are_one_voter_on_both_splits(place: Path) -> None:
    categories = ("원인", "후행사건", "전제", "동기", "반응")
    for name, category in zip("vwxyz", categories, strict=True):
        run = place / "results" / name
        for split in ITEMS:
            make_scored_run(run, place / "data", split, logits_of("gamma", split).tolist())
        expert = {"backbone": "polar", "method": "lora", "only_category": category}
        write_json(record_path(run), stored(run) | {"recipe": expert})
    found = fitted(place, "weighted", "test", "alpha", *"vwxyz")
    assert set(found.entry["weights"]) == {"alpha", "experts-polar"}
    assert found.entry["weights"]["experts-polar"] > found.entry["weights"]["alpha"]
