"""The class of an item, and how the JSON object of a file becomes one."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from src.console.cli import nearest
from src.files.reading import HALF, composed, is_composed
from src.items.json_files import shown
from src.items.oddities import Findings

ITEM_KEYS = ("id", "input", "output", "reasoning")
INPUT_KEYS = ("conversation", "reference_id", "category")
"""Beside the options, whose keys are the task's."""
LONGEST_WORD = 1_000
"""Characters of a text that may stand for one of a few known words."""
MOST_TURNS = 5_000
"""Utterances of a dialogue, and targets among them."""
TURN_KEYS = ("speaker", "utterance", "utterance_id")


@dataclass(frozen=True)
class Utterance:
    """One turn. `speaker` is 1, 2, …; `text` may be blank and may hold newlines; `id` is empty where the file has none.

    Ids are NFC and without blanks around them, as they are in `Item.targets`.
    """

    id: str
    speaker: int
    text: str


@dataclass(frozen=True)
class Item:
    """One question.

    targets  utterance ids in the file's order, each once
    options  the task's options, in its order
    label    index of the right option, None without `output`
    source   the JSON object as it stood in the file
    """

    id: str
    dialogue: tuple[Utterance, ...]
    targets: tuple[str, ...]
    category: str
    options: tuple[str, ...]
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


def parse_item(entry: Any, categories: Sequence[str], outputs: Sequence[str]) -> tuple[Item | None, Findings]:
    """The item (None where there are faults), and the faults and oddities. Each fault reads `field: found …; allowed
    …`.

    categories, outputs  of the task: what `category` may be, and the keys of the options, which are the values of
                         `output`
    """
    found = Findings()
    if not isinstance(entry, dict):
        found.faults.append(f"found {shown(entry)}; allowed: an object with id, input and output")
        return None, found
    found.faults += _missing_keys(entry, ("id", "input"), "")
    item_id = _parse_id(entry["id"], found) if "id" in entry else ""
    label = _parse_label(entry.get("output"), outputs, found)
    inner = entry.get("input", {})
    if not isinstance(inner, dict):
        found.faults.append(f"input: found {shown(inner)}; allowed: an object with conversation, reference_id, …")
        return None, found
    input_keys = (*INPUT_KEYS, *outputs)
    if "input" in entry:
        found.faults += _missing_keys(inner, input_keys, "input.")
    turns = _parse_dialogue(inner["conversation"], found) if "conversation" in inner else _Turns()
    targets = _parse_targets(inner["reference_id"], turns, found) if "reference_id" in inner else ()
    category = _parse_category(inner["category"], categories, found) if "category" in inner else ""
    options = _parse_options(inner, label, outputs, found)
    unknown = [key for key in entry if key not in ITEM_KEYS]
    unknown += [f"input.{key}" for key in inner if key not in input_keys]
    if unknown := unknown + turns.unknown_keys:
        found.odd.append(("unknown-key", ", ".join(map(shown, unknown[:3])) + (", …" if len(unknown) > 3 else "")))
    if found.faults:
        return None, found
    return Item(item_id, tuple(turns.dialogue), targets, category, tuple(options), label, entry), found


def id_of(entry: Any) -> str | None:
    """The id as text (the text of a number), or None where the entry has no usable id."""
    value = entry.get("id") if isinstance(entry, dict) else None
    text = str(value) if _is_number(value) else value
    # The files of a run are UTF-8, which cannot hold half a character.
    return text if isinstance(text, str) and text.strip() and not HALF.search(text) else None


@dataclass
class _Turns:
    """A dialogue as far as it can be read.

    spelled  id → as the file spells it
    lacking  a fault for each utterance without id; it counts only when a target cannot be found
    twice    id → the second turn that has it
    """

    dialogue: list[Utterance] = field(default_factory=list)
    spelled: dict[str, Any] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    twice: dict[str, int] = field(default_factory=dict)
    unknown_keys: list[str] = field(default_factory=list)


def _missing_keys(found: dict[str, Any], keys: Sequence[str], prefix: str) -> list[str]:
    others = [key for key in found if key not in keys]
    return [f"{prefix}{key}: missing.{nearest(key, others)}" for key in keys if key not in found]


def _parse_id(value: Any, found: Findings) -> str:
    item_id = id_of({"id": value})
    if item_id is None:
        half = "" if not (isinstance(value, str) and HALF.search(value)) else " of whole characters"
        found.faults.append(f"id: found {shown(value)}; allowed: a text{half} that is not blank")
    elif not isinstance(value, str):
        found.odd.append(("id-number", item_id))
    return item_id or ""


