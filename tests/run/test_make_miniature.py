"""run.make_miniature makes what is missing, parents first, and is quick where nothing is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from run import make_miniature
from src.console.start import ROOT


def test_what_is_complete_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(make_miniature, "make_backbones", lambda names, *rest: seen.append(names))
    make_miniature.main(["--out", str(tmp_path), "--only", "spow12", "polar"])
    assert seen == [["bllossom", "qwen2", "qwen2it", "spow12", "solarko", "polar"]]
    sizes = {
        split: len(json.loads((tmp_path / "data" / f"data_{split}.json").read_text())) for split in ("dev", "test")
    }
    assert sizes == {"dev": 151, "test": 605}
    for name in ("bllossom", "qwen2"):
        (tmp_path / "backbones" / name).mkdir(parents=True)
    make_miniature.main(["--out", str(tmp_path), "--only", "spow12"])
    assert seen[1:] == [["qwen2it", "spow12"]]


def test_nothing_to_make_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom run import make_miniature\n"
        "make_miniature.make_backbones = lambda *rest: None\n"
        f"make_miniature.main(['--out', {str(tmp_path)!r}])\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
