"""The miniature's backbones as they come with the repository: pre-trained once, so that nobody has to wait for it, and
all machines start with the same weights.

They are what `python -m run.make_miniature --anew --keep` made of `resource/miniature/miniature.yaml` on one machine.
Where the values of the file that decide about them are others since, they do not count, and backbones are pre-trained.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.console.start import ours
from src.files.reading import read_json
from src.files.writing import write_json

PRETRAINED = ours("resource/miniature/pretrained")
NOTE = "made_of.json"
DECISIVE = ("seed", "tokenizer", "initialisation", "pretraining", "child", "backbones")
"""What of the miniature's values decides about its backbones."""
WORDS = ours("resource/miniature/prompt_words.txt")


def digest(values: Mapping[str, Any]) -> str:
    """Of the decisive values, and of the words that tokenizers are trained on."""
    deciding = {name: values[name] for name in DECISIVE} | {"words": WORDS.read_text(encoding="utf-8")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def fit(values: Mapping[str, Any], folder: Path = PRETRAINED) -> bool:
    """Whether the backbones in `folder` were made of these values."""
    note = folder / NOTE
    return note.is_file() and read_json(note) == {"values": digest(values)}


def copy(names: Sequence[str], target: Path, folder: Path = PRETRAINED) -> None:
    """Puts backbones into `target`, each under a temporary name first: a folder of the final name is complete."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        part = target / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder / name, part)
        part.rename(target / name)


def keep(source: Path, values: Mapping[str, Any], folder: Path = PRETRAINED) -> None:
    """Puts all backbones of `source` in place of those in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    copy(list(values["backbones"]), folder, source)
    write_json(folder / NOTE, {"values": digest(values)})
