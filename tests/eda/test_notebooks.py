"""The committed notebooks hold the sample corpus or nothing, and the check would see anything else."""

import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from src.data import dump_items, split_path
from src.eda import findings, notebooks
from src.eda.corpus import sample_corpus
from src.eda.finding import Finding
from src.eda.view import View
from src.figures import style
from tests.conftest import make_item
from tests.eda.made import write_corpus

SENTENCE = "어제 산 우산을 지하철에 두고 내렸지 뭐야."


def test_what_is_committed_may_be() -> None:
    """Where the licensed corpus lies in resource/data, its sentences are looked for as well."""
    assert notebooks.check() == []


@pytest.mark.parametrize("split", notebooks.NOTEBOOKS)
def test_committed_notebooks_have_outputs_and_read_like_an_article(split: str) -> None:
    notebook = notebooks.read(notebooks.NOTEBOOKS[split])
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code[1:])
    assert max(len(cell.source.splitlines()) for cell in code) <= 8
    assert code[0].outputs == []
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 12
    beside = sorted(path.name for path in notebooks.NOTEBOOKS[split].parent.glob("*.png"))
    assert beside == sorted(output.metadata["cci"]["file"] for output in pictures)
    assert all(name.startswith(f"{split}_") for name in beside), "a picture under another split's name"
    assert all(path.stat().st_size < 400_000 for path in notebooks.NOTEBOOKS[split].parent.glob("*.png"))
    # A heading before each picture.
    headings = [cell for cell in notebook.cells if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    assert len(headings) >= len(pictures)


@pytest.mark.slow
@pytest.mark.parametrize("split", notebooks.NOTEBOOKS)
def test_committed_sentences_are_those_of_the_code(split: str) -> None:
    """The quick questions again, without a kernel: the notebooks are not stale. tests/run/test_eda.py runs them all."""
    view = View(sample_corpus(), split)
    text = notebooks.NOTEBOOKS[split].read_text(encoding="utf-8")
    for question in (findings.sizes, findings.odd, findings.categories):
        finding: Finding = question(view)
        assert json.dumps(finding.says, ensure_ascii=False)[1:-1] in text


def test_stripping_leaves_source_alone() -> None:
    notebook = notebooks.read(notebooks.NOTEBOOKS["train"])
    sources = [cell.source for cell in notebook.cells]
    notebook.metadata["somebody"] = {"path": "/home/somebody"}
    notebook.cells[1].metadata["collapsed"] = True
    stripped = notebooks.stripped(notebook)
    assert [cell.source for cell in stripped.cells] == sources
    text = notebooks.text_of(stripped)
    assert "image/png" not in text and "somebody" not in text and "collapsed" not in text
    assert text == notebooks.text_of(notebooks.stripped(copy.deepcopy(stripped)))
    assert notebooks.problems(stripped, "x", "any digest") == []


def png(digest: str) -> bytes:
    figure, _ = style.panels([""], "", "")
    return style.to_png(figure, digest, "")


def notebook_with(*outputs: dict[str, Any]) -> Any:
    import nbformat

    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output(**output) for output in outputs])
    return nbformat.v4.new_notebook(cells=[cell])


def shown(digest: str, picture: bytes | None = None, text: str = "", file: str = "a.png") -> dict[str, Any]:
    data = {"image/png": base64.b64encode(picture).decode()} if picture else {"text/markdown": text}
    return {"output_type": "display_data", "data": data, "metadata": {"cci": {"corpus": digest, "file": file}}}


def test_outputs_without_the_sample_stamp_are_refused() -> None:
    ours, theirs = "a" * 16, "b" * 16
    good = png(ours)

    def complaints(*outputs: dict[str, Any], pictures: dict[str, bytes] | None = None) -> list[str]:
        return notebooks.problems(notebook_with(*outputs), "n.ipynb", ours, pictures)

    assert complaints(shown(ours, text="좋다"), shown(ours, good), pictures={"a.png": good}) == []
    assert len(complaints(shown(theirs, text="나쁘다"))) == 1
    assert len(complaints({"output_type": "stream", "text": SENTENCE})) == 1
    assert len(complaints({"output_type": "error", "ename": "E", "evalue": SENTENCE})) == 1
    assert len(complaints({"output_type": "execute_result", "data": {"text/plain": SENTENCE}})) == 1
    assert "not drawn from the sample" in complaints(shown(ours, png(theirs)))[0]
    assert "another picture" in complaints(shown(ours, good), pictures={"a.png": png(ours) + b"x"})[0]
    assert "n.ipynb: cell 1" in complaints(shown(ours, good), pictures={})[0]


@pytest.mark.slow
def test_the_check_sees_pictures_and_sentences_of_the_licensed_corpus(tmp_path: Path) -> None:
    home, data = tmp_path / "eda", tmp_path / "data"
    home.mkdir()
    digest = sample_corpus().sha256
    said = [{"speaker": 1, "utterance": SENTENCE, "utterance_id": "1"}]
    write_corpus(data, {"dev": [make_item(0, conversation=said, reference_id=["1"])]})
    (home / "n.ipynb").write_text(notebooks.text_of(notebook_with(shown(digest, text="아무 말"))), encoding="utf-8")
    assert notebooks.check(home, data) == []

    (home / "n.ipynb").write_text(
        notebooks.text_of(notebook_with(shown(digest, text=f"예: {SENTENCE}"))), encoding="utf-8"
    )
    assert notebooks.check(home, tmp_path / "nothing") == []
    (line,) = notebooks.check(home, data)
    assert "1 sentences of the corpus" in line
    assert SENTENCE not in line

    (home / "n.ipynb").unlink()
    (home / "p.png").write_bytes(png("b" * 16))
    (line,) = notebooks.check(home, data)
    assert "p.png" in line
    assert split_path(data, "dev").read_text(encoding="utf-8") != dump_items([])


def test_sentences_are_found_across_line_breaks_and_short_ones_are_not() -> None:
    assert notebooks.quotes("하나  둘\n셋 넷 다섯 여섯 일곱", ["둘 셋 넷 다섯 여섯 일곱"]) == 1
    assert notebooks.quotes("그래 좋아", ["그래 좋아"]) == 0
