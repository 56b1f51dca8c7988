"""What a cell of a notebook shows: the corpus, then a picture and two sentences for each question."""

import base64
import os
from pathlib import Path
from typing import Any

from src.console.start import ours
from src.eda.corpus import SAMPLE, read_corpus
from src.eda.finding import Finding
from src.eda.view import View
from src.figures import style as figures

OUT_VARIABLE = "CCI_EDA_OUT"
"""In the environment of a notebook: the folder for pictures."""
PRIVATE_OUT = ours("resource/results/eda")
"""Where pictures of any other corpus than the sample go: git ignores it."""


def open_view(split: str, against: str | None = None) -> View:
    """The first cell of a notebook: reads the corpus and says which one it is."""
    view = View(read_corpus(), split, against)
    _display({"text/markdown": f"**{view.source}**"}, view)
    return view


def show(view: View, finding: Finding) -> None:
    """Shows the picture and the two sentences, and keeps the picture as a file."""
    if finding.figure is not None:
        png = figures.to_png(finding.figure, view.corpus.sha256, finding.says)
        file = picture_path(view, finding.slug)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        part.write_bytes(png)
        part.replace(file)
        _display({"image/png": png, "text/plain": finding.says}, view, file=file.name)
    _display({"text/markdown": f"{finding.says}\n\n**그래서** {finding.so}"}, view)


def picture_path(view: View, slug: str) -> Path:
    """Beside the notebook for the sample corpus; else in a folder that git ignores. The environment has its way."""
    home = ours("eda") if view.corpus.kind == SAMPLE else PRIVATE_OUT
    return Path(os.environ.get(OUT_VARIABLE) or home) / view.split / f"{view.split}_{slug}.png"


def _display(data: dict[str, Any], view: View, **more: str) -> None:
    """Shows it, stamped with the corpus: src/eda/notebooks.py refuses to have outputs of another one committed."""
    from IPython.display import display

    encoded = {
        kind: base64.b64encode(value).decode() if isinstance(value, bytes) else value for kind, value in data.items()
    }
    display(encoded, raw=True, metadata={"cci": {"corpus": view.corpus.sha256, **more}})
