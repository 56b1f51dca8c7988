"""What every objective promises, and that the recipe's choices and the classes are the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from src.model.recipes import CHOICES, Recipe
from src.prompt.encode import Example
from src.prompt.prompts import parse_prompt
from src.train.checkpoints import Place
from src.train.fine_tuning import fine_tune
from src.train.objectives import OBJECTIVES, Objective, make_objective
from src.tree.rows import AT_ONCE, Layout
from tests import toys
from tests.made_task import FOUR, PROMPT, four_items, working_on
from tests.made_trainings import CPU, LAYOUTS, SOME, TRAIN, Folder, encoder

EVERY = sorted(OBJECTIVES)


def objective(name: str, **changes: Any) -> Objective:
    return make_objective(recipe(name, **changes))


def recipe(name: str, **changes: Any) -> Recipe:
    return toys.recipe(Path("nowhere"), "qwen2", **{"objective": name, "lora_dropout": 0, **changes})


def test_every_choice_of_a_recipe_is_a_class_and_every_class_a_choice() -> None:
    assert tuple(OBJECTIVES) == CHOICES["objective"]
    for name, kind in OBJECTIVES.items():
        assert type(objective(name)) is kind and kind.name == name


def test_the_plan_asks_them_without_torch() -> None:
    code = (
        "import sys\nfrom src.train.objectives import OBJECTIVES, make_objective\n"
        "from src.model.recipes import Recipe\n"
        "for name in OBJECTIVES:\n  one = make_objective(Recipe(objective=name)); one.wrong_answers(3), one.words()\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", EVERY)
def test_as_many_wrong_answers_are_encoded_as_the_plan_counts(name: str) -> None:
    for pairs in CHOICES["orpo_pairs"]:
        one = objective(name, orpo_pairs=pairs)
        for item in TRAIN:
            places = one.wrong_options(item)
            assert len(places) == len(set(places)) == one.wrong_answers(len(item.options))
            assert item.label not in places and bool(places) == one.compares
        examples = one.examples(encoder("qwen2"), TRAIN)
        assert all(len(example.rejected) == one.wrong_answers(3) for example in examples)


def test_wrong_answers_of_a_task_with_four_options() -> None:
    for name, pairs, count, words in (
        ("orpo", "both", 3, "against all 3 wrong ones"),
        ("orpo", "one", 1, "against one wrong one"),
        ("ranking", "both", 3, "above all 3 wrong ones"),
        ("answer", "both", 0, "answer"),
    ):
        one = objective(name, orpo_pairs=pairs)
        assert one.wrong_answers(4) == count
        with working_on(FOUR):
            assert words in one.words()


@pytest.mark.trains
@pytest.mark.parametrize("name", EVERY)
def test_a_task_with_four_options_is_learned(
    name: str, backbone_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = toys.recipe(backbone_folder("qwen2"), "qwen2", objective=name, epoch=1, share_prefixes="on")
    with working_on(FOUR):
        items, four = four_items(8), toys.encoder("qwen2", parse_prompt(PROMPT, "four"))
        found = fine_tune(wanted, four, items, items, Place.at(tmp_path), CPU).training
    said = capsys.readouterr().out
    assert "right answers A 2, B 2, C 2, D 2; 8 dev items; letters A, B, C, D are tokens" in said
    assert found["rows"]["guard"]["agree"] and found["evaluations"][0]["eval_correct"] <= 8
    assert said.count("rejected: ") == (3 if make_objective(wanted).compares else 0)


@pytest.mark.parametrize("loss_per", ["item", "token"])
@pytest.mark.parametrize("name", EVERY)
def test_every_layout_has_the_same_loss_gradient_and_letters(name: str, loss_per: str) -> None:
    one, made, network = objective(name, loss_per=loss_per), encoder("qwen2"), toys.network("qwen2")
    examples = one.examples(made, SOME)
    found = []
    for layout in LAYOUTS.values():
        rows, letters = one.collate(examples, layout), dict[int, list[float]]()
        totals, losses = one.totals(rows), []
        for row in rows:
            outputs = one.outputs(network, row)
            losses.append(one.loss(outputs, row, totals, made.letter_ids or ()))
            letters |= one.letters(outputs, row, made.letter_ids or ())
        torch.stack(losses).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        network.zero_grad()
        values = torch.tensor([letters[number] for number in sorted(letters)])
        found.append((torch.stack(losses).sum().detach(), gradient, values))
    answers = len(SOME) * (1 + one.wrong_answers(3))
    assert found[0][2].shape == (answers, 1 if one.compares else 3)
    for layout, ours in zip(LAYOUTS, found, strict=True):
        for mine, first in zip(ours, found[0], strict=True):
            torch.testing.assert_close(mine, first, atol=2e-5, rtol=1e-4, msg=lambda m, n=layout: f"{n}: {m}")


@pytest.mark.parametrize("name", EVERY)
def test_what_is_measured_is_the_loss_and_has_words(name: str) -> None:
    one, network = objective(name), toys.network("qwen2")
    examples = one.examples(encoder("qwen2"), SOME)
    rows = one.collate(examples, LAYOUTS["tree"])
    found = [one.measure(network, examples, layout) for layout in LAYOUTS.values()]
    assert bool(found[0]) == one.measures
    if not one.measures:
        assert one.measured_words({}) == ""
        return
    with torch.no_grad():
        totals = one.totals(rows)
        loss = sum(float(one.loss(one.outputs(network, row), row, totals, ())) for row in rows)
    for measured in found:
        assert measured["loss"] == pytest.approx(loss, abs=1e-5)
        assert measured == pytest.approx(found[0], abs=1e-5)
    words = one.measured_words({f"eval_{key}": value for key, value in found[0].items()})
    assert words.startswith(f"dev pairs: loss {loss:.4f}")


def test_positions_whose_logits_are_in_memory() -> None:
    # Items of 10 + 60 and 10 + 20 tokens, of which wrong answers have 5 each.
    long, short = (Example("", "012", (0,) * (10 + count), 10, 0) for count in (60, 20))
    pairs = [Example("", "012", one.ids, 10, 0, "", ((0,) * 15, (0,) * 15)) for one in (long, short)]
    for name, examples, changes, alone, several in (
        ("answer", [long, short], {}, 60, 120),  # 40 is the mean, and the least
        ("letters", [long, short], {}, 60, 120),
        ("orpo", pairs, {}, 120, 360),  # the least of three answers
        ("ranking", pairs, {}, 120, 360),
        ("orpo", pairs, {"orpo_nll": "prompt"}, 120, 360),
        ("ranking", pairs * 20, {}, 120, 360),
    ):
        one = objective(name, **changes)
        assert (one.logit_positions(examples, 1), one.logit_positions(examples, 3)) == (alone, several), name
    assert objective("answer").logit_positions([long, short], 100) == 4000
    assert objective("ranking").logit_positions(pairs, 100) == AT_ONCE, "the head reads so many at a time"


def test_rows_of_tokens_by_hand() -> None:
    examples = [Example("a", "012", (5, 6, 7, 8), 2, 0), Example("b", "012", (5, 9), 1, 1)]
    (row,) = objective("answer").collate(examples, Layout("padded", 100, 0))
    assert row["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    # A token is predicted at the place in front of it.
    assert row["source"].tolist() == [[False, True, True, False], [True, False, False, False]]
    assert (row["target"].tolist(), row["weight"].tolist()) == ([7, 8, 9], [0.5, 0.5, 1])
    (row,) = objective("answer", loss_per="token").collate(examples, Layout("tree", 100, 0))
    assert row["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert (row["source"].tolist(), row["target"].tolist(), row["weight"].tolist()) == ([1, 2, 0], [7, 8, 9], [1, 1, 1])


def test_what_is_supervised_of_right_answers() -> None:
    one = encoder("bllossom")
    examples = one.for_training(TRAIN)
    assert objective("answer").examples(one, TRAIN) == examples
    for name in ("letter", "letters"):
        cut = objective(name).examples(one, TRAIN)
        assert [len(short.ids) - short.answer_start for short in cut] == [1] * len(cut)
        assert one.letter_ids is not None
        assert [short.ids[-1] for short in cut] == [one.letter_ids[item.label or 0] for item in TRAIN]
