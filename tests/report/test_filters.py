"""The filters by length and targets, of items that differ in both."""

import json
import re
from pathlib import Path

from src.data import dump_items, split_path
from src.files.writing import write_text
from src.report.findings import find
from src.report.groups import error_groups
from src.report.page import page
from src.vote.voters import Request
from tests.conftest import make_item
from tests.made_page import make_page_run
from tests.report.test_page import needs_node, play


@needs_node
def test_filters_by_length_and_targets_keep_the_groups_of_the_table(tmp_path: Path) -> None:
    """24 items in 8 dialogues of 2 to 9 more utterances; of three items one has a target, one two, one more."""
    entries = []
    for number in range(24):
        entry = make_item(number)
        inner = entry["input"]
        added = [f"d{number // 3}.more{turn}" for turn in range(2 + number // 3)]
        inner["conversation"] += [{"speaker": 1, "utterance": "그래.", "utterance_id": id} for id in added]
        more = ([], added[:1], [*added, inner["conversation"][0]["utterance_id"]])[number % 3]
        inner["reference_id"] = list(dict.fromkeys([*inner["reference_id"], *more]))
        entries.append(entry)
    write_text(split_path(tmp_path / "data", "dev"), dump_items(entries))
    for name in ("one", "two"):
        make_page_run(tmp_path / "results" / name, tmp_path / "data", "dev", right=0.6)
    found = find(Request([], [], "dev", tmp_path / "results"))
    text, divisions = page(found), error_groups(found)
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.S)[0])
    assert [group.name for group in divisions["by_targets"]] == ["1", "2", "3+"]
    assert len(divisions["by_turns"]) == 4
    steps, sizes = [], []
    for name, key, names in (("length", "by_turns", data["lengths"]), ("targets", "by_targets", data["targets"])):
        for group in divisions[key]:
            steps.append(f"pick('{name}', '{names.index(group.name)}'), shown.length")
            sizes.append(group.items)
        assert sum(group.items for group in divisions[key]) == 24
        steps.append(f"pick('{name}', ''), shown.length")
        sizes.append(24)
    assert play(file, "[" + ", ".join(f"({one})" for one in steps) + "]") == sizes
    assert 0 < min(sizes) < max(sizes[:-1])
