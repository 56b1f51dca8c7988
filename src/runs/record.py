"""Everything about a run folder `resource/results/<run>/`: its paths, its scores, its record.

Files are written whole or not at all, and a file that is not whole is never read.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.console.cli import UserError, nearest
from src.console.start import ours
from src.data import OUTPUTS, SPLITS

RESULTS = ours("resource/results")

# What can change a score; the rest of an environment cannot.
PACKAGES = ("torch", "transformers", "tokenizers", "peft", "trl", "accelerate", "bitsandbytes", "numpy", "scipy")

# Derived values are recomputed on reading; exp and log of another machine may differ in the last digits.
TOLERANCE = 1e-6


RESULT = {"items": int, "orders": int, "correct": int, "accuracy": int | float, "data": str, "data_sha256": str}
"""What a record says of a scored split, each of a kind or null, beside what only people read."""

MODEL, ADAPTER = "model", "adapter"
"""Folder of a run's best weights: all of them, or the adapter's."""
CHECKPOINTS = "checkpoints"


def scores_path(run: str | Path, split: str, orders: int = 1) -> Path:
    """Scores by one order of the options; those of more lie beside them."""
    return Path(run) / f"scores_{split}{_beside(orders)}.jsonl"


def predictions_path(run: str | Path, split: str, orders: int = 1) -> Path:
    return Path(run) / f"predictions_{split}{_beside(orders)}.json"


def reasoning_path(run: str | Path, split: str, orders: int = 1) -> Path:
    return Path(run) / f"reasoning_{split}{_beside(orders)}.jsonl"


def results_key(orders: int = 1) -> str:
    """Under which key a record has what came out on each split."""
    return "splits" if orders == 1 else f"splits_{orders}orders"


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`: for nouns whose plural is an s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def orders_words(orders: int) -> str:
    return counted(orders, "order")


def _beside(orders: int) -> str:
    return "" if orders == 1 else f".{orders}orders"


def record_path(run: str | Path) -> Path:
    return Path(run) / "record.json"


def find_run(name: str | None) -> Path | None:
    """The folder of the run called `name`, or at that path; None for a model of the hub or a folder of weights."""
    for path in (Path(name or ""), RESULTS / (name or "")):
        if name and any((path / file).is_file() for file in ("record.json", "recipe.yaml")):
            return path
    return None


def began_with(folder: Path) -> dict[str, Any]:
    """What an unfinished run in `folder` began with, by its inputs.json; nothing for a run that begins now. UserError
    when the file is damaged or gone.
    """
    if not (folder / CHECKPOINTS).is_dir() or not (folder / "recipe.yaml").is_file():
        return {}
    path = folder / "inputs.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for split in ("train", "dev"):
            digest, items = found[split]
            if not isinstance(digest, str) or not isinstance(items, int):
                raise ValueError(f"{split} is {found[split]!r}")
        if not isinstance(found["prompt"], str) or not isinstance(found.get("template", {}), dict):
            raise ValueError("prompt or template is of another kind")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} holds an unfinished run, and its {path.name}, without which it cannot go on, is damaged or gone "
            f"({error}). Delete the folder to train again, or give another --name."
        ) from error
    assert isinstance(found, dict)
    return found


def write_text(path: str | Path, text: str) -> None:
    """UTF-8 with `\\n` line ends, whole or not at all: a reader sees the old file or the new one. Makes the folders."""
    write_texts({Path(path): text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """`write_text` for files that belong together: no name changes before all texts are safely on the disk."""
    written: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            written[temporary] = path
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in written.items():
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Make room, or give another place.") from error
    finally:
        for temporary in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other process is in `folder`, which is made; UserError when one is. Ends with the process, too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}. Give another place.") from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being trained by another process. Wait for it, or give another --name."
            ) from None
        except OSError:  # some network file systems lock no folders
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # one in which nothing came to be
                folder.rmdir()
    finally:
        os.close(descriptor)


def write_json(path: str | Path, obj: Any) -> None:
    """Indented JSON. Paths become text; numbers that are not finite (a diverged loss) become null: JSON has no NaN."""
    write_text(path, json.dumps(_json_value(obj), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, values as in `write_json`."""
    write_text(path, "".join(json.dumps(_json_value(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


@dataclass(frozen=True)
class ItemScores:
    """What a run thought of one item.

    `orders`: which option stands under which letter, "201" = A shows option 2, B option 0, C option 1.
    At least one, none twice.
    `logits`: for each order the logits of the letters A, B, C (natural units, finite).
    `samples`, `agreement`: where chains of reasoning were generated, how many for each order, and the share of them
    that by themselves choose the item's prediction; else None.
    UserError when orders and logits do not fit together or a logit is not finite.
    """

    id: str
    orders: tuple[str, ...]
    logits: tuple[tuple[float, float, float], ...]
    samples: int | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        if not self.orders or len(set(self.orders)) < len(self.orders) or len(self.orders) != len(self.logits):
            raise UserError(
                f"item {self.id}: found the orders {self.orders} with {len(self.logits)} rows of logits; "
                "allowed: different orders, at least one, and a row for each"
            )
        if any(sorted(order) != ["0", "1", "2"] for order in self.orders):
            raise UserError(f"item {self.id}: found orders {self.orders}; allowed: 012 021 102 120 201 210")
        if any(len(row) != 3 or not all(map(math.isfinite, row)) for row in self.logits):
            raise UserError(
                f"item {self.id}: found the logits {self.logits}; allowed: three finite numbers per order. "
                "A model that gives others has diverged in training or overflows in float16: use bfloat16 or float32."
            )

    @property
    def logprobs(self) -> tuple[float, float, float]:
        """Per option (not letter), in nats.

        Log-softmax over the three letters of each order, averaged per option over the orders, then log-softmax again:
        the geometric mean of the orders' probabilities, normalised.
        """
        by_option: tuple[list[float], ...] = ([], [], [])
        for order, row in zip(self.orders, self.logits, strict=True):
            for option, logprob in zip(order, _log_softmax(row), strict=True):
                by_option[int(option)].append(logprob)
        # fsum rounds once, so options that saw the same values in another sequence tie exactly.
        first, second, third = _log_softmax([math.fsum(values) / len(values) for values in by_option])
        return first, second, third

    @property
    def prediction(self) -> int:
        """The likeliest option (0..2); of exact ties, which `margin` 0.0 shows, the first."""
        logprobs = self.logprobs
        return logprobs.index(max(logprobs))

    @property
    def margin(self) -> float:
        """Best minus second-best log-probability, in nats."""
        _, second, best = sorted(self.logprobs)
        return best - second


def write_scores(path: str | Path, rows: Sequence[ItemScores]) -> None:
    """One item a line. logprobs, prediction and margin are written for the reader and checked by `read_scores`."""
    assert rows and len({row.id for row in rows}) == len(rows), "scores are of at least one item, each once"
    write_jsonl(
        path,
        (
            {
                "id": row.id,
                "orders": row.orders,
                "logits": row.logits,
                "logprobs": row.logprobs,
                "prediction": OUTPUTS[row.prediction],
                "margin": row.margin,
                **({} if row.samples is None else {"samples": row.samples, "agreement": row.agreement}),
            }
            for row in rows
        ),
    )


def read_scores(path: str | Path) -> list[ItemScores]:
    """The rows in the file's order. UserError when there is no file or it is not just what `write_scores` writes."""
    path = Path(path)
    split, _, beside = path.stem.removeprefix("scores_").partition(".")
    remedy = f"Score it again: python -m run.test --model_id {path.parent}" + f" --split {split}" * (split in SPLITS)
    remedy += f" --orders {beside.removesuffix('orders')}" if beside else ""
    if not path.is_file():
        raise UserError(f"{path}: no such file. {remedy}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8. {remedy}") from error
    if not text.endswith("\n"):
        raise UserError(f"{path} is damaged: {'its last line is cut off' if text else 'it is empty'}. {remedy}")
    rows: list[ItemScores] = []
    seen: set[str] = set()
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            row = _read_row(line)
            if row.id in seen:
                raise ValueError(f"item {row.id} has a line already")
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path} is damaged: line {number}: {reason}. {remedy}") from error
        seen.add(row.id)
        rows.append(row)
    return rows


def _read_row(line: str) -> ItemScores:
    found = json.loads(line)
    if not isinstance(found, dict) or not isinstance(found["id"], str):
        raise ValueError("not the scores of an item")
    logits: list[tuple[float, float, float]] = []
    for row in found["logits"]:
        first, second, third = map(float, row)
        logits.append((first, second, third))
    chains = (int(found["samples"]), float(found["agreement"])) if "samples" in found else (None, None)
    scores = ItemScores(found["id"], tuple(found["orders"]), tuple(logits), *chains)
    derived = [*scores.logprobs, scores.margin]
    written = [*map(float, found["logprobs"]), float(found["margin"])]
    if len(written) != len(derived) or any(
        abs(one - other) > TOLERANCE for one, other in zip(derived, written, strict=True)
    ):
        raise ValueError(f"item {scores.id}: logprobs or margin do not follow from its logits")
    if found["prediction"] != OUTPUTS[scores.prediction]:
        raise ValueError(f"item {scores.id}: prediction {found['prediction']!r} does not follow from its logits")
    return scores


def read_record(run: str | Path) -> dict[str, Any]:
    """The record of a finished run. UserError when there is none (the run is not finished) or it is damaged."""
    run = Path(run)
    path = record_path(run)
    if not run.is_dir():
        runs = sorted(entry.name for entry in run.parent.iterdir() if entry.is_dir()) if run.parent.is_dir() else []
        there = f"runs there: {', '.join(runs)}" if runs else "there are no runs there"
        raise UserError(f"{run}: no such run; {there}.{nearest(run.name, runs)}")
    if not path.is_file():
        raise UserError(
            f"{run} is not finished: it has no {path.name}. The command that started it goes on where it stopped."
        )
    try:
        return parse_record(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}. Delete it and start the command that made the run again."
        ) from error


def parse_record(path: Path) -> dict[str, Any]:
    """A record whose parts are of the kinds that are written. ValueError says which is not, or why it is no JSON."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("not an object")
    keys = [key for key in record if key == results_key() or re.fullmatch(r"splits_\d+orders", key)]
    for key in ("recipe", "prompt", "template", "data", *keys):
        if not isinstance(record.get(key, {}), dict):
            raise ValueError(f"{key} is no object")
    for key, split, result in [(where, *one) for where in keys for one in record[where].items()]:
        if not isinstance(result, dict):
            raise ValueError(f"{key}: {split} is no object")
        wrong = [name for name, kind in RESULT.items() if not isinstance(result.get(name), kind | None)]
        if wrong:
            raise ValueError(f"{key}: {split}: {wrong[0]} is {result[wrong[0]]!r}")
        if not 0 <= (result.get("correct") or 0) <= (result.get("items") or math.inf):
            raise ValueError(f"{key}: {split}: {result['correct']} of {result['items']} items are right")
    return record


def versions() -> dict[str, str]:
    """Versions of what computes a score (packages that are not installed are left out), without importing any of it."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this code, with "-dirty" when tracked files differ from it; None without git or a repository."""
    root = Path(__file__).resolve().parents[2]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            # Code unpacked from an archive inside another repository has no commit; git would give that repository's.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)},
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = top + math.log(math.fsum(math.exp(value - top) for value in values))
    return [value - total for value in values]


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
