"""Another task than the competition's, with its own categories and four options, through the commands that a user of
such a task types: only a task file and a prompt are new.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from src import task
from src.data import dump_items
from src.score.item_scores import read_scores
from tests.commands import leave_undrawn, put_runs_into, start
from tests.made_task import FOUR, PROMPT, TASK_FILE, make_four

pytestmark = pytest.mark.trains

COUNTS = {"train": 16, "dev": 8, "test": 8}
RUNS = ("one", "two")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`task.yaml`, `prompt.yaml`, `data/`, and `results/` with two trained runs, scored by eight orders."""
    from tests import toys

    folder = tmp_path_factory.mktemp("another")
    (folder / "task.yaml").write_text(TASK_FILE, encoding="utf-8")
    (folder / "prompt.yaml").write_text(PROMPT, encoding="utf-8")
    (folder / "given").mkdir()
    for split, count in COUNTS.items():
        items = [make_four(number, id=f"{split}-{number}") for number in range(count)]
        (folder / "given" / f"talk_{split}.json").write_text(dump_items(items), encoding="utf-8")
    base = toys.save("qwen2it", folder / "base")
    own = ("--task", folder / "task.yaml")
    with pytest.MonkeyPatch.context() as patch:
        put_runs_into(folder / "results", patch)
        leave_undrawn(patch)
        start("run.prepare_data", folder / "given", "--out", folder / "data", *own)
        for seed, name in enumerate(RUNS):
            words = ("--model_id", base, "--name", name, "--method", "lora", "--prompt", folder / "prompt.yaml")
            words += ("--lr", "3e-3", "--epoch", "1", "--batch_size", "4", "--seed", str(seed), "--device", "cpu")
            objective = ("--objective", "letters" if seed else "answer")
            start("run.train", *words, *objective, "--data", folder / "data", "--score", "test", *own)
            said, _ = start(
                "run.test", "--model_id", name, "--split", "dev", "test", "--orders", "8", "--device", "cpu", *own
            )
        assert f"--orders 8 --task {own[1]}\n" in said, "the suggested command works as it stands"
        yield folder
    task.use(None)


@pytest.mark.parametrize("name", RUNS)
def test_scores_have_a_logit_for_each_of_four_letters(place: Path, name: str) -> None:
    for split, count in COUNTS.items():
        if split == "train":
            continue
        scored = read_scores(place / "results" / name / f"scores_{split}.jsonl")
        assert len(scored) == count and {len(logits) for one in scored for logits in one.logits} == {4}
        sampled = read_scores(place / "results" / name / f"scores_{split}.8orders.jsonl")
        assert {len(one.orders) for one in sampled} == {8}
        for letter in range(4):
            under = Counter(order[letter] for order in sampled[0].orders)
            assert set(under.values()) == {2}, "each option stands equally often under each letter"


def test_all_orders_and_counts_that_do_not_fit(place: Path) -> None:
    own = ("--task", place / "task.yaml", "--device", "cpu")
    start("run.test", "--model_id", "one", "--split", "dev", "--orders", "24", *own)
    assert {len(one.orders) for one in read_scores(place / "results" / "one" / "scores_dev.24orders.jsonl")} == {24}
    _, said = start("run.test", "--model_id", "one", "--split", "dev", "--orders", "6", *own, code=2)
    assert "--orders: found 6, allowed for 4 options: 1, 4, 8" in said


def test_the_vote_and_what_it_is_worth(place: Path) -> None:
    own = ("--task", place / "task.yaml")
    start("run.vote", *RUNS, "--split", "dev", *own)
    start("run.vote", *RUNS, "--split", "test", *own)
    voted = json.loads((place / "results" / "vote" / "predictions_test.json").read_text(encoding="utf-8"))
    assert {one["output"] for one in voted} <= set(FOUR.options)
    said, _ = start("run.evaluate", *RUNS, "vote", "--split", "dev", "--data", place / "data", *own)
    assert "25.00%" in said, "chance of four options"
    assert "What follows" in said and "원인" not in said
    alone, _ = start("run.evaluate", "one", "--split", "dev", "--data", place / "data", *own)
    assert "Choice_4" in alone and "inference" not in alone


def test_a_run_is_not_read_under_the_official_task(place: Path) -> None:
    task.use(None)
    for command in (("run.test", "--model_id", "one"), ("run.vote", *RUNS), ("run.evaluate", *RUNS)):
        _, said = start(*command, "--data", place / "data", code=2)
        assert "--task" in said, said


def test_what_else_reads_items_takes_the_task(place: Path) -> None:
    own, data = ("--task", place / "task.yaml"), ("--data", place / "data")
    said, _ = start("run.prompts", *own)
    assert "entry: not for the task weather talk" in said
    said, _ = start("run.prompts", place / "prompt.yaml", *data, "--item", "dev-0", *own)
    assert "D. " in said
    start("run.export", "one", "--out", place / "export", *own)
    lines = (place / "export" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["prediction"] for line in lines} <= set(FOUR.options)
    start("run.vote", *RUNS, "--split", "test", *own)
    handed_in = place / "results" / "vote" / "predictions_test.json"
    said, _ = start("run.check_submission", handed_in, *data, *own)
    assert "Choice_4" in said and "official" not in said
    recipe = ("--model_id", place / "base", "--prompt", place / "prompt.yaml", "--method", "lora")
    start("orpo.orpo_data", *recipe, *data, "--form", "plain", "--out", place / "pairs.jsonl", *own)
    pairs = [json.loads(line) for line in (place / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == 3 * COUNTS["train"], "the right answer against each of three wrong ones"
