"""Tokenizers come from this disk, or are the miniature's."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.eda.corpus import Corpus, sample_corpus
from src.eda.questions.prompts import tokens
from src.eda.tokens import find_encoders
from src.eda.view import View
from src.prompt.encode import Encoder
from tests.conftest import make_item
from tests.eda.made import read
from tests.made_task import FOUR, PROMPT, four_items, working_on


def test_tokenizers_come_from_this_disk_alone(
    tmp_path: Path, backbone_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    (tmp_path / "near.yaml").write_text(json.dumps({"model_id": str(backbone_folder("qwen2"))}))
    # What a download leaves: a branch that names a commit, and the commit's files.
    cache = tmp_path / "cache" / "models--somebody--downloaded"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("c0ffee")
    shutil.copytree(backbone_folder("solarko"), cache / "snapshots" / "c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    recipe = {"model_id": "somebody/downloaded", "chat_template": "{{ messages[-1].content }}\n"}
    (tmp_path / "downloaded.yaml").write_text(json.dumps(recipe))
    (tmp_path / "far.yaml").write_text(json.dumps({"model_id": "nobody/has-this-model", "chat_template": "{{ x }}"}))
    own = Corpus("own", {"train": read([make_item(0)])}, "")
    found = find_encoders(own, tmp_path)
    assert sorted(found) == ["downloaded", "near"]
    assert asked == []
    assert isinstance(found["near"], Encoder)
    assert len(View(own, "train").parts) == 1


def test_a_backbone_that_the_miniature_lacks_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "here.yaml").write_text(json.dumps({"backbone": "qwen2"}))
    ninth = {"backbone": "ninth", "model_id": "nobody/has-this-model", "chat_template": "{{ x }}"}
    (tmp_path / "ninth.yaml").write_text(json.dumps(ninth))
    assert list(find_encoders(sample_corpus(), tmp_path)) == ["mini-qwen2"]


@pytest.mark.slow
def test_a_prompt_that_does_not_know_the_task_is_left_out(tmp_path: Path, backbone_folder: Any) -> None:
    """Another task takes the recipes whose prompt is for it; the shipped one says what is wrong with a prompt."""
    (tmp_path / "four.yaml").write_text(PROMPT, encoding="utf-8")
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name, prompt in (("published", "entry"), ("mine", str(tmp_path / "four.yaml"))):
        recipe = {"model_id": str(backbone_folder("qwen2")), "prompt": prompt}
        (recipes / f"{name}.yaml").write_text(json.dumps(recipe))
    with working_on(FOUR):
        view = View(Corpus("own", {"train": four_items(6)}, "0" * 16), "train")
        view.__dict__["encoders"] = find_encoders(view.corpus, recipes)
        assert list(view.encoders) == ["mine"]
        finding = tokens(view)
    assert finding.figure is not None
    assert re.search(r"평균 \d+토큰\(mine\)", finding.says)
    with pytest.raises(UserError, match=r"four\.yaml"):
        find_encoders(sample_corpus(), recipes)