def _parse_label(output: Any, outputs: Sequence[str], found: Findings) -> int | None:
    """None for no `output`, an empty or blank one, or null."""
    text = _word(output[:LONGEST_WORD]) if isinstance(output, str) else output
    if text is None or text == "":
        return None
    meant = _meant(output, outputs)
    if meant is not None:
        if output != meant:
            found.odd.append(("label-spelling", shown(output)))
        return outputs.index(meant)
    hint = nearest(text, outputs) if isinstance(text, str) else ""
    found.faults.append(
        f'output: found {shown(output)}; allowed: {", ".join(outputs)}, or "" where the label is hidden.{hint}'
    )
    return None


def _parse_dialogue(conversation: Any, found: Findings) -> _Turns:
    turns = _Turns()
    if not isinstance(conversation, list) or not conversation:
        found.faults.append(
            f"input.conversation: found {shown(conversation)}; allowed: a list of at least one utterance"
        )
        return turns
    if len(conversation) > MOST_TURNS:
        found.faults.append(f"input.conversation: found {len(conversation):,} utterances; allowed: {MOST_TURNS:,}")
        return turns
    faults_before = len(found.faults)
    for turn, entry in enumerate(conversation, start=1):
        where = f"input.conversation, turn {turn}"
        if not isinstance(entry, dict):
            found.faults.append(
                f"{where}: found {shown(entry)}; allowed: an object with speaker, utterance and utterance_id"
            )
            continue
        found.faults += _missing_keys(entry, ("speaker", "utterance"), f"{where}, ")
        speaker = _parse_speaker(entry["speaker"], where, found) if "speaker" in entry else 0
        text = _parse_utterance(entry["utterance"], where, found) if "utterance" in entry else ""
        utterance_id = _utterance_id(entry.get("utterance_id"))
        if not utterance_id and "utterance_id" in entry:
            turns.lacking.append(
                f"{where}, utterance_id: found {shown(entry['utterance_id'])}; allowed: a text that is not blank"
            )
        elif not utterance_id:
            turns.lacking += _missing_keys(entry, ("utterance_id",), f"{where}, ")
        elif utterance_id in turns.spelled:
            turns.twice[utterance_id] = turn
        if utterance_id:
            turns.spelled.setdefault(utterance_id, entry["utterance_id"])
            if _is_number(entry["utterance_id"]):
                found.odd.append(("number", f"{where}, utterance_id: {utterance_id}"))
        turns.dialogue.append(Utterance(utterance_id, speaker, text))
        turns.unknown_keys += [f"turn {turn}, {key}" for key in entry if key not in TURN_KEYS]
    if len(found.faults) == faults_before and not any(one.text.strip() for one in turns.dialogue):
        found.faults.append(
            f"input.conversation: found {len(turns.dialogue)} blank utterances; allowed: at least one that is not"
        )
    return turns


def _parse_speaker(value: Any, where: str, found: Findings) -> int:
    # The number counts, however it is written; true is an int to Python, and equal to 1.
    text = str(int(value)) if _is_number(value) and value == int(value) else value
    text = text.strip() if isinstance(text, str) else ""
    if not re.fullmatch(r"0*[1-9]\d{0,2}", text):
        # A speaker 0 may mean that they are counted from 0: then the options' 화자1 would be another one.
        found.faults.append(f"{where}, speaker: found {shown(value)}; allowed: 1 or 2 (whole numbers from 1)")
        return 0
    speaker = int(text)
    if value != speaker or not isinstance(value, int):
        found.odd.append(("speaker-spelling", f"{where}: {shown(value)}"))
    if speaker > 2:
        found.odd.append(("speaker-more", f"{where}: {speaker}"))
    return speaker


def _parse_utterance(value: Any, where: str, found: Findings) -> str:
    if value is None:
        found.odd.append(("utterance-null", where))
        return ""
    text = _regular(value, where, found)
    if text is None:
        found.faults.append(
            f"{where}, utterance: found {shown(value)}; allowed: a text, which may be blank, or a number"
        )
        return ""
    if not text.strip():
        found.odd.append(("utterance-blank", where))
    return text


