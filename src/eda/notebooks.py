"""The notebooks of `eda/`: running them, stripping their outputs, and refusing outputs that may not be committed.

A notebook is committed with the outputs of the sample corpus or with none. Every output carries the digest of the
corpus it was made from (src/eda/display.py puts it there, and into the pictures), so that a check needs no copy of the
licensed corpus to know that it is not in there; where one lies on the disk, its sentences are looked for as well.
"""

import base64
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat

from src.console.start import ours
from src.data import DATA, SPLITS, load_split, split_path
from src.eda.corpus import DATA_VARIABLE, SAMPLE, sample_corpus
from src.eda.display import OUT_VARIABLE
from src.eda.words import texts_of
from src.figures import style as figures

HOME = ours("eda")
NOTEBOOKS = {split: HOME / split / f"{split}_EDA.ipynb" for split in ("train", "test")}
CELL_SECONDS = 600
# A sentence this long is somebody's; shorter ones ("그래서 어떻게 됐어?") are in any two dialogues.
LONG_ENOUGH = 12


def read(path: str | Path) -> Any:
    """The notebook as nbformat has it."""
    return nbformat.read(path, as_version=4)


def text_of(notebook: Any) -> str:
    """The notebook as JSON, one line per line of a cell, with a final newline."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def stripped(notebook: Any) -> Any:
    """The notebook itself, without outputs, counts and what editors keep in it."""
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def executed(path: Path, data: Path | str, out: Path) -> Any:
    """The notebook at `path`, run from its first cell to its last, on the corpus in `data` (a folder, or SAMPLE).

    Its pictures go to `out`/<split>. CellExecutionError when a cell fails.
    """
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = stripped(read(path))
    environment = os.environ | {
        DATA_VARIABLE: SAMPLE if data == SAMPLE else str(Path(data).resolve()),
        OUT_VARIABLE: str(out.resolve()),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning of the kernel's debugger, which nobody starts
    }
    with tempfile.TemporaryDirectory() as sockets:
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,  # the time of day would change every cell of every run
            resources={"metadata": {"path": str(path.parent)}},
            # Sockets in a folder of ours: no port that another user of the machine could listen on.
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        )
        client.execute(env=environment)
    notebook.metadata.language_info = nbformat.from_dict({"name": "python"})
    return notebook


def problems(notebook: Any, name: str, digest: str, pictures: Mapping[str, bytes] | None = None) -> list[str]:
    """A line for each output that may not be committed; none for a stripped notebook.

    Allowed are outputs with the stamp of `digest`. With `pictures` (file name → bytes of those beside the notebook),
    the pictures inside must be the same as the files.
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
            if figures.stamp_of(png) != digest:
                found.append(f"{where}: a picture that was not drawn from the sample corpus")
            elif pictures is not None and pictures.get(stamp.get("file", "")) != png:
                found.append(f"{where}: the file {stamp.get('file')} beside the notebook is another picture")
    return found


def foreign_pictures(folder: Path, digest: str) -> list[str]:
    """A line for each PNG below `folder` that was not drawn from the sample corpus."""
    return [
        f"{path.as_posix()}: this picture was not drawn from the sample corpus"
        for path in sorted(folder.rglob("*.png"))
        if figures.stamp_of(path.read_bytes()) != digest
    ]


def quotes(text: str, sentences: Iterable[str]) -> int:
    """How many of the sentences, if long enough to be somebody's, are in the text."""
    flat = re.sub(r"\s+", " ", text)
    kept = {re.sub(r"\s+", " ", sentence).strip() for sentence in sentences}
    return sum(len(sentence) >= LONG_ENOUGH and sentence in flat for sentence in kept)


def check(home: Path = HOME, data: Path = DATA) -> list[str]:
    """What keeps the notebooks and pictures below `home` from being committed, a line each; none when all is well."""
    sample = sample_corpus()
    ours = {text for items in sample.splits.values() for text in texts_of(items)}
    there = [split for split in SPLITS if split_path(data, split).is_file()]
    licensed = {text for split in there for text in texts_of(load_split(data, split))} - ours

    found = foreign_pictures(home, sample.sha256)
    for path in sorted(home.rglob("*.ipynb")):
        notebook = read(path)
        beside = {file.name: file.read_bytes() for file in path.parent.glob("*.png")}
        found += problems(notebook, path.as_posix(), sample.sha256, beside)
        # As JSON has them, a sentence's quotation marks would be escaped.
        quoted = quotes("\n".join(_strings(notebook)), licensed)
        if quoted:
            found.append(f"{path.as_posix()}: it holds {quoted} sentences of the corpus in {data}")
    return found


def _strings(value: Any) -> Iterable[str]:
    """Every text inside a notebook but for encoded pictures."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "image/png":
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
