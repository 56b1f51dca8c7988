"""run.make_miniature makes what is missing, parents first, and is quick where nothing is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from run import make_miniature
from src.console.cli import UserError
from src.console.start import ROOT
from src.toy import miniature, pretrained
from src.toy.miniature_models import make_model
from src.toy.miniature_tokenizers import make_tokenizer, tokenizer_texts


def test_what_is_complete_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(make_miniature, "make_backbones", lambda names, *rest: seen.append(names))
    make_miniature.main(["--out", str(tmp_path), "--only", "spow12", "polar", "--anew"])
    assert seen == [["bllossom", "qwen2", "qwen2it", "spow12", "solarko", "polar"]]
    sizes = {
        split: len(json.loads((tmp_path / "data" / f"data_{split}.json").read_text())) for split in ("dev", "test")
    }
    assert sizes == {"dev": 151, "test": 605}
    for name in ("bllossom", "qwen2"):
        (tmp_path / "backbones" / name).mkdir(parents=True)
    make_miniature.main(["--out", str(tmp_path), "--only", "spow12", "--anew"])
    assert seen[1:] == [["qwen2it", "spow12"]]


def test_nothing_to_make_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom run import make_miniature\n"
        f"make_miniature.main(['--out', {str(tmp_path)!r}])\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_backbones_come_with_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_miniature, "make_backbones", None)
    (tmp_path / "backbones/polar.part").mkdir(parents=True)
    make_miniature.main(["--out", str(tmp_path), "--only", "polar"])
    assert "bllossom, solarko, polar as they come with the repository" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "backbones").iterdir()} == {"bllossom", "solarko", "polar"}
    for path in (tmp_path / "backbones/polar").iterdir():
        assert path.read_bytes() == (pretrained.PRETRAINED / "polar" / path.name).read_bytes()


def test_other_values_are_pre_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    values = miniature.load_values()
    assert pretrained.fit(values), "resource/miniature/pretrained is of other values: run.make_miniature --anew --keep"
    assert pretrained.fit({**values, "recipes": {}, "corpus": {}})
    values["backbones"]["kogemma"]["model"]["sliding_window"] = 128
    assert not pretrained.fit(values)
    monkeypatch.setattr(miniature, "load_values", lambda: values)
    monkeypatch.setattr(make_miniature, "make_backbones", lambda names, *rest: seen.append(names))
    make_miniature.main(["--out", str(tmp_path), "--only", "kogemma"])
    assert seen == [["bllossom", "kogemma"]]


def test_keeping_replaces_all(tmp_path: Path) -> None:
    values = miniature.load_values()
    for name in values["backbones"]:
        (tmp_path / "new" / name).mkdir(parents=True)
        (tmp_path / "new" / name / "config.json").write_text(name)
    kept = tmp_path / "kept"
    (kept / "gone").mkdir(parents=True)
    assert not pretrained.fit(values, kept)
    pretrained.keep(tmp_path / "new", values, kept)
    assert pretrained.fit(values, kept) and not (kept / "gone").exists()
    assert (kept / "eeve/config.json").read_text() == "eeve"
    for flags in (["--keep"], ["--keep", "--anew", "--only", "eeve"]):
        with pytest.raises(UserError, match="--keep needs --anew, and no --only"):
            make_miniature.main(["--out", str(tmp_path / "new"), *flags])


def test_what_comes_with_the_repository_is_what_would_be_made() -> None:
    values = miniature.load_values()
    assert {path.name for path in pretrained.PRETRAINED.iterdir()} == {*values["backbones"], pretrained.NOTE}
    texts = tokenizer_texts(values)
    for short in ("bllossom", "polar", "kogemma", "spow12"):
        folder = pretrained.PRETRAINED / short
        spec = values["backbones"][short]
        made, kept = make_tokenizer(spec["tokenizer"], texts), AutoTokenizer.from_pretrained(folder)
        assert made.get_vocab() == kept.get_vocab() and made.chat_template == kept.chat_template
        network = AutoModelForCausalLM.from_pretrained(folder)
        expected = make_model(spec["model"], made, values["initialisation"]).state_dict()
        assert {name: value.shape for name, value in network.state_dict().items()} == {
            name: value.shape for name, value in expected.items()
        }
        assert str(network.dtype).removeprefix("torch.") == spec["dtype"]
