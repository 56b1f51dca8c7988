"""The page as one HTML text, which holds its style, its script, its data and nothing from anywhere else."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src import task
from src.report import sections
from src.report.findings import Findings
from src.report.groups import MISSED_BY, TARGETS, by_length, missed_by
from src.report.item_data import item_data
from src.report.words import say, script_words, words
from src.vote.calibration_table import how_fitted

FOLDER = Path(__file__).parent
SECTIONS = ("runs", "tests", "categories", "errors", "alike", "voters", "calibration", "curves", "items")


def page(found: Findings, text: bool = True) -> str:
    """text: whether utterances, options and generated reasoning are in it."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style, script = (_part(name) for name in ("page.css", "page.js"))
    shown: dict[str, Any] = {
        "runs": sections.run_rows(found),
        "pairs": sections.pair_rows(found),
        "categories": sections.category_rows(found),
        "errors": sections.error_rows(found),
        "alike": sections.alike_picture(found),
        "voters": sections.voter_rows(found),
        "calibration": sections.calibration_rows(found),
        "curves": sections.curve_pictures(found),
    }
    there = {"runs": True, "tests": shown["pairs"], "items": True} | {key: shown[key] for key in SECTIONS[2:-1]}
    return environment.get_template("page.html.jinja").render(
        shown,
        say=say,
        task=task.current().name,
        split=found.split,
        found=found,
        text=text,
        licence=words()["licence"],
        dialogues=len({item.dialogue_key for item in found.items}),
        figures=sections.key_figures(found, shown["pairs"]),
        sections=[key for key in SECTIONS if there[key]],
        notes=_notes(found),
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        words_json=embedded(script_words()),
        data_json=embedded(_data(found, text)),
    )


def _notes(found: Findings) -> list[str]:
    """What the commands say below their tables, in English as they say it."""
    compared = [found.compared.how_read, *found.compared.changed[1]] if found.compared else []
    calibrated = [how_fitted(found.calibration.fitted), *found.calibration.notes] if found.calibration else []
    return [note for note in [*found.notes, *compared, *calibrated] if note]


def _data(found: Findings, text: bool) -> dict[str, Any]:
    data = item_data(found, text)
    runs = len(found.runs)
    wrong = data["missed"]
    lengths, length_of = by_length(found.items)
    return data | {
        "missedBy": wrong and [MISSED_BY[missed_by(count, runs)] for count in wrong],
        "lengths": lengths,
        "lengthOf": length_of,
        "targets": TARGETS,
        "targetsOf": [min(len(item.targets), len(TARGETS) - 1) for item in found.items],
    }


def _part(name: str) -> str:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would end its own element"
    return text


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy: nothing is loaded from anywhere, and only this style and this script are used."""
    return (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embedded(value: Any) -> Markup:
    """JSON that stands in a page as it is: nothing in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
