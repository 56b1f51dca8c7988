"""The official JSON: reading it whole or not at all, and writing it back with answers.

A file is a list of items (see `resource/data/sample.json`). Two rules hold everywhere:

- The official text is never touched: `Item.source` is the JSON object as it stood in the file, and a submission is
  a copy of it with `output` filled.
- The other fields of `Item` are for reading and prompting, so they are regular: text is NFC, an utterance given as a
  JSON number is its text (`7` is "7"), options are stripped of surrounding blanks, `output` is an index or None.
  Utterances keep their blanks and newlines; ids stay as they are.
"""

import copy
import hashlib
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from src.cli import UserError, nearest
from src.start import ours

DATA = ours("resource/data")
"""Where the corpus lies, unless said otherwise."""
CATEGORIES = ("원인", "후행사건", "전제", "동기", "반응")
OUTPUTS = ("inference_1", "inference_2", "inference_3")
SPLITS = ("train", "dev", "test")

# More lines than this scroll the first ones, which usually explain the rest, out of sight.
PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Utterance:
    """One turn. `speaker` is 1 or 2 (a file may also write "1" or "2"); `text` may be blank and may hold newlines."""

    id: str
    speaker: int
    text: str


@dataclass(frozen=True)
class Item:
    """One question.

    `targets`: utterance ids, in the file's order. `label`: index of the right option (0..2), or None without `output`.
    """

    id: str
    dialogue: tuple[Utterance, ...]
    targets: tuple[str, ...]
    category: str
    options: tuple[str, str, str]
    label: int | None
    source: dict[str, Any] = field(repr=False, compare=False)

    @property
    def target_utterances(self) -> tuple[Utterance, ...]:
        """The utterances named in `targets`, in dialogue order."""
        return tuple(utterance for utterance in self.dialogue if utterance.id in self.targets)

    @cached_property
    def dialogue_key(self) -> str:
        """16 hexadecimal digits of speakers and texts, not of ids: equal for the items of one dialogue, in any file."""
        turns = [[utterance.speaker, utterance.text] for utterance in self.dialogue]
        return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:16]


def load_items(path: str | Path, *, labelled: bool | None = None) -> list[Item]:
    """All items of a file, in its order. With `labelled=True` each must have a label; otherwise it may lack one.

    UserError names all problems of the file at once (beyond `PROBLEMS_SHOWN`, their count): nothing is dropped.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: {'this is a folder, not a file' if path.is_dir() else 'no such file'}. {_listing(path.parent)}"
        )
    items, problems = parse_items(path.read_bytes(), path.name)
    if labelled:
        problems += missing_labels(items, path.name)
    if problems:
        raise UserError(problem_lines(f"{path} cannot be used", problems))
    return items


def load_split(folder: str | Path, split: str, labelled: bool | None = None) -> list[Item]:
    """`load_items` of `data_<split>.json`. UserError when it is missing: what lies in the folder, how to fill it."""
    path = split_path(folder, split)
    if path.parent.is_file():
        raise UserError(f"{folder} is a file, where the folder of data_{split}.json is needed.")
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. {_listing(path.parent)}\n"
            "Make it from the official download: "
            f"python -m run.prepare_data 대화맥락추론_데이터.zip --out {path.parent}"
        )
    return load_items(path, labelled=labelled)


def load_data(data: Path, split: str) -> tuple[list[Item], Path]:
    """The items and their file. `data` is a JSON file, or a folder that holds `data_<split>.json`."""
    if data.suffix == ".json":
        return load_items(data), data
    return load_split(data, split), split_path(data, split)


def split_path(folder: str | Path, split: str) -> Path:
    """Where `run.prepare_data` puts a split and every other command looks for it."""
    assert split in SPLITS, split
    return Path(folder) / f"data_{split}.json"


def predictions(items: Sequence[Item], answers: Sequence[int]) -> list[dict[str, Any]]:
    """The submission: copies of the official objects, in the order of `items`, `output` filled.

    `answers`: per item the index of an option; 0..2 become "inference_1".."inference_3".
    """
    assert len(items) == len(answers), (len(items), len(answers))
    assert all(0 <= answer < len(OUTPUTS) for answer in answers), answers
    return [
        copy.deepcopy(item.source) | {"output": OUTPUTS[answer]} for item, answer in zip(items, answers, strict=True)
    ]


def dump_items(raw: list[dict[str, Any]]) -> str:
    """The official JSON text: readable Korean, two blanks of indent, a final newline."""
    return json.dumps(raw, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def sha256(path: str | Path) -> str:
    """Hexadecimal digest of the file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def parse_items(content: bytes, name: str) -> tuple[list[Item], list[str]]:
    """The sound items of a file's bytes and one line per problem. Nobody may use the items while there are problems.

    `name` begins each line. Labels may be missing here; `missing_labels` asks for them.
    """
    raw, problems = _parse_json(content, name)
    if raw is None and problems:
        return [], problems
    if not isinstance(raw, list):
        return [], [*problems, f'{name}: found {_found(raw)}; allowed: a list of items, [{{"id": …}}, …]']
    if not raw:
        return [], [*problems, f"{name}: the list is empty; allowed: at least one item"]

    items: list[Item] = []
    first_position: dict[str, int] = {}
    for position, entry in enumerate(raw, start=1):
        item_id = entry.get("id") if isinstance(entry, dict) else None
        where = f"{name}: item {position}" + (f" ({item_id})" if _is_id(item_id) else "")
        item, faults = _parse_item(entry)
        if isinstance(item_id, str) and first_position.setdefault(item_id, position) != position:
            faults.insert(
                0, f"id: found again, item {first_position[item_id]} has it already; every id may appear once"
            )
        problems += [f"{where}, {fault}" for fault in faults]
        if item is not None and not faults:
            items.append(item)
    return items, problems


