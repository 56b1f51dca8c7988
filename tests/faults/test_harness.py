"""The short form of the harness: some trials of each kind, the same ones each time. harness.py has the long form."""

import json
from pathlib import Path

import pytest

from tests.faults import damages, harness, kills, together
from tests.faults.compare import Said, difference, error_line, fingerprint, leftovers
from tests.faults.scenarios import Scenes
from tests.faults.shim import compiler
from tests.faults.trials import Outcome, Problem, Trial
from tests.faults.world import Done, World

pytestmark = pytest.mark.faults


@pytest.mark.trains
@pytest.mark.skipif(compiler() is None, reason="no C compiler: the shim cannot be made")
def test_some_kills_and_full_disks(tmp_path: Path) -> None:
    world = World(tmp_path / "work")
    try:
        scenes = Scenes(world)
        outcomes = harness.try_all(scenes, kills.kill_trials(scenes, 3) + kills.full_trials(scenes, 1), jobs=1)
    finally:
        world.close()
    assert not any(outcome.problems for outcome in outcomes), harness.failures(outcomes)
    assert sum(not outcome.untried for outcome in outcomes) >= 4


@pytest.mark.trains
@pytest.mark.thorough
@pytest.mark.skipif(compiler() is None, reason="no C compiler: the shim cannot be made")
@pytest.mark.parametrize("times", [1, 3])
def test_short_form(times: int, tmp_path: Path) -> None:
    world = World(tmp_path / "work")
    try:
        scenes = Scenes(world)
        trials = kills.kill_trials(scenes, 3 * times) + kills.full_trials(scenes, 2 * times)
        trials += damages.trials(scenes, 4 * times)
        trials += [trial for trial in together.trials(scenes) if trial.kind == "pair"][:: 24 // times]
        outcomes = harness.try_all(scenes, trials, jobs=1)
    finally:
        world.close()
    assert not any(outcome.problems for outcome in outcomes), "\n".join(
        [harness.failures(outcomes), harness.table(outcomes)]
    )
    assert sum(not outcome.untried for outcome in outcomes) >= 8 * times


def test_the_table_counts_trials_and_not_problems() -> None:
    two = (Problem("mismatch", "a"), Problem("mismatch", "b"), Problem("leftover", "c"))
    outcomes = [Outcome(Trial("kill", "vote", "3:half"), two), Outcome(Trial("kill", "vote", "4:half"))]
    outcomes += [Outcome(Trial("kill", "vote", "5:half"), untried="not killed")]
    head, row, _ = harness.table(outcomes).splitlines()
    assert dict(zip(head.split(), row.split()[2:], strict=True)) == {
        **{"tried": "2", "failed": "1", "mismatch": "1", "leftover": "1"},
        **dict.fromkeys(("traceback", "silent", "message", "hang"), "–"),
    }
    told = harness.failures(outcomes)
    assert "--repeat kill:vote:3:half" in told and "not tried: kill:vote:5:half" in told


def test_results_are_equal_but_for_times(tmp_path: Path) -> None:
    for name, seconds, accuracy in (("one", 1.5, 0.5), ("same", 9.0, 0.5), ("other", 1.5, 0.6)):
        run = tmp_path / name / "run"
        (run / "adapter.part").mkdir(parents=True)
        record = {"seconds": seconds, "splits": {"dev": {"accuracy": accuracy, "seconds": seconds}}}
        (run / "record.json").write_text(json.dumps(record))
        (run / ".record.json.7.tmp").write_text("")
    one, same, other = (fingerprint(tmp_path / name) for name in ("one", "same", "other"))
    assert difference(same, one) == "" and difference(other, one) == "other: run/record.json"
    assert leftovers(tmp_path / "one") == ["run/.record.json.7.tmp"]


def test_a_message_is_one_error_and_exit_code_2() -> None:
    assert error_line(Done(2, "", "some warning\nerror: a: no.\n  b\n")) == "error: a: no.\n  b"
    assert error_line(Done(1, "", "error: a: no.\n")) is None
    assert error_line(Done(2, "", "Traceback (most recent call last)\nerror: a: no.\n")) is None
    assert error_line(Done(2, "", "error: a\nerror: b\n")) is None
    assert Said.by(Done(0, "x, 1.5 s\n", "")) == Said.by(Done(0, "x, 22.0 s\n", ""))


@pytest.mark.parametrize("damage", damages.DAMAGES)
def test_a_damage_changes_the_file(tmp_path: Path, damage: str) -> None:
    path, foreign = tmp_path / "file", tmp_path / "foreign"
    path.write_bytes(b"0123456789" * 10)
    foreign.write_bytes(b"other")
    assert damages.harm(path, damage, foreign)
    assert not path.exists() if damage == "delete" else path.read_bytes() != b"0123456789" * 10


def test_a_silent_or_nameless_end_is_a_problem() -> None:
    path = Path("run/record.json")
    assert [problem.kind for problem in damages._ended(Done(1, "", "Traceback (most recent"), path)] == ["traceback"]
    assert [problem.kind for problem in damages._ended(Done(2, "", "error: it is damaged. Delete it."), path)] == [
        "message"
    ]
    assert damages._ended(Done(2, "", "error: run/record.json is damaged. Delete it."), path) == []
