"""Output of a notebook's cells: the corpus, then a picture and two sentences for each question."""

import base64
import os
from pathlib import Path

from src import task
from src.console.start import ours
from src.eda.corpus import SAMPLE, TASK_VARIABLE, read_corpus
from src.eda.finding import Finding
from src.eda.view import View
from src.figures import style

OUT_VARIABLE = "CCI_EDA_OUT"
"""In the environment of a notebook: the folder for pictures."""
PRIVATE_OUT = ours("resource/results/eda")
"""Where pictures of any other corpus than the sample go: git ignores it."""


def open_view(split: str, against: str | None = None) -> View:
    """The first cell of a notebook: reads the task and the corpus, and shows which corpus it is."""
    if file := os.environ.get(TASK_VARIABLE):
        task.use(task.load_task(Path(file)))
    view = View(read_corpus(), split, against)
    _display({"text/markdown": f"**{view.source}**"}, view)
    return view


def show(view: View, finding: Finding) -> None:
    """Shows the picture and the two sentences, and keeps the picture as a file."""
    if finding.figure is not None:
        png = style.to_png(finding.figure, view.corpus.sha256, finding.says)
        file = picture_path(view, finding.slug)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        part.write_bytes(png)
        part.replace(file)
        picture = base64.b64encode(png).decode()
        _display({"image/png": picture, "text/plain": finding.says}, view, file=file.name)
    _display({"text/markdown": f"{finding.says}\n\n**그래서** {finding.so}"}, view)


def picture_path(view: View, slug: str) -> Path:
    """In the folder that the environment names; else beside the notebook for the sample corpus, and in a folder that
    git ignores for any other.
    """
    home = ours("eda") if view.corpus.kind == SAMPLE else PRIVATE_OUT
    return Path(os.environ.get(OUT_VARIABLE) or home) / view.split / f"{view.split}_{slug}.png"


def _display(data: dict[str, str], view: View, **more: str) -> None:
    """Shows it with the corpus' digest, by which src/eda/notebooks.py knows what may be committed."""
    from IPython.display import display

    display(data, raw=True, metadata={"cci": {"corpus": view.corpus.sha256, **more}})
