"""Runs for tests of the page: invented items, one with markup in its texts, and as many runs as are asked for."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from src import task
from src.data import Item, dump_items, load_items, predictions, sha256, split_path
from src.files.paths import predictions_path, record_path, scores_path
from src.files.writing import write_json, write_text
from src.report.findings import Findings
from src.runs.record import results_key
from src.score.item_scores import ItemScores, write_scores
from src.vote.claims import claim_of
from src.vote.voting import Ballot
from src.worth.metrics import evaluate
from tests.conftest import make_item

SCRIPT = "<script>alert(1)</script> & </script><!-- \u2028 \" '"
"""What an utterance and an option of the first item begin with."""
SPOKEN = "그래서 어제 시장에 갔다가 우산을 두고 왔는데 다시 가 보니 없더라고."


def make_items(folder: Path, split: str, count: int, *, labelled: bool = True, turns: int = 0) -> list[Item]:
    """`data_<split>.json` of `count` items; `turns` more utterances in each dialogue, which items share as before."""
    entries = []
    for number in range(count):
        entry = make_item(number, **({} if labelled else {"output": ""}))
        conversation = entry["input"]["conversation"]
        for turn in range(turns):
            spoken = {"speaker": 1 + turn % 2, "utterance": f"{turn}. {SPOKEN}"}
            conversation.append(spoken | {"utterance_id": f"d{number // 3}.more{turn}"})
        if number == 0:
            conversation[0]["utterance"] = f"{SCRIPT} {conversation[0]['utterance']}"
            entry["input"]["inference_2"] = f"{SCRIPT} {entry['input']['inference_2']}"
        entries.append(entry)
    write_text(split_path(folder, split), dump_items(entries))
    return load_items(split_path(folder, split))


def make_page_run(run: Path, data: Path, split: str, *, right: float, orders: int = 1, **training: Any) -> None:
    """A finished run with scores by one order of the options, and by `orders`; about so large a share is right. The
    name seeds what it answers.
    """
    draw = random.Random(run.name)
    path = split_path(data, split)
    items = load_items(path)
    results: dict[str, Any] = {}
    strengths = {
        item.id: [draw.gauss(2.5 if option == item.label and draw.random() < right else 0, 1.2) for option in range(3)]
        for item in items
    }
    for count in sorted({1, orders}):
        rows = []
        for item in items:
            shown = task.current().orders(count)
            noisy = [[strengths[item.id][int(option)] + draw.gauss(0, 0.4) for option in order] for order in shown]
            rows.append(ItemScores(item.id, shown, tuple(tuple(one) for one in noisy)))
        write_scores(scores_path(run, split, count), rows)
        answers = [row.prediction for row in rows]
        write_text(predictions_path(run, split, count), dump_items(predictions(items, answers)))
        result = {"orders": count, "items": len(items), "data": str(path), "data_sha256": sha256(path)}
        results[results_key(count)] = {split: result}
    write_text(run / "recipe.yaml", f"backbone: invented\nseed: {draw.randrange(100)}\n")
    about = {"name": task.current().name, "sha256": task.current().sha256}
    found = {"run": run.name, "recipe": {"seed": draw.randrange(100)}, "task": about, **results}
    write_json(record_path(run), found | ({"training": training} if training else {}))


def full_findings(found: Findings, folder: Path) -> Findings:
    """What the page shows of 605 items in dialogues of official length, 20 runs and 6 orders, with labels for the
    browser of items; tests and pictures are left out, which are small. `found` is of any run with labels.
    """
    items = make_items(folder, "dev", 605, turns=17)
    orders = task.current().all_orders
    draw, names = random.Random(0), [f"run-{run}" for run in range(20)]
    sources, scores = [], {}
    for name in names:
        own = {
            item.id: ItemScores(item.id, orders, tuple(tuple(draw.gauss(0, 2) for _ in range(3)) for _ in orders))
            for item in items
        }
        answers = {id: one.prediction for id, one in own.items()}
        ballot = Ballot(name, answers, {id: one.logprobs for id, one in own.items()})
        sources.append(replace(found.sources[0], ballot=ballot))
        scores[name] = own
    results = {name: evaluate(items, [scores[name][item.id].prediction for item in items]) for name in names}
    assert found.compared
    return replace(
        found,
        items=items,
        sources=sources,
        records={},
        settings={},
        compared=replace(found.compared, items=items, sources=sources, results=results, pairs=[]),
        calibration=None,
        who_helps=None,
        alike=None,
        claims={source.ballot.run: claim for source in sources if (claim := claim_of(source, items))},
        scores=scores,
        chains={},
    )
