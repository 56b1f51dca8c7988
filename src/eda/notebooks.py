"""The notebooks of `eda/`: running them, stripping their outputs, and refusing outputs that may not be committed.

A notebook is committed with the outputs of the sample corpus or with none. Every output and every picture holds the
digest of the corpus it was made from (src/eda/display.py). So the check can tell without a copy of the licensed corpus
that nothing of it is committed. If there is a copy on the disk, its sentences are looked for as well.
"""

import base64
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from src import task
from src.console.start import ours
from src.data import DATA, SPLITS, load_split, split_path
from src.eda.corpus import DATA_VARIABLE, SAMPLE, TASK_VARIABLE, sample_corpus
from src.eda.display import OUT_VARIABLE
from src.eda.words import texts_of
from src.figures import style

HOME = ours("eda")
NOTEBOOKS = {split: HOME / split / f"{split}_EDA.ipynb" for split in ("train", "test")}
CELL_SECONDS = 600
LONG_ENOUGH = 12
"""Characters of a sentence that is looked for. Shorter ones ("그래서 어떻게 됐어?") are in many dialogues."""


def read(path: str | Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def text_of(notebook: NotebookNode) -> str:
    """The notebook as JSON, with a line for each line of a cell and a final newline."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def stripped(notebook: NotebookNode) -> NotebookNode:
    """The same notebook, changed in place: without outputs, counts and what editors keep in it."""
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def executed(path: Path, data: Path | str, out: Path, task_file: Path = task.FILE) -> NotebookNode:
    """The notebook at `path`, run from its first cell to its last, on the corpus in `data` (a folder, or SAMPLE).

    Its pictures go to `out`/<split>. CellExecutionError when a cell fails.
    """
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = stripped(read(path))
    environment = os.environ | {
        DATA_VARIABLE: SAMPLE if data == SAMPLE else str(Path(data).resolve()),
        OUT_VARIABLE: str(out.resolve()),
        TASK_VARIABLE: str(task_file.resolve()),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # keeps the unused debugger of the kernel from a warning
    }
    with tempfile.TemporaryDirectory() as sockets:
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,  # the time of day would change every cell of every run
            resources={"metadata": {"path": str(path.parent)}},
            # Sockets are files in a folder of ours: other users of the machine could listen on a port.
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        )
        client.execute(env=environment)
    notebook.metadata.language_info = nbformat.from_dict({"name": "python"})
    return notebook


def problems(notebook: NotebookNode, name: str, digest: str, pictures: Mapping[str, bytes] | None = None) -> list[str]:
    """A line for each output that may not be committed; none for a stripped notebook.

    Outputs with the stamp of `digest` are allowed. With `pictures` (file name → bytes of the files beside the
    notebook), the pictures inside must be the same as the files.
    """
    found = []
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            where = f"{name}: cell {number}"
            stamp = output.get("metadata", {}).get("cci", {})
            if stamp.get("corpus") != digest:
                found.append(f"{where}: an output without the stamp of the sample corpus ({output.output_type})")
                continue
            picture = output.get("data", {}).get("image/png")
            if picture is None:
                continue
            png = base64.b64decode(picture)
            if style.stamp_of(png) != digest:
                found.append(f"{where}: a picture that was not drawn from the sample corpus")
            elif pictures is not None and pictures.get(stamp.get("file", "")) != png:
                found.append(f"{where}: the file {stamp.get('file')} beside the notebook is another picture")
    return found


def foreign_pictures(folder: Path, digest: str) -> list[str]:
    """A line for each PNG below `folder` that has another stamp than `digest`."""
    return [
        f"{path.as_posix()}: this picture was not drawn from the sample corpus"
        for path in sorted(folder.rglob("*.png"))
        if style.stamp_of(path.read_bytes()) != digest
    ]


def quotes(text: str, sentences: Iterable[str]) -> int:
    """How many of the sentences, short ones apart, are in the text."""
    flat = re.sub(r"\s+", " ", text)
    kept = {re.sub(r"\s+", " ", sentence).strip() for sentence in sentences}
    return sum(len(sentence) >= LONG_ENOUGH and sentence in flat for sentence in kept)


def check(home: Path = HOME, data: Path = DATA) -> list[str]:
    """A line for each reason why the notebooks and pictures below `home` may not be committed."""
    sample = sample_corpus()
    ours = {text for items in sample.splits.values() for text in texts_of(items)}
    there = [split for split in SPLITS if split_path(data, split).is_file()]
    licensed = {text for split in there for text in texts_of(load_split(data, split))} - ours

    found = foreign_pictures(home, sample.sha256)
    for path in sorted(home.rglob("*.ipynb")):
        notebook = read(path)
        beside = {file.name: file.read_bytes() for file in path.parent.glob("*.png")}
        found += problems(notebook, path.as_posix(), sample.sha256, beside)
        # Not the JSON text: it escapes the quotation marks of a sentence.
        quoted = quotes("\n".join(_strings(notebook)), licensed)
        if quoted:
            found.append(f"{path.as_posix()}: it holds {quoted} sentences of the corpus in {data}")
    return found


def _strings(value: Any) -> Iterable[str]:
    """Every text inside a notebook except encoded pictures."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "image/png":
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
