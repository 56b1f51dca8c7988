import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from run.check_submission import main
from src import task
from src.console.cli import UserError
from src.files.writing import write_json
from tests.made_runs import make_predictions, make_split


def test_ready_or_everything_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = make_split(tmp_path / "data", "test", 4, labelled=False)
    file = make_predictions(tmp_path / "answers.json", items, [0, 1, 1, 0])
    main([str(file), "--data", str(tmp_path / "data")])
    printed = capsys.readouterr().out
    assert "4 items, order and text as in" in printed and "inference_1 2, inference_2 2, inference_3 0" in printed
    assert "the official test split has 605 items" in printed and printed.endswith("ready to hand in\n")
    task.use(replace(task.current(), official=task.Official({"test": 4})))
    main([str(file), "--data", str(tmp_path / "data" / "data_test.json")])
    assert "official" not in capsys.readouterr().out
    task.use(None)
    words = [str(file), "--data", str(tmp_path / "data")]
    file.write_text(file.read_text(encoding="utf-8").replace('"inference_2"\n', '"inference_5"\n'), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "run.check_submission", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not ready to be handed in" in done.stderr and "2 problems" in done.stderr


def test_a_run_knows_its_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = make_split(tmp_path / "data", "test", 4, labelled=False)
    write_json(tmp_path / "run" / "record.json", {"data": {"train": {"path": tmp_path / "data" / "data_train.json"}}})
    main([str(make_predictions(tmp_path / "run" / "predictions_test.json", items, [0] * 4))])
    assert "ready to hand in" in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        main([str(tmp_path / "x.json")])