def missing_labels(items: Sequence[Item], name: str) -> list[str]:
    """One line per item without label, or a single one when no item has any: then it is another kind of file."""
    missing = [item.id for item in items if item.label is None]
    if missing and len(missing) == len(items):
        return [
            f"{name}: output: found no label in any of {len(items)} items; allowed: {', '.join(OUTPUTS)} in each. "
            "This looks like a test file in the place of a train or dev file: were the two swapped?"
        ]
    return [f"{name}: item {item_id}, output: found no label; allowed: {', '.join(OUTPUTS)}" for item_id in missing]


def problem_lines(headline: str, problems: Sequence[str]) -> str:
    """The headline with the count of problems, a line for each of the first `PROBLEMS_SHOWN`, the count of the rest."""
    count = f"{headline}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"
    more = len(problems) - PROBLEMS_SHOWN
    return "\n  ".join([count, *problems[:PROBLEMS_SHOWN], *([f"… and {more} more"] if more > 0 else [])])


def _parse_json(content: bytes, name: str) -> tuple[Any, list[str]]:
    """The JSON value (None when there is none) and the problems of the file as JSON."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return None, [f"{name}: the file ends within a character, so it is cut off: copy or download it again"]
        line = content.count(b"\n", 0, error.start) + 1
        return None, [
            f"{name}: not UTF-8: found byte 0x{content[error.start]:02x} in line {line}. Save the file as UTF-8"
        ]
    if not text.strip():
        return None, [f"{name}: the file is empty; allowed: a list of items"]

    problems: list[str] = []

    def whole_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # json keeps the last of two equal keys without a word.
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            problems.append(
                f"{name}: found the key {', '.join(map(repr, twice))} more than once in the object {_found(found)}"
            )
        return found

    try:
        raw = json.loads(text, object_pairs_hook=whole_object, parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or text.rstrip()[-1] not in "]}"
        advice = "The file looks cut off: copy or download it again" if cut else "Only whole, valid JSON is read"
        if error.msg == "Extra data":
            advice = "Allowed: one list of items, [{…}, {…}], not one object a line"
        return None, [f"{name}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. {advice}"]
    except (ValueError, RecursionError) as error:  # a number beyond all bounds, or brackets nested thousands deep
        return None, [f"{name}: not valid JSON: {error}"]
    if "\\ud" in text.lower():
        # Half a character, which no UTF-8 file can hold, so the submission could not be written.
        try:
            json.dumps(raw, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            problems.append(f"{name}: found half a character ({half}) in a text; allowed: whole ones")
    return raw, problems


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"found the number {literal}; allowed: finite ones")
    return value


def _parse_item(entry: Any) -> tuple[Item | None, list[str]]:
    """The item and its problems, each `field: found …; allowed …`. With problems the item may be None."""
    if not isinstance(entry, dict):
        return None, [f"found {_found(entry)}; allowed: an object with id, input and output"]
    faults = _missing_keys(entry, ("id", "input"), "")
    if "id" in entry and not _is_id(entry["id"]):
        faults.append(f"id: found {_found(entry['id'])}; allowed: a text that is not blank")
    label = _parse_label(entry.get("output"), faults)

    inner = entry.get("input", {})
    if not isinstance(inner, dict):
        return None, [*faults, f"input: found {_found(inner)}; allowed: an object with conversation, reference_id, …"]
    if "input" in entry:
        faults += _missing_keys(inner, ("conversation", "reference_id", "category", *OUTPUTS), "input.")
    dialogue = _parse_dialogue(inner["conversation"], faults) if "conversation" in inner else ()
    targets = _parse_targets(inner["reference_id"], dialogue, faults) if "reference_id" in inner else ()
    category = _parse_category(inner["category"], faults) if "category" in inner else ""
    options = _parse_options(inner, faults)
    if faults:
        return None, faults
    first, second, third = options
    return Item(entry["id"], dialogue, targets, category, (first, second, third), label, entry), []


def _missing_keys(found: dict[str, Any], keys: Sequence[str], prefix: str) -> list[str]:
    others = [key for key in found if key not in keys]
    return [f"{prefix}{key}: missing.{nearest(key, others)}" for key in keys if key not in found]


def _parse_label(output: Any, faults: list[str]) -> int | None:
    """None for no `output`, an empty or blank one, or null."""
    text = _regular(output).strip() if isinstance(output, str) else output
    if text is None or text == "":
        return None
    if text in OUTPUTS:
        return OUTPUTS.index(text)
    hint = nearest(text, OUTPUTS) if isinstance(text, str) else ""
    faults.append(
        f'output: found {_found(output)}; allowed: {", ".join(OUTPUTS)}, or "" where the label is hidden.{hint}'
    )
    return None


def _parse_dialogue(conversation: Any, faults: list[str]) -> tuple[Utterance, ...]:
    if not isinstance(conversation, list) or not conversation:
        faults.append(f"input.conversation: found {_found(conversation)}; allowed: a list of at least one utterance")
        return ()
    dialogue: list[Utterance] = []
    seen: set[str] = set()
    for turn, entry in enumerate(conversation, start=1):
        where = f"input.conversation, turn {turn}"
        if not isinstance(entry, dict):
            faults.append(
                f"{where}: found {_found(entry)}; allowed: an object with speaker, utterance and utterance_id"
            )
            continue
        faults += _missing_keys(entry, ("speaker", "utterance", "utterance_id"), f"{where}, ")
        # true is an int to Python, and equal to 1.
        speaker = entry.get("speaker")
        if "speaker" in entry and (isinstance(speaker, bool | float) or speaker not in (1, 2, "1", "2")):
            faults.append(f"{where}, speaker: found {_found(speaker)}; allowed: 1 or 2")
            speaker = 0
        text = entry.get("utterance", "")
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            faults.append(f"{where}, utterance: found {_found(text)}; allowed: a text, which may be blank, or a number")
        utterance_id = entry.get("utterance_id")
        if _is_id(utterance_id):
            if utterance_id in seen:
                faults.append(
                    f"{where}, utterance_id: found {_found(utterance_id)} a second time; every id may appear once"
                )
            seen.add(str(utterance_id))
            dialogue.append(Utterance(str(utterance_id), int(speaker or 0), _regular(str(text))))
        elif "utterance_id" in entry:
            faults.append(f"{where}, utterance_id: found {_found(utterance_id)}; allowed: a text that is not blank")
    return tuple(dialogue)


def _parse_targets(reference: Any, dialogue: tuple[Utterance, ...], faults: list[str]) -> tuple[str, ...]:
    if not isinstance(reference, list) or not reference:
        faults.append(f"input.reference_id: found {_found(reference)}; allowed: a list of at least one utterance_id")
        return ()
    known = [utterance.id for utterance in dialogue]
    for position, target in enumerate(reference):
        if not isinstance(target, str):
            faults.append(f"input.reference_id: found {_found(target)}; allowed: an utterance_id")
        elif target in reference[:position]:
            faults.append(f"input.reference_id: found {_found(target)} twice; every utterance_id may appear once")
        elif known and target not in known:
            faults.append(
                f"input.reference_id: found {_found(target)}; allowed: an utterance_id of this dialogue, "
                f"{known[0]} to {known[-1]}.{nearest(target, known)}"
            )
    return tuple(target for target in reference if isinstance(target, str))


def _parse_category(category: Any, faults: list[str]) -> str:
    text = _regular(category).strip() if isinstance(category, str) else ""
    if text not in CATEGORIES:
        hint = nearest(text, CATEGORIES)
        faults.append(f"input.category: found {_found(category)}; allowed: {', '.join(CATEGORIES)}.{hint}")
    return text


def _parse_options(inner: dict[str, Any], faults: list[str]) -> list[str]:
    options: dict[str, str] = {}
    for key in OUTPUTS:
        if key not in inner:
            continue
        option = _regular(inner[key]).strip() if isinstance(inner[key], str) else ""
        if not option:
            faults.append(f"input.{key}: found {_found(inner[key])}; allowed: a text that is not blank")
        elif option in options.values():
            twin = next(other for other, text in options.items() if text == option)
            faults.append(f"input.{key}: found {_found(option)}, the same as {twin}; allowed: three different options")
        options[key] = option
    return list(options.values())


def _regular(text: str) -> str:
    """NFC: text that passed through a Mac may spell one syllable as two or three characters."""
    return unicodedata.normalize("NFC", text)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _found(value: Any) -> str:
    """A value as JSON, short enough for a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder} either."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"In {folder} there is: {shown}." if names else f"The folder {folder} is empty."
