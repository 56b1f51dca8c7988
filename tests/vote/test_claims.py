"""Probabilities of runs and votes, read from what they left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from run.vote import main as vote
from src.console.cli import UserError
from src.data import Item
from src.vote.ballots import Source, read_sources
from src.vote.claims import Claim, claim_of
from tests.made_runs import make_predictions, make_scored_run, make_split

RUNS = ("alpha", "beta", "gamma")


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Thirty labelled items, and three runs that were scored on them."""
    rng, items = np.random.default_rng(0), make_split(tmp_path / "data", "dev", 30)
    for run in RUNS:
        logits = rng.normal(0, 1, (30, 3)) + np.eye(3)[np.arange(30) % 3]
        make_scored_run(tmp_path / "results" / run, tmp_path / "data", "dev", logits.tolist())
    return items


def make_vote(place: Path, rule: str) -> Path:
    where = ["--data", str(place / "data"), "--results", str(place / "results"), "--out", str(place / "voted")]
    vote([*RUNS, "--split", "dev", "--rule", rule, *where])
    return place / "voted"


def source_of(place: Path, items: list[Item], word: str) -> Source:
    return read_sources([word], items, place / "data" / "data_dev.json", "dev", place / "results")[0]


def claimed(place: Path, items: list[Item], word: str) -> Claim:
    found = claim_of(source_of(place, items, word), items)
    assert found is not None
    return found


def test_a_run_claims_what_its_scores_say(tmp_path: Path, items: list[Item]) -> None:
    rows = (tmp_path / "results" / "alpha" / "scores_dev.jsonl").read_text(encoding="utf-8").splitlines()
    logprobs = [json.loads(row)["logprobs"] for row in rows]
    turned = claimed(tmp_path, items[::-1], "alpha")
    assert turned.logprobs == pytest.approx(np.array(logprobs[::-1])), "in the order of the items"
    assert turned.probabilities == pytest.approx(np.exp(logprobs[::-1]))


@pytest.mark.parametrize("rule", ["soft", "weighted", "stack"])
def test_a_vote_by_probabilities_claims_them(tmp_path: Path, items: list[Item], rule: str) -> None:
    out = make_vote(tmp_path, rule)
    rows = [json.loads(row)["probabilities"] for row in (out / "votes_dev.jsonl").read_text("utf-8").splitlines()]
    for word in (str(out), str(out / "predictions_dev.json")):
        claim = claimed(tmp_path, items, word)
        assert claim.probabilities.tolist() == rows and claim.logprobs is not None
        assert claim.logprobs == pytest.approx(np.log(rows))


def test_a_hard_vote_has_shares_of_ballots(tmp_path: Path, items: list[Item]) -> None:
    claim = claimed(tmp_path, items, str(make_vote(tmp_path, "hard")))
    assert claim.logprobs is None
    answers = [source_of(tmp_path, items, run).ballot.answers for run in RUNS]
    for item, row in zip(items, claim.probabilities, strict=True):
        assert row.tolist() == [sum(one[item.id] == option for one in answers) / 3 for option in range(3)]


def test_a_file_of_answers_claims_nothing(tmp_path: Path, items: list[Item]) -> None:
    path = make_predictions(tmp_path / "predictions_dev.json", items, [0] * 30)
    assert claim_of(source_of(tmp_path, items, str(path)), items) is None


def test_a_probability_of_nothing_has_a_logarithm(tmp_path: Path, items: list[Item]) -> None:
    out = make_vote(tmp_path, "soft")
    change(out, lambda row: row | {"probabilities": np.eye(3)[int(row["answer"][-1]) - 1].tolist()})
    claim = claimed(tmp_path, items, str(out / "predictions_dev.json"))
    assert claim.logprobs is not None and np.isfinite(claim.logprobs).all()


def change(out: Path, how: Callable[[dict[str, Any]], dict[str, Any]], lines: int = 30) -> None:
    """Rewrites the first lines of the file of decisions."""
    path = out / "votes_dev.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [how(row) if place < lines else row for place, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda row: row | {"probabilities": [0.5, 0.5]}, "damaged: line 1: probabilities is"),
        (lambda row: row | {"probabilities": [0.5, 0.6, 0.1]}, "damaged: line 1: probabilities is"),
        (lambda row: row | {"probabilities": [1.5, -0.5, 0.0]}, "damaged: line 1: probabilities is"),
        (lambda row: row | {"probabilities": "many"}, "damaged: line 1: probabilities is"),
        (lambda row: row | {"counts": [0, 0, 0]}, "damaged: line 1: counts is"),
        (lambda row: row | {"counts": None}, "damaged: line 1: counts is"),
        (lambda row: [], "damaged: line 1: not the vote on an item"),
        (lambda row: row | {"id": "other"}, "has other answers than predictions_dev.json beside it"),
        (lambda row: row | {"answer": "inference_9"}, "has other answers than predictions_dev.json beside it"),
    ],
)
def test_other_decisions_than_the_vote_left_are_refused(
    tmp_path: Path, items: list[Item], how: Callable[[dict[str, Any]], Any], told: str
) -> None:
    out = make_vote(tmp_path, "soft")
    change(out, how, lines=1)
    source = source_of(tmp_path, items, str(out / "predictions_dev.json"))
    with pytest.raises(UserError, match=rf"votes_dev.jsonl (is )?{told}"):
        claim_of(source, items)
    with pytest.raises(UserError, match=r"other answers for dev than record\.json speaks of"):
        source_of(tmp_path, items, str(out))


def test_a_file_that_is_no_json_or_has_an_item_twice_is_refused(tmp_path: Path, items: list[Item]) -> None:
    out = make_vote(tmp_path, "hard")
    source = source_of(tmp_path, items, str(out / "predictions_dev.json"))
    file = out / "votes_dev.jsonl"
    whole = file.read_text(encoding="utf-8")
    for text, told in (("{", ""), (whole + whole, f": line 31: item {items[0].id} has a line already")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=rf"votes_dev\.jsonl is damaged{told}"):
            claim_of(source, items)