def _parse_targets(reference: Any, turns: _Turns, found: Findings) -> tuple[str, ...]:
    field_name = "input.reference_id"
    if _utterance_id(reference):
        found.odd.append(("target-alone", shown(reference)))
        reference = [reference]
    if not isinstance(reference, list) or not reference:
        found.faults.append(f"{field_name}: found {shown(reference)}; allowed: a list of at least one utterance_id")
        return ()
    if len(reference) > MOST_TURNS:
        found.faults.append(f"{field_name}: found {len(reference):,} ids; allowed: {MOST_TURNS:,}")
        return ()
    known = {one.id: one for one in turns.dialogue if one.id}
    targets: dict[str, None] = {}
    faults: list[str] = []
    for value in reference:
        target = _utterance_id(value)
        if not target:
            faults.append(f"{field_name}: found {shown(value)}; allowed: an utterance_id")
        elif known and target not in known:
            ends = f"{next(iter(known))} to {list(known)[-1]}"
            faults.append(
                f"{field_name}: found {shown(value)}; allowed: an utterance_id of this dialogue, "
                f"{ends}.{'' if faults else nearest(target, known)}"
            )
        elif target in turns.twice:
            faults.append(
                f"input.conversation, turn {turns.twice[target]}, utterance_id: found {shown(target)} a second time; "
                "the id of a target utterance may appear once"
            )
        if target in targets:
            found.odd.append(("target-twice", shown(value)))
        elif target:
            targets[target] = None
            if target in known and not known[target].text.strip():
                found.odd.append(("target-blank", shown(value)))
    if faults or not known:
        found.faults += [*turns.lacking, *faults]
    else:
        _note_ids(reference, turns, found)
    return tuple(targets)


def _note_ids(reference: list[Any], turns: _Turns, found: Findings) -> None:
    """Notes oddities of the ids of a dialogue whose targets are all clear."""
    if turns.lacking:
        found.odd.append(("utterance-id-missing", turns.lacking[0].split(", utterance_id")[0]))
    found.odd += [("utterance-id-twice", shown(one)) for one in turns.twice]
    found.odd += [("target-spelling", shown(one)) for one in reference if one != turns.spelled[_utterance_id(one)]]


def _parse_category(category: Any, categories: Sequence[str], found: Findings) -> str:
    meant = _meant(category, categories)
    if meant is None:
        hint = nearest(_word(category[:LONGEST_WORD]), categories) if isinstance(category, str) else ""
        found.faults.append(f"input.category: found {shown(category)}; allowed: {', '.join(categories)}.{hint}")
    elif _regular(category, "input.category", found) != meant:
        found.odd.append(("category-spelling", shown(category)))
    return meant or ""


def _parse_options(inner: dict[str, Any], label: int | None, outputs: Sequence[str], found: Findings) -> list[str]:
    options: dict[str, str] = {}
    for key in outputs:
        if key not in inner:
            continue
        text = _regular(inner[key], f"input.{key}", found)
        option = (text or "").strip()
        if not option:
            found.faults.append(f"input.{key}: found {shown(inner[key])}; allowed: a text that is not blank")
        elif option in options.values():
            twin = next(other for other, text in options.items() if text == option)
            # Of two equal options, it is unclear which is right. That does not matter where both are wrong.
            if label is not None and outputs[label] not in (key, twin):
                found.odd.append(("options-equal", f"input.{twin} and input.{key}"))
            else:
                found.faults.append(
                    f"input.{key}: found {shown(option)}, the same as {twin}; allowed: {len(outputs)} different options"
                )
        elif text != option:
            found.odd.append(("option-blanks", f"input.{key}"))
        options[key] = option
    return list(options.values())


def _regular(value: Any, where: str, found: Findings) -> str | None:
    """A text, or the text of a number, as the model will see it; None for any other value."""
    if _is_number(value):
        found.odd.append(("number", f"{where}: {shown(value)}"))
    elif not isinstance(value, str):
        return None
    text = str(value)
    if HALF.search(text):
        found.odd.append(("half-character", where))
    if not is_composed(text):
        found.odd.append(("decomposed", where))
    return regular(text)


def regular(text: str) -> str:
    """`text` in NFC. Half a character, which no tokenizer takes, becomes the replacement character."""
    return composed(HALF.sub("\ufffd", text))


def _word(text: str) -> str:
    """`text` in the form for comparing known words: NFC, lower case, no blanks, no invisible characters."""
    seen = [one for one in regular(text) if not one.isspace() and unicodedata.category(one) != "Cf"]
    return "".join(seen).lower()


def _meant(value: Any, known: Sequence[str]) -> str | None:
    """The one of `known` that a text stands for, ignoring case, blanks and invisible characters; None for others."""
    if not isinstance(value, str) or len(value) > LONGEST_WORD:
        return None
    if value in known:
        return value
    return next((one for one in known if _word(one) == _word(value)), None)


def _utterance_id(value: Any) -> str:
    """The id in the form for comparing (NFC, no blanks around it); empty for a value that cannot be an id."""
    return regular(str(value)).strip() if _is_number(value) or isinstance(value, str) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
