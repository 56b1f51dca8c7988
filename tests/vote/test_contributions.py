from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from src.data import Item, load_items
from src.vote import contributions as module
from src.vote.ballots import Source
from src.vote.contribution_table import conclusion
from src.vote.contributions import Contributions, Panel, contributions, greedy
from src.vote.voting import Ballot, hard_vote
from src.worth.metrics import chance_range
from tests.made_runs import make_split


def made_items(folder: Path, count: int) -> list[Item]:
    """Three a dialogue; the labels go 0, 1, 2, 0, …"""
    make_split(folder, "dev", count)
    return load_items(folder / "data_dev.json")


def source(name: str, items: Sequence[Item], logprobs: np.ndarray | None, answers: Sequence[int] = ()) -> Source:
    """With log-probabilities, or with answers alone."""
    ids = [item.id for item in items]
    if logprobs is None:
        ballot = Ballot(name, dict(zip(ids, answers, strict=True)))
    else:
        chosen = logprobs.argmax(axis=1).tolist()
        rows = [tuple(map(float, row)) for row in logprobs]
        ballot = Ballot(name, dict(zip(ids, chosen, strict=True)), dict(zip(ids, rows, strict=True)))
    return Source(ballot, Path(name), name, "")


def sure(answers: np.ndarray, probability: float) -> np.ndarray:
    """Log-probabilities that give each answer this probability."""
    found = np.full((len(answers), 3), np.log((1 - probability) / 2))
    found[np.arange(len(answers)), answers] = np.log(probability)
    return found


@pytest.fixture
def three(tmp_path: Path) -> tuple[list[Item], list[Source]]:
    """60 items; `good` knows all labels, `one` and `other` give the same wrong answer to the first 45, less surely."""
    items = made_items(tmp_path, 60)
    labels = np.arange(60) % 3
    wrong = np.where(np.arange(60) < 45, (labels + 1) % 3, labels)
    sources = [source("good", items, sure(labels, 0.98))]
    return items, [*sources, *(source(name, items, sure(wrong, 0.5)) for name in ("one", "other"))]


def by_name(found: Contributions) -> dict[str, module.Contribution]:
    return {one.run: one for one in found.voters}


def test_a_run_that_hurts_is_told(three: tuple[list[Item], list[Source]]) -> None:
    found = contributions("hard", *three)
    assert (found.items, found.dialogues, found.accuracy, found.oracle, found.all_right) == (60, 20, 0.25, 1.0, 0.25)
    voters = by_name(found)
    # Two against one are outvoted; without one of them the surer of two decides.
    for name in ("one", "other"):
        voter = voters[name]
        assert (voter.accuracy, voter.without, voter.verdict) == (0.25, 1.0, "hurts")
        assert (voter.gain.only_one, voter.gain.only_other, voter.gain.difference) == (0, 45, -0.75)
        assert voter.gain.p == binomtest(0, 45).pvalue and voter.corrected_p == pytest.approx(3 * voter.gain.p)
        low, high = voter.gain.interval
        assert -1 < low < -0.75 < high < 0
    assert (voters["good"].without, voters["good"].gain.p, voters["good"].verdict) == (0.25, 1.0, "not told apart")
    assert [pair.runs for pair in found.pairs] == [("good", "one"), ("good", "other"), ("one", "other")]
    assert [pair.agreement for pair in found.pairs] == [0.25, 0.25, 1.0]
    assert [pair.double_fault for pair in found.pairs] == [0.0, 0.0, 0.75]
    assert "one, other hurt: drop them" in conclusion(found)
    assert "a choice of runs is better than the vote of all" in conclusion(found)


def test_the_greedy_selection_takes_the_best_and_no_more(three: tuple[list[Item], list[Source]]) -> None:
    found = contributions("hard", *three).selection
    assert [(step.run, step.accuracy) for step in found.path] == [("good", 1.0), ("one", 1.0), ("other", 0.25)]
    assert (list(found.chosen), found.folds, found.accuracy) == (["good"], 5, 1.0)
    assert found.gain.difference == 0.75 and found.gain.p < 0.001
    assert [one.chosen for one in contributions("hard", *three).voters] == [5, 0, 0]


