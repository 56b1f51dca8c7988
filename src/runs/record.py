"""`record.json` of a run or a vote: its settings, data, versions and results.

Records of all versions can be read. Keys that an older record lacks have defaults. Unknown keys of a later version are
kept as they are, so rewriting the record does not lose them.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError
from src.files.digests import Digests
from src.files.locks import at_work
from src.files.paths import record_path, refuse_missing
from src.files.reading import parse_json, read_text
from src.files.sealed import canonical_sha256
from src.files.writing import as_json, write_json
from src.model.recipes import FIELDS, KINDS, Recipe
from src.runs.facts import (
    DataFile,
    Part,
    PromptFacts,
    Result,
    TaskFacts,
    TemplateFacts,
    is_kind,
    kinds_of,
    parse_digests,
    parse_result,
)

DIGEST = "sha256"
"""The record's key for a digest of all others."""


def results_key(orders: int = 1) -> str:
    """The record's key for the results of all splits."""
    return "splits" if orders == 1 else f"splits_{orders}orders"


def _orders_of(key: str) -> int | None:
    """The number of orders whose results stand under `key`; None for another key."""
    found = re.fullmatch(r"splits(?:_(\d+)orders)?", key)
    return int(found[1] or 1) if found else None


class Edited(ValueError):
    """A record was changed after it was written. Older versions keep the digest, which they do not know, as it is."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a finished run or of a vote.

    settings   the recipe as it stands in the file; None for a vote, and for another folder of answers alone
    data       split → the file that the run was trained on, or that chose its weights
    training   what the training leaves; None for an untrained model
    adapter    where a LoRA adapter of another tool was taken from, and the digests of its files there
    weights    name of the run beside this one whose weights it uses, where they are not its own
    dialogue   how the dialogues of the items were changed (`src/items/changes.py`), where they were
    files      name → size and sha256 of the weights and tokenizer files that were trained, in the folder of that run
    base_files the same of the base model's files
    by_orders  number of orders of the options → split → what came out
    letters    letter → token id
    stored     as in `Part`
    """

    run: str
    settings: Mapping[str, Any] | None = None
    prompt: PromptFacts = field(default_factory=PromptFacts)
    template: TemplateFacts = field(default_factory=TemplateFacts)
    base_revision: str | None = None
    tokenizer_revision: str | None = None
    versions: Mapping[str, str] | None = None
    commit: str | None = None
    task: TaskFacts | None = None
    data: Mapping[str, DataFile] = field(default_factory=dict)
    trainable_parameters: int | None = None
    parameters: int | None = None
    training: Mapping[str, Any] | None = None
    device: str | None = None
    adapter: Mapping[str, Any] | None = None
    weights: str | None = None
    dialogue: str | None = None
    files: Mapping[str, Any] | None = None
    base_files: Mapping[str, Any] | None = None
    by_orders: Mapping[int, Mapping[str, Result]] = field(default_factory=dict)
    letters: Mapping[str, int] | None = None
    peak_memory_bytes: int | None = None
    seconds: float | None = None
    stored: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, run: str | Path) -> "Record":
        """The record of a finished run. UserError when there is none (the run is not finished), when it is damaged, or
        when the run is not of the current task. Names keys of later versions in one line.
        """
        path = record_path(run)
        refuse_missing(path.parent)
        if not path.is_file():
            busy = f" It {words}." if (words := at_work(path.parent)) else ""
            raise UserError(
                f"{run} is not finished: it has no {path.name}.{busy} "
                "Start the command that made it again: it goes on where it stopped."
            )
        try:
            record = cls.read(path)
        except Edited as error:
            raise UserError(
                f"{path}: {error}. If you edited it by hand, or an older version of this repository wrote it, "
                f"delete the line of {DIGEST} in it, and it counts as it is. If not, it is damaged: put it back from a "
                f"copy, or delete {path.name} and start the command that made the run again."
            ) from error
        except ValueError as error:
            raise UserError(
                f"{path} is damaged: {error}. Delete it and start the command that made the run again."
            ) from error
        refuse_other_task(record.task, path.parent)
        if unknown := record.unknown():
            _say_once(f"{path}: unknown to this version, and kept as they are: {', '.join(unknown)}")
        return record

    @classmethod
    def read(cls, path: Path) -> "Record":
        """ValueError says which part is of another kind than is written, or why the file is no JSON."""
        record = cls.parse(parse_json(read_text(path)))
        return record if record.run else replace(record, run=path.parent.name)

    @classmethod
    def parse(cls, stored: Any) -> "Record":
        """As `read`, from the parsed JSON."""
        if not isinstance(stored, dict):
            raise ValueError("not an object")
        if DIGEST in stored and stored[DIGEST] != _digest(stored):
            raise Edited(f"its content does not have the {DIGEST} that stands in it")
        stored = {key: value for key, value in stored.items() if key != DIGEST}
        if is_kind(stored, "weights", str) and Path(stored["weights"]).name != stored["weights"]:
            raise ValueError(f"weights is {stored['weights']!r}, which is no name of a folder")
        plain = {key: stored[key] for key, kinds in _plain().items() if is_kind(stored, key, kinds)}
        for key in ("files", "base_files"):
            parse_digests(plain.get(key), key)
        by_orders = {
            orders: {split: parse_result(one, f"{key}: {split}") for split, one in _object(stored, key).items()}
            for key in stored
            if (orders := _orders_of(key)) is not None
        }
        return cls(
            **{"run": "", **plain},
            settings=_settings(_object(stored, "recipe")) if "recipe" in stored else None,
            prompt=PromptFacts.parse(stored.get("prompt", {}), "prompt"),
            template=TemplateFacts.parse(stored.get("template", {}), "template"),
            task=TaskFacts.parse(stored["task"], "task") if "task" in stored else None,
            data={split: DataFile.parse(one, f"data: {split}") for split, one in _object(stored, "data").items()},
            by_orders=by_orders,
            stored=stored,
        )

    def save(self, run: str | Path) -> None:
        """Writes `record.json` in the folder of the run, whole or not at all, with a digest of itself."""
        value = json.loads(as_json(self.as_json()))
        # The digest stands first: whoever deletes its line leaves JSON, which the last line's comma would spoil.
        write_json(record_path(run), {DIGEST: _digest(value), **value})

    def as_json(self) -> dict[str, Any]:
        """The file's keys in their order, with what has changed; those of a new record in the order of `_keys`."""
        if not self.stored:
            return self._keys()
        now, before = self._keys(), Record.parse(self.stored)._keys()
        changed = [key for key, value in now.items() if key not in before or value != before[key]]
        return {**self.stored, **{key: value for key, value in now.items() if key in (*changed, results_key())}}

    def _keys(self) -> dict[str, Any]:
        """The file's keys in the order of a new record; some are left out where they have no value."""
        found: dict[str, Any] = {"run": self.run}
        if self.settings is not None:
            found |= {"recipe": self.settings, "prompt": self.prompt.as_json(), "template": self.template.as_json()}
            found |= {"base_revision": self.base_revision}
            if self.settings.get("tokenizer"):
                found |= {"tokenizer_revision": self.tokenizer_revision}
            found |= {"versions": self.versions, "commit": self.commit}
        if self.task is not None:
            found["task"] = self.task.as_json()
        if self.settings is not None:
            found |= {"data": {split: file.as_json() for split, file in self.data.items()}}
            found |= {key: getattr(self, key) for key in ("trainable_parameters", "parameters", "training", "device")}
        own = {key: getattr(self, key) for key in ("adapter", "weights", "dialogue", "files", "base_files")}
        found |= {key: value for key, value in own.items() if value is not None}
        for orders, results in sorted({1: {}, **self.by_orders}.items()):
            found[results_key(orders)] = {split: result.as_json() for split, result in results.items()}
        late = {key: getattr(self, key) for key in ("letters", "peak_memory_bytes", "seconds")}
        return found | {key: value for key, value in late.items() if value is not None}

    def unknown(self) -> list[str]:
        """Keys of the file that this version does not know, those of its parts with the part in front."""
        found = [*self._unknown_here(), *(f"recipe.{key}" for key in self.unknown_settings)]
        parts: dict[str, Part] = {"prompt": self.prompt, "template": self.template}
        parts |= {f"data.{split}": file for split, file in self.data.items()}
        for orders, results in self.by_orders.items():
            parts |= {f"{results_key(orders)}.{split}": result for split, result in results.items()}
        return found + [f"{name}.{key}" for name, part in parts.items() for key in part.unknown()]

    def _unknown_here(self) -> list[str]:
        known = {*_plain(), "recipe", "prompt", "template", "task", "data"}
        return [key for key in self.stored if key not in known and _orders_of(key) is None]

    @property
    def is_vote(self) -> bool:
        """Whether there is no model: a vote, or another folder of answers alone."""
        return self.settings is None

    @property
    def has_weights(self) -> bool:
        """Whether the model is more than its base: trained here, or with an adapter of another tool."""
        return self.training is not None or self.adapter is not None

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The run's recipe; settings that the file lacks have their defaults. A vote has none."""
        assert self.settings is not None, self.run
        return Recipe(**self.known_settings)

    @property
    def pinned_recipe(self) -> Recipe:
        """The recipe with the commits that were loaded; unchanged where an older record names none."""
        recipe = self.recipe
        return recipe.replace(
            revision=self.base_revision or recipe.revision,
            tokenizer_revision=self.tokenizer_revision or recipe.tokenizer_revision,
        )

    @property
    def unknown_settings(self) -> dict[str, Any]:
        """Settings of a later version's recipe."""
        return {key: value for key, value in (self.settings or {}).items() if key not in FIELDS}

    @property
    def known_settings(self) -> dict[str, Any]:
        return {key: value for key, value in (self.settings or {}).items() if key in FIELDS}

    def weights_in(self, folder: Path) -> Path:
        """Where the weights of this run, which lies in `folder`, are: there, or in the run beside it that it names."""
        return folder.with_name(self.weights) if self.weights else folder

    @property
    def noted_files(self) -> Digests:
        return parse_digests(self.files, "files")

    @property
    def notes_files(self) -> bool:
        """Whether the record is of a version that notes files."""
        return self.files is not None or any(one.files for by in self.by_orders.values() for one in by.values())

    @property
    def noted_base(self) -> Digests:
        return parse_digests(self.base_files, "base_files")

    @property
    def commits(self) -> dict[str, str | None]:
        """The commits that were loaded, as `hub.pin` takes them."""
        return {"base_revision": self.base_revision, "tokenizer_revision": self.tokenizer_revision}

    @property
    def splits(self) -> Mapping[str, Result]:
        """Split → what came out by one order of the options."""
        return self.results(1)

    def results(self, orders: int) -> Mapping[str, Result]:
        """Split → what came out by so many orders of the options."""
        return self.by_orders.get(orders, {})

    def with_result(self, split: str, result: Result, orders: int = 1) -> "Record":
        return replace(self, by_orders={**self.by_orders, orders: {**self.results(orders), split: result}})

    def with_results_of(self, earlier: "Record") -> "Record":
        """This record with the results and the unknown keys of `earlier`, which it replaces."""
        same = {
            key: getattr(earlier, key) for key in ("prompt", "template") if getattr(earlier, key) == getattr(self, key)
        }
        settings = {**(self.settings or {}), **earlier.unknown_settings}
        made = replace(self, by_orders=earlier.by_orders, settings=settings, **same)
        made = replace(made, files=self.files or earlier.files, base_files=self.base_files or earlier.base_files)
        return Record.parse({**made.as_json(), **{key: earlier.stored[key] for key in earlier._unknown_here()}})

    def refreshed(self, run: str | Path) -> "Record":
        """This record with the results that its folder has by now, since another process may have added some."""
        if not record_path(run).is_file():
            return self
        there = Record.load(run)
        return there if there.stored == self.stored else self.with_results_of(there)

    def without_results(self) -> "Record":
        stored = {key: value for key, value in self.stored.items() if _orders_of(key) is None}
        return replace(self, by_orders={}, stored=stored)


