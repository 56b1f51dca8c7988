"""`python -m run.eda`: both notebooks on the sample corpus give what is committed; another corpus stays out of eda/."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from run import eda as command
from src import task
from src.console.cli import UserError
from src.data import Item
from src.eda import notebooks
from src.eda.corpus import SAMPLE, read_corpus, sample_corpus
from src.figures import style
from tests.conftest import make_item
from tests.eda.made import write_corpus
from tests.made_task import TASK_FILE, make_four

# Not held against what is committed: Kiwi's models compute in floats of the machine's width, so a rare word may be read
# differently elsewhere; and tokens change with every word of a prompt.
VARYING = ("find.options", "find.words", "find.word_cloud", "find.tokens", "find.distances")


def texts(path: Path) -> dict[str, list[Any]]:
    """Source of each code cell → the texts that it shows, but for `VARYING`."""
    return {
        cell.source: [value for output in cell.outputs for kind, value in output.data.items() if kind != "image/png"]
        for cell in notebooks.read(path).cells
        if cell.cell_type == "code" and not any(name in cell.source for name in VARYING)
    }


@pytest.mark.slow
@pytest.mark.thorough
def test_both_run_on_the_sample_and_give_what_is_committed(tmp_path: Path) -> None:
    assert command.main(["--sample", "--out", str(tmp_path)]) == 0
    digest = sample_corpus().sha256
    for split, path in notebooks.NOTEBOOKS.items():
        made = tmp_path / split / path.name
        assert texts(made) == texts(path), f"{path} is stale: python -m run.eda --sample"
        names = sorted(file.name for file in made.parent.iterdir())
        assert names == sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
        assert all(style.stamp_of(file.read_bytes()) == digest for file in made.parent.glob("*.png"))


@pytest.mark.slow
@pytest.mark.thorough
def test_another_corpus_goes_elsewhere_with_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_corpus(
        data,
        {
            "train": [make_item(n) for n in range(6)],
            "dev": [make_item(n) for n in range(6, 9)],
            "test": [make_item(n, output="") for n in range(9, 15)],
        },
    )
    with pytest.raises(UserError, match="found the folder of the committed notebooks; allowed: any other"):
        command.main(["--data", str(data), "--out", "eda"])
    (out / "test").mkdir(parents=True)
    (out / "test" / "test_old.png").write_bytes(b"")
    assert command.main(["--data", str(data), "--out", str(out), "--only", "test"]) == 0
    assert capsys.readouterr().out.startswith("data의 말뭉치: train 6")
    made = out / "test"
    assert not (made / "test_old.png").exists()
    assert (made / "test_EDA.ipynb").is_file()
    page = (made / "test_EDA.html").read_text(encoding="utf-8")
    assert "data의 말뭉치" in page and "공식 말뭉치" not in page and "data:image/png;base64" in page
    own = read_corpus(data).sha256
    stamps = {style.stamp_of(file.read_bytes()) for file in made.glob("*.png")}
    assert stamps == {own}
    found = notebooks.problems(notebooks.read(made / "test_EDA.ipynb"), "n", sample_corpus().sha256)
    assert len(found) > 20
    assert not (out / "train").exists()
    assert isinstance(read_corpus(data).splits["test"][0], Item)


def test_strip_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    copies = {}
    for split, path in notebooks.NOTEBOOKS.items():
        copies[split] = tmp_path / split / path.name
        copies[split].parent.mkdir()
        shutil.copy(path, copies[split])
    monkeypatch.setattr(notebooks, "NOTEBOOKS", copies)
    assert command.main(["--strip", "--only", "train"]) == 0
    assert all(not cell.get("outputs") for cell in json.loads(copies["train"].read_text(encoding="utf-8"))["cells"])
    assert copies["test"].read_bytes() == Path("eda/test/test_EDA.ipynb").read_bytes()

    assert command.main(["--check"]) == 0
    assert "nothing but the sample corpus" in capsys.readouterr().out
    monkeypatch.setattr(notebooks, "check", lambda data: ["eda/x.png: this picture was not drawn"])
    assert command.main(["--check"]) == 1
    assert "--strip" in capsys.readouterr().err


def test_half_a_corpus_is_told_of(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"test": [make_item(0)]})
    with pytest.raises(UserError, match="found test, but not train, dev"):
        command.main(["--data", str(tmp_path)])


def test_a_cell_that_fails_is_named(tmp_path: Path) -> None:
    import nbformat

    path = tmp_path / "broken.ipynb"
    path.write_text(notebooks.text_of(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])))
    with pytest.raises(UserError, match=r"broken\.ipynb stopped: ZeroDivisionError: division by zero"):
        command.run(path, SAMPLE, tmp_path, task.FILE)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_notebooks_work_on_the_task_of_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They run in other processes. The task has four options and no official corpus."""
    data, file = tmp_path / "data", tmp_path / "task.yaml"
    file.write_text(TASK_FILE, encoding="utf-8")
    splits = {"train": [make_four(n) for n in range(8)], "dev": [make_four(n) for n in range(8, 12)]}
    write_corpus(data, {**splits, "test": [make_four(n, output="") for n in range(12, 20)]})
    try:
        assert command.main(["--data", str(data), "--task", str(file), "--out", str(tmp_path / "out")]) == 0
        with pytest.raises(UserError, match="the task weather talk has no sample corpus"):
            command.main(["--sample", "--task", str(file)])
    finally:
        task.use(None)
    assert capsys.readouterr().out.startswith("data의 말뭉치: train 8, dev 4, test 8 items")
    train = (tmp_path / "out" / "train" / "train_EDA.html").read_text(encoding="utf-8")
    assert "가장 많은 유형은 Cause(50.0 %)" in train
    assert "정답은 1번 2개, 2번 2개, 3번 2개, 4번 2개입니다" in train
    assert "무작위로 고르면 25.0 %" in train and "발표된 값" not in train
    assert "측정값 가운데" in (tmp_path / "out" / "test" / "test_EDA.html").read_text(encoding="utf-8")
