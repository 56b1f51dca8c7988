from pathlib import Path

import pytest

from tests import launched

JOB = launched.ROOT / "tests/console/failing_rank.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("all", 2, "error: found 1, allowed 2. Give 2.\n"),
        ("user", 2, "rank 1: error: found 1, allowed 2. Give 2.\n"),
        ("bug", 1, "rank 1: Traceback (most recent call last):"),
        ("interrupted", 130, "rank 1: interrupted; the same command goes on from here\n"),
    ],
)
def test_a_failure_ends_all_and_is_said_once(how: str, code: int, words: str, tmp_path: Path) -> None:
    both = launched.start([JOB, how], tmp_path)
    codes = launched.end(both)
    out, err = launched.said(tmp_path, 0)
    assert codes == [code, code] and out == "rank 0\n" and launched.said(tmp_path, 1) == ("", "")
    assert err.startswith(words) and (err == words or how == "bug"), err
    assert how != "bug" or err.rstrip().endswith("KeyError: 'what was there'")


@pytest.mark.slow
def test_a_command_for_one_process_refuses_to_be_one_of_several(tmp_path: Path) -> None:
    codes = launched.end(launched.start(["-m", "run.vote"], tmp_path))
    assert codes == [2, 2] and "started as one of 2 processes" in launched.said(tmp_path, 0)[1]
