"""The table of measured steps, `resource/speeds.yaml`: what the plan's hours are computed from.

Its entries come from records of `run.bench` (`kept`). All of it is measured but `fixed_seconds`, which the bench fits
to the single steps it timed. What is computed from the entries is in src/plan/times.py.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from src.console.cli import UserError
from src.console.start import ours
from src.files.kinds import fits
from src.files.reading import read_text
from src.files.yaml_files import dump_yaml, read_yaml
from src.model.devices import peak_tflops

SPEEDS = ours("resource/speeds.yaml")
CAPTURED = "captured"
"""What a record says of a row whose whole steps were captured as CUDA graphs; else it says why not."""
SCORING = "scoring"
"""The method of a row that scores."""
SCORING_ROW = "score-1"
"""The row that the time of scoring is computed from: a step is one pass over the test split in one order."""
VERSIONS = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
"""Packages whose versions an entry names."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One entry: a step of one item (or a pass that scores) as it was measured."""

    row: str
    """Of run.bench, and so backbone and cap_gib."""
    backbone: str
    cap_gib: float | None
    card: str
    versions: Mapping[str, str]
    method: str
    """As in a recipe, or `SCORING`."""
    objective: str
    dropout: float
    unpacks: bool
    """Whether NF4 weights are unpacked in every pass, rather than once before training."""
    recomputed: float
    """Share of the layers that checkpointing recomputes."""
    optimizer: str
    captured: bool
    tokens: float
    """Computed in a step, without padding: the mean, and so `seconds`."""
    seconds: float
    fixed_seconds: float | None
    """The part of `seconds` that does not grow with the tokens; None where single steps were not timed."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What a new measurement has to share to take this one's place."""
        return self.row, self.backbone, self.cap_gib, self.captured


@functools.cache
def measured(path: Path = SPEEDS) -> tuple[Step, ...]:
    """The entries of the table."""
    hints = get_type_hints(Step)
    found = []
    for place, values in enumerate(read_yaml(path) or (), 1):
        wrong = [f"{key}: found {values.get(key)!r}" for key in hints if not fits(values.get(key), hints[key])]
        if wrong or values.keys() != hints.keys():
            raise UserError(f"{path}: entry {place}: {'; '.join(wrong) or f'its keys are not {sorted(hints)}'}.")
        found.append(Step(**values))
    return tuple(found)


def measured_with(steps: Sequence[Step]) -> str:
    """Where `steps` were measured, in words: the cards and the versions of torch."""
    places = {(step.card, step.versions["torch"]) for step in steps}
    return "; ".join(f"{card}, torch {version}" for card, version in sorted(places))


def kept(steps: Sequence[Step], record: Mapping[str, Any]) -> list[Step]:
    """`steps` with those of a record of `run.bench`, in place of entries with the same key. Left out are rows that
    failed, or whose guard did. UserError where the record is not of a GPU of known speed, or not of all layers.
    """
    if peak_tflops(record["device"]) is None:
        raise UserError(f"a record of {record['device']} has no place here: its bf16 peak is not in the table of GPUs.")
    if record["layers"] != record["of_layers"]:
        raise UserError(f"a record of {record['layers']} layers of {record['of_layers']} has no place here.")
    new = [
        _step(row, record)
        for row in record["rows"].values()
        if "failed" not in row
        and row.get("guard", {}).get("agree", True)
        and (row["name"] == SCORING_ROW or "fixed_seconds" in row)
    ]
    if not new:
        raise UserError("the record has no row of ours with one item a step, and no score-1.")
    taken = {step.key for step in new}
    return sorted(
        [*(step for step in steps if step.key not in taken), *new], key=lambda step: (step.row, step.backbone)
    )


def _step(row: Mapping[str, Any], record: Mapping[str, Any]) -> Step:
    scores = row["kind"] == SCORING
    return Step(
        row=row["name"],
        backbone=record["backbone"],
        cap_gib=record["cap_gib"],
        card=record["device"],
        versions={name: record["versions"].get(name, "unknown") for name in VERSIONS},
        method=SCORING if scores else row["method"],
        objective=row["objective"],
        dropout=row["dropout"],
        unpacks=row["method"] == "qlora" and not row.get("dequantised"),
        recomputed=round(row.get("recomputed", 0.0), 3),
        optimizer=row.get("optimizer", ""),
        captured=row.get("captured") == CAPTURED,
        tokens=round(row["unique_tokens"] / row["steps"], 1),
        seconds=round(row["seconds"] / row["steps"], 5),
        fixed_seconds=round(row["fixed_seconds"], 5) if "fixed_seconds" in row else None,
    )


def text_of(steps: Sequence[Step], path: Path) -> str:
    """The table as the text of its file, under the comment that stands at the head of `path`."""
    lines = read_text(path, 2**20).splitlines(keepends=True)
    comment = [line for line in lines if line.startswith("#")]
    return "".join(comment) + dump_yaml([dataclasses.asdict(step) for step in steps])