def _digest(stored: Mapping[str, Any]) -> str:
    return canonical_sha256({key: value for key, value in stored.items() if key != DIGEST})


class OtherTask(UserError):
    """The run is not of the current task."""


def refuse_other_task(then: TaskFacts | None, run: Path) -> None:
    """`OtherTask` when a run is not of the current task. One that names none is of the task in the repository."""
    official, now = task.official(), task.current()
    then = then or TaskFacts(name=official.name, sha256=official.sha256)
    if then.sha256 == now.sha256:
        return
    same = then.name == now.name
    told = f"another version of the task {now.name}" if same else f"the task {then.name}, and not of {now.name}"
    file = task.FILE if then.sha256 == official.sha256 else "FILE"
    raise OtherTask(f"{run} is of {told}. Give the file of its task: --task {file}")


@functools.cache
def _plain() -> Mapping[str, Any]:
    """The keys of a record whose value is a field as it stands in the file → its classes."""
    parts = ("settings", "prompt", "template", "task", "data", "by_orders", "stored")
    return {key: kinds for key, kinds in kinds_of(Record).items() if key not in parts}


def _settings(stored: dict[str, Any]) -> dict[str, Any]:
    """`stored`, the settings of a recipe. ValueError when one is of another kind than is written."""
    for name, kind in KINDS.items():
        is_kind(stored, name, kind, "recipe: ")
    return stored


def _object(stored: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = stored.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} is no object")
    return value


@functools.cache
def _say_once(line: str) -> None:
    print(line)
