"""`search_record.json`: the settings, data and result of a search for a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.files.writing import write_json
from src.runs.facts import Part


@dataclass(frozen=True, kw_only=True)
class SearchRecord(Part):
    """The record of a search that has ended.

    search  the settings
    data    file of the items, ids of those that were learned from and of those held out
    start   the prompt to begin with, and its accuracy on the items held out
    prompt  the same of the final prompt, with the step that it is from
    kept    numbers of the steps whose prompt was better
    ended   why the search ended
    """

    search: Mapping[str, Any]
    data: Mapping[str, Any]
    start: Mapping[str, Any]
    prompt: Mapping[str, Any]
    steps: int
    kept: Sequence[int]
    calls: int
    ended: str
    versions: Mapping[str, str]
    commit: str | None

    def save(self, folder: Path) -> None:
        write_json(folder / "search_record.json", self.as_json())