def test_three_that_need_each_other_help(tmp_path: Path) -> None:
    """Each is wrong on another third: the vote of three is always right, that of any two is not."""
    items, labels = made_items(tmp_path, 90), np.arange(90) % 3
    third = np.arange(90) % 9 // 3
    sources = [
        source(str(own), items, sure(np.where(third == own, (labels + 1) % 3, labels), 0.6 + own / 10))
        for own in range(3)
    ]
    found = contributions("hard", items, sources)
    assert (found.accuracy, found.oracle, found.all_right) == (1.0, 1.0, 0.0)
    # Without "0" the surer "2" decides where the other two differ, and is wrong on its third.
    assert by_name(found)["0"].without == pytest.approx(2 / 3) and by_name(found)["0"].verdict == "helps"
    assert list(found.selection.chosen) == ["0", "1", "2"] and found.selection.accuracy == 1.0
    assert "0, 1, 2 help: keep them; a choice of runs is not told apart" in conclusion(found)


def test_a_choice_among_noise_is_flattered_where_it_was_made(tmp_path: Path) -> None:
    rng, items = np.random.default_rng(13), made_items(tmp_path, 150)
    sources = [source(f"noise{own:02}", items, sure(rng.integers(0, 3, 150), 0.6)) for own in range(14)]
    found = contributions("hard", items, sources).selection
    low, high = chance_range(150)
    assert low <= found.accuracy <= high, "nested, it is chance"
    assert max(step.accuracy for step in found.path) > high, "on the items chosen on, it is not"


@pytest.mark.parametrize("rule", ["soft", "weighted", pytest.param("stack", marks=pytest.mark.thorough)])
def test_fitted_rules_are_tried_on_other_dialogues(tmp_path: Path, rule: str) -> None:
    rng, items, labels = np.random.default_rng(14), made_items(tmp_path, 90), np.arange(90) % 3
    knowing = np.where(rng.random(90) < 0.7, labels, rng.integers(0, 3, 90))
    sources = [source("knows", items, sure(knowing, 0.8))]
    sources += [source(f"noise{own}", items, sure(rng.integers(0, 3, 90), 0.9)) for own in range(3)]
    found = contributions(rule, items, sources)
    assert found.accuracy == found.selection.path[-1].accuracy > 0.6
    assert by_name(found)["knows"].gain.difference > 0.2 and by_name(found)["knows"].verdict == "helps"
    assert by_name(found)["knows"].chosen == 5 and found.selection.path[0].run == "knows"
    panel, seen = Panel(rule, items, sources), np.arange(60)
    path, chosen = greedy(panel, seen)
    # Nothing of the items that it was not to see has a part in the choice.
    panel.labels = np.where(np.arange(90) < 60, panel.labels, 0)
    panel.hits = panel.answers == panel.labels
    assert greedy(panel, seen) == (path, chosen)


def test_the_hard_vote_is_that_of_the_vote(three: tuple[list[Item], list[Source]]) -> None:
    items, sources = three
    panel = Panel("hard", items, sources)
    verdicts = hard_vote([item.id for item in items], [sources[0].ballot, sources[2].ballot])
    hits = [verdict.answer == item.label for verdict, item in zip(verdicts, items, strict=True)]
    assert panel.vote([2, 0], np.arange(60)).tolist() == hits


def test_runs_with_answers_alone_can_be_left_out_too(tmp_path: Path) -> None:
    items = made_items(tmp_path, 12)
    labels = [number % 3 for number in range(12)]
    found = contributions("hard", items, [source(name, items, None, labels) for name in ("a", "b", "c")])
    assert {one.without for one in found.voters} == {1.0}
    assert list(found.selection.chosen) == ["a"]
    assert conclusion(found).startswith("No single run can be told to help or to hurt")
    assert found.as_json()["voters"][0]["verdict"] == "not told apart"


def test_votes_counted_together_are_those_counted_one_by_one(tmp_path: Path) -> None:
    items, draw = made_items(tmp_path, 60), np.random.default_rng(5)
    sources = [source(f"run-{run}", items, np.log(draw.dirichlet([1, 1, 1], 60))) for run in range(5)]
    sources.append(source("without-scores", items, None, draw.integers(0, 3, 60).tolist()))
    panel, ids = Panel("hard", items, sources), [item.id for item in items]
    ties = 0
    for chosen in ((0,), (0, 5), (0, 1, 2), (1, 2, 3, 4), (0, 1, 2, 3, 4, 5)):
        verdicts = hard_vote(ids, [sources[place].ballot for place in chosen])
        ties += sum(bool(one.tied) for one in verdicts)
        right = [one.answer == item.label for one, item in zip(verdicts, items, strict=True)]
        assert panel.vote(chosen, np.arange(60)).tolist() == right
    assert ties > 20
