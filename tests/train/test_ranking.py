"""The ranking objective: its loss against a reference written out by hand, its training, its plan, its words."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import run.train
from src.model.recipes import Recipe
from src.plan.estimates import estimate_runs
from src.prompt.encode import Example
from src.runs.record import Record
from src.train.objectives import make_objective
from tests import toys
from tests.made_runs import make_split
from tests.made_trainings import LAYOUTS, SOME, Folder, Killed, encoder, equal, gradients, kill_after, weights

pytestmark = pytest.mark.trains


def recipe(short: str = "qwen2", **changes: Any) -> Recipe:
    return toys.recipe(Path("nowhere"), short, **{"objective": "ranking", "lora_dropout": 0, **changes})


def by_hand(network: Any, examples: list[Example], loss_per: str) -> torch.Tensor:
    """-log(e^w / (e^w + e^l)) of the answers' mean log-probabilities w and l, pair by pair and token by token."""

    def mean(ids: tuple[int, ...], start: int) -> torch.Tensor:
        logits = network(input_ids=torch.tensor([ids])).logits[0].double()
        logprobs = [logits[place - 1].log_softmax(-1)[ids[place]] for place in range(start, len(ids))]
        return torch.stack(logprobs).mean()

    items = []
    for one in examples:
        right = mean(one.ids, one.answer_start).exp()
        wrong = [mean(ids, one.answer_start).exp() for ids in one.rejected]
        items.append([-torch.log(right / (right + other)) for other in wrong])
    if loss_per == "item":
        return torch.stack([torch.stack(losses).mean() for losses in items]).mean()
    return torch.stack([loss for losses in items for loss in losses]).mean()


CHANGES: dict[str, dict[str, Any]] = {
    "usual": {},
    "token": {"loss_per": "token"},
    "one": {"orpo_pairs": "one"},
    "letter": {"orpo_answer": "letter"},
    "prompt": {"orpo_nll": "prompt"},
}


@pytest.mark.parametrize(
    ("short", "change"),
    [
        *(
            ("kogemma", "usual"),
            ("kogemma", "one"),
            ("bllossom", "token"),
            ("bllossom", "letter"),
            ("bllossom", "prompt"),
        ),
        *(pytest.param("kogemma", one, marks=pytest.mark.thorough) for one in ("token", "letter", "prompt")),
        *(pytest.param("bllossom", one, marks=pytest.mark.thorough) for one in ("usual", "one")),
    ],
)
def test_every_layout_has_the_loss_by_hand_and_its_gradients(short: str, change: str) -> None:
    wanted, network = recipe(short, **CHANGES[change]), toys.network(short)
    objective = make_objective(wanted)
    examples = objective.examples(encoder(short), SOME)
    # One item counts as much as another whatever number of pairs it has.
    examples[0] = dataclasses.replace(examples[0], rejected=examples[0].rejected[:1])
    expected = by_hand(network, examples, wanted.loss_per)
    expected.backward()
    theirs = gradients(network)
    for name, layout in LAYOUTS.items():
        rows = objective.collate(examples, layout)
        totals = objective.totals(rows)
        loss = torch.stack([objective.loss(objective.outputs(network, row), row, totals, ()) for row in rows]).sum()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5), name
        loss.backward()
        ours = gradients(network)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, atol=2e-6, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_pairs_by_hand() -> None:
    measures = make_objective(recipe()).pair_measures
    found = measures(torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([-3.0, -1.0, -2.0]))  # type: ignore[operator]
    assert found["pair_accuracy"].tolist() == [1, 0, 0], "a tie is no success"
    assert found["pair_margin"].tolist() == [2, -2, 0]
    assert found["loss"].tolist() == pytest.approx([math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), math.log(2)])


@pytest.fixture
def place(tmp_path: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Path:
    backbone_folder("qwen2")  # made from files of the repository, so before its root is left
    for split, count in (("train", 8), ("dev", 6)):
        make_split(tmp_path / "data", split, count, labelled=True)
    (tmp_path / "short.yaml").write_text(toys.SHORT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(place: Path, model: Path, name: str, *more: str) -> Record:
    """`run.train --objective ranking`, as a user starts it; gives the record."""
    flags = ["--model_id", str(model), "--objective", "ranking", "--data", str(place / "data"), "--device", "cpu"]
    flags += ["--prompt", "short.yaml", "--method", "lora", "--lr", "1e-2", "--batch_size", "4", "--lora_dropout", "0"]
    run.train.main([*flags, "--save_dir", str(place / name), *more])
    return Record.load(place / name)


def test_it_trains_evaluates_and_tells(
    place: Path, backbone_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    model = backbone_folder("qwen2")
    record = start(place, model, "tree", "--epoch", "4", "--share_prefixes", "on")
    said = capsys.readouterr().out
    assert "loss over the ranking of whole answers, the right one above both wrong ones, per item" in said
    assert "rejected: ⟦" in said and said.count("dev pairs: loss") == 4
    first, *_, last = record.training["evaluations"]
    assert record.training["rows"]["kind"] == "tree" and record.training["rows"]["guard"]["agree"]
    assert {"eval_loss", "eval_nll", "eval_pair_accuracy", "eval_pair_margin", "eval_accuracy"} <= last.keys()
    assert last["eval_loss"] < first["eval_loss"] and last["eval_pair_margin"] > first["eval_pair_margin"]
    assert 0.5 < last["eval_pair_accuracy"] <= 1
    padded = start(place, model, "padded", "--epoch", "4", "--share_prefixes", "off")
    assert padded.training["rows"]["kind"] == "padded"
    for one, other in zip(record.training["evaluations"], padded.training["evaluations"], strict=True):
        assert one["eval_loss"] == pytest.approx(other["eval_loss"], abs=1e-3)


@pytest.mark.thorough
def test_it_goes_on_where_it_stopped(place: Path, backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    model, flags = backbone_folder("qwen2"), ("--epoch", "4", "--orpo_pairs", "one")
    straight = start(place, model, "straight", *flags)
    with monkeypatch.context() as patch:
        kill_after(patch, 5)  # 2 passes an epoch: in the third
        with pytest.raises(Killed):
            start(place, model, "halved", *flags)
    halved = start(place, model, "halved", *flags)
    assert halved.training["resumed_from"].endswith("checkpoint-4")
    assert equal(weights(place / "halved" / "adapter"), weights(place / "straight" / "adapter"))
    assert halved.training["evaluations"] == straight.training["evaluations"]


def test_it_is_planned() -> None:
    values = {"model_id": "", "backbone": "qwen2"}
    found = {
        name: estimate_runs([recipe(objective=name, **values)], {"train": 758, "dev": 151})[0]
        for name in ("answer", "ranking", "orpo")
    }
    plans = {name: (row.seconds, row.training) for name, row in found.items()}
    assert plans["ranking"] == plans["orpo"]
    assert plans["ranking"][0] > plans["answer"][0]  # type: ignore[operator]


def test_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.train.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "ranking" in said and "orpo and ranking: the right answer against" in said
