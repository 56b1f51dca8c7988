"""ORPO's loss against the paper's formula, TRL's own and finite differences; its rows, its training, what it logs."""

import copy
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from src.model.recipes import Recipe
from src.prompt.encode import Example
from src.train import orpo, sharded, trainer
from src.train.keep import best_of
from src.train.objectives import Orpo, make_objective
from src.tree import prefix
from src.tree.layouts import TrainingLayout, training_layout
from src.tree.rows import Layout, logprobs_at
from tests import toys
from tests.conftest import LETTERS
from tests.made_trainings import (
    CPU,
    DEV,
    LAYOUTS,
    SOME,
    TRAIN,
    Folder,
    Killed,
    Recorder,
    encoder,
    equal,
    gradients,
    kill_after,
    train,
    weights,
)

pytestmark = pytest.mark.trains

FAMILIES = ("bllossom", "qwen2", "kogemma")  # llama, qwen2, gemma2 with its window and softcaps


def recipe(short: str = "qwen2", **changes: Any) -> Recipe:
    return toys.recipe(Path("nowhere"), short, **{"objective": "orpo", "lora_dropout": 0, **changes})


def loss_of(network: Any, wanted: Recipe, examples: list[Example], layout: Layout, at_once: int = 1024) -> torch.Tensor:
    """The loss of one step over `examples`, in the layout's rows."""
    objective = make_objective(wanted)
    made = objective.collate(examples, layout)
    totals = objective.totals(made).to(torch.float64)
    found = [objective.loss(logprobs_at(network, row, at_once), row, totals, ()) for row in made]
    return torch.stack(found).sum()


def by_the_paper(network: Any, wanted: Recipe, examples: list[Example]) -> torch.Tensor:
    """Hong et al. 2024, equations 3, 4, 6 and 7, written out pair by pair and token by token."""

    def tokens(ids: tuple[int, ...]) -> torch.Tensor:
        logits = network(input_ids=torch.tensor([ids])).logits[0].double()
        return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]

    nll, count, ratios = [], [], []
    for one in examples:
        start = one.answer_start - 1
        right = tokens(one.ids)
        own = -(right if wanted.orpo_nll == "prompt" else right[start:])
        nll.append(own.mean() if wanted.loss_per == "item" else own.sum())
        count.append(1 if wanted.loss_per == "item" else len(own))
        of_item = []
        for ids in one.rejected:
            p_right, p_wrong = (some[start:].mean().exp() for some in (right, tokens(ids)))
            odds = (p_right / (1 - p_right)) / (p_wrong / (1 - p_wrong))
            of_item.append(-torch.log(1 / (1 + 1 / odds)))
        ratios += [torch.stack(of_item).mean()] if wanted.loss_per == "item" else of_item
    return torch.stack(nll).sum() / sum(count) + wanted.orpo_beta * torch.stack(ratios).mean()


# The loss


CHANGES: dict[str, dict[str, Any]] = {
    "usual": {},
    "prompt": {"orpo_nll": "prompt"},
    "token": {"loss_per": "token"},
    "letter": {"orpo_answer": "letter"},
}
BY_DEFAULT = [
    ("bllossom", "usual"),
    ("qwen2", "prompt"),
    ("kogemma", "token"),
    ("kogemma", "usual"),
    ("qwen2", "letter"),
]
"""Each family and each change; the other pairs are thorough."""


@pytest.mark.parametrize(
    ("short", "change"),
    [
        pytest.param(*pair, marks=[] if pair in BY_DEFAULT else [pytest.mark.thorough])
        for pair in itertools.product(FAMILIES, CHANGES)
    ],
)
def test_every_layout_has_the_papers_loss_and_its_gradients(short: str, change: str) -> None:
    wanted = recipe(short, orpo_beta=0.7, **CHANGES[change])
    examples = make_objective(wanted).examples(encoder(short), SOME)
    network = toys.network(short)
    expected = by_the_paper(network, wanted, examples)
    expected.backward()
    theirs = gradients(network)
    for name, layout in LAYOUTS.items():
        found = loss_of(network, wanted, examples, layout)
        assert found.item() == pytest.approx(expected.item(), abs=1e-5), name
        found.backward()
        ours = gradients(network)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(
                ours[key], value, atol=2e-6, rtol=1e-4, msg=lambda m, k=key, n=name: f"{n} {k} {m}"
            )


def trl_trainer(short: str, network: Any, wanted: Recipe, folder: Path) -> ORPOTrainer:
    """TRL's own, on the same pairs as texts, nothing cut."""
    one = encoder(short)
    records = [
        {"prompt": one.prompt_text(item), "chosen": answers[item.label or 0], "rejected": answers[place]}
        for item in SOME
        for answers in [[f"{text}{one.turn_end}" for text in one.prompt.render(item).answers]]
        for place in make_objective(wanted).wrong_options(item)
    ]
    arguments = ORPOConfig(
        output_dir=str(folder), beta=wanted.orpo_beta, max_length=10**4, use_cpu=True, bf16=False, report_to="none"
    )
    tokenizer = copy.deepcopy(one.tokenizer)
    return ORPOTrainer(
        model=network, args=arguments, train_dataset=Dataset.from_list(records), processing_class=tokenizer
    )


@pytest.mark.parametrize(
    ("short", "pairs"),
    [
        ("qwen2it", "both"),
        ("bllossom", "one"),
        pytest.param("qwen2it", "one", marks=pytest.mark.thorough),
        pytest.param("bllossom", "both", marks=pytest.mark.thorough),
    ],
)
def test_trls_own_loss_on_the_same_batch(short: str, pairs: str, tmp_path: Path) -> None:
    # What TRL computes: NLL over prompt and answer, the mean over tokens and over pairs.
    wanted = recipe(short, orpo_nll="prompt", loss_per="token", orpo_beta=0.3, orpo_pairs=pairs)
    examples = make_objective(wanted).examples(encoder(short), SOME)
    network = toys.network(short)
    theirs = trl_trainer(short, network, wanted, tmp_path)
    records = list(theirs.train_dataset)
    ours = [(one.ids, ids) for one in examples for ids in one.rejected]
    assert [(tuple(r["chosen_input_ids"]), tuple(r["rejected_input_ids"])) for r in records] == ours, "the same tokens"
    batch = theirs.data_collator(records)
    expected, metrics = theirs.get_batch_loss_metrics(network, batch)
    expected.backward()
    theirs_gradients = gradients(network)
    for layout in LAYOUTS.values():
        found = loss_of(network, wanted, examples, layout)
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)
        found.backward()
        for key, value in gradients(network).items():
            torch.testing.assert_close(value, theirs_gradients[key], atol=1e-5, rtol=1e-4)
    measured = make_objective(wanted).measure(network, examples, LAYOUTS["tree"])
    for ours_key, their_key, sign in (
        ("nll", "nll_loss", 1),
        ("odds_ratio", "log_odds_ratio", -1),
        ("log_odds", "log_odds_chosen", 1),
        ("reward_accuracy", "rewards/accuracies", 1),
        ("reward_margin", "rewards/margins", 1),
    ):
        assert measured[ours_key] == pytest.approx(sign * metrics[their_key], abs=1e-5), ours_key
    assert measured["loss"] == pytest.approx(expected.item(), abs=1e-5)


logprob = st.floats(-12, -1e-3)


@given(st.lists(st.tuples(logprob, logprob), min_size=1, max_size=5))
def test_the_odds_ratio_is_trls(pairs: list[tuple[float, float]]) -> None:
    right, wrong = torch.tensor(pairs).T
    itself = SimpleNamespace(beta=1.0, accelerator=SimpleNamespace(device="cpu"))
    expected = ORPOTrainer.odds_ratio_loss(itself, right, wrong)[0]
    found = torch.nn.functional.logsigmoid(orpo.log_odds_ratio(right, wrong))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_sure_answer_has_a_gradient_that_is_a_number() -> None:
    for right, wrong in ((0.0, -9.0), (-9.0, 0.0), (-1e-8, -1e-8)):
        pair = torch.tensor([right, wrong], requires_grad=True)
        ratio = orpo.log_odds_ratio(pair[0], pair[1])
        torch.nn.functional.logsigmoid(ratio).backward()
        assert ratio.isfinite() and pair.grad is not None and pair.grad.isfinite().all(), (right, wrong)
    # TRL's is none there, which a letter alone reaches soon: the reason for our own.
    pair = torch.tensor([0.0, -9.0], requires_grad=True)
    itself = SimpleNamespace(beta=1.0, accelerator=SimpleNamespace(device="cpu"))
    ORPOTrainer.odds_ratio_loss(itself, pair[:1], pair[1:])[0].sum().backward()
    assert pair.grad is not None and pair.grad.isnan().any()


def test_finite_differences() -> None:
    wanted = recipe("qwen2", orpo_beta=0.5, orpo_nll="prompt")
    examples = make_objective(wanted).examples(encoder("qwen2"), TRAIN[:2])
    network = toys.network("qwen2").double()
    loss_of(network, wanted, examples, LAYOUTS["tree"]).backward()
    generator = torch.Generator().manual_seed(0)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"):
        parameter = network.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        expected = (parameter.grad * direction).sum().item()
        found = []
        for step in (1e-4, -1e-4):  # norms compute in fp32 whatever they are given
            with torch.no_grad():
                parameter += step * direction
                found.append(loss_of(network, wanted, examples, LAYOUTS["tree"]).item())
                parameter -= step * direction
        assert (found[0] - found[1]) / 2e-4 == pytest.approx(expected, rel=1e-3), name
    assert torch.autograd.gradcheck(
        orpo.log_odds_ratio,
        tuple(torch.tensor([-3.0, -0.7, -0.69, -0.1], dtype=torch.float64, requires_grad=True) for _ in range(2)),
    )


@pytest.mark.parametrize("short", ["kogemma", "qwen2"])
def test_the_head_in_pieces_is_the_head_at_once(short: str) -> None:
    wanted = recipe(short)
    examples = make_objective(wanted).examples(encoder(short), TRAIN)
    network = toys.network(short)
    found = []
    for at_once in (10**6, 7):
        one = loss_of(network, wanted, examples, LAYOUTS["tree"], at_once)
        one.backward()
        found.append((one.detach(), gradients(network)))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)
    assert network.get_output_embeddings().weight.shape[0] == network.config.vocab_size
    assert network.config.get_text_config().to_dict().get("final_logit_softcapping") == (
        30.0 if short == "kogemma" else None
    )


# Pairs


def test_pairs_have_one_form_and_one_prompt() -> None:
    one = encoder("qwen2it")
    assert one.letter_ids is None
    for wanted in (recipe(), recipe(orpo_answer="letter")):
        examples = make_objective(wanted).examples(one, TRAIN)
        assert one.letter_ids is not None
        for example, item in zip(examples, TRAIN, strict=True):
            start = example.answer_start
            assert len(example.rejected) == 2 and item.label is not None
            assert {ids[:start] for ids in example.sequences} == {example.ids[:start]}, "the prompt is never cut"
            letters = [one.letter_ids[place] for place in (item.label, *make_objective(wanted).wrong_options(item))]
            assert [ids[start] for ids in example.sequences] == letters and len(set(letters)) == 3
            texts = [one.tokenizer.decode(ids[start:]) for ids in example.sequences]
            for text, place in zip(texts, (item.label, *make_objective(wanted).wrong_options(item)), strict=True):
                whole = f"{LETTERS[place]}. {item.options[place]}{one.turn_end}"
                assert text == (whole if wanted.orpo_answer == "whole" else LETTERS[place])
            assert example.tokens == len(prefix.build(example.sequences))


def test_one_pair_is_drawn_by_seed_and_item() -> None:
    items = toys.items(60)
    drawn = [make_objective(recipe(orpo_pairs="one", seed=1)).wrong_options(item) for item in items]
    assert all(len(places) == 1 and places[0] != item.label for places, item in zip(drawn, items, strict=True))
    assert drawn == [make_objective(recipe(orpo_pairs="one", seed=1)).wrong_options(item) for item in items]
    assert drawn != [make_objective(recipe(orpo_pairs="one", seed=2)).wrong_options(item) for item in items]
    first = sum(places[0] == min({0, 1, 2} - {item.label}) for places, item in zip(drawn, items, strict=True))
    assert 15 < first < 45
    assert make_objective(recipe()).wrong_options(items[0]) == (1, 2)
    assert make_objective(recipe(objective="answer")).wrong_options(items[0]) == ()


# Training


@pytest.mark.parametrize("share", ["on", pytest.param("off", marks=pytest.mark.thorough)])
def test_one_step_of_the_trainer(share: str, backbone_folder: Folder, tmp_path: Path, recorder: type[Recorder]) -> None:
    keys = {"method": "orpo", "share_prefixes": share, "max_grad_norm": 0, "epoch": 1}
    network = toys.network("kogemma")
    for batch_size, accumulation in ((8, 1), (2, 4)):
        steps = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        wanted = toys.recipe(backbone_folder("kogemma"), "kogemma", **keys, **steps)
        examples = make_objective(wanted).examples(encoder("kogemma"), TRAIN)
        expected = by_the_paper(network, wanted, examples)
        expected.backward()
        theirs = gradients(network)
        outcome = train(wanted, tmp_path / f"{batch_size}")
        assert recorder.losses == [pytest.approx(expected.item(), abs=1e-5)]
        (found,) = recorder.gradients
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, theirs[name], atol=2e-6, rtol=1e-4)
        assert outcome.training["rows"]["kind"] == ("tree" if share == "on" else "padded")
        assert outcome.training["rows"]["sharing"] > (2 if share == "on" else 0.9)


@pytest.mark.parametrize("bf16", [True, False])
def test_the_head_computes_in_the_dtype_of_the_layers(bf16: bool) -> None:
    """Also with fp32 master weights, though Accelerate's autocast covers the model's forward alone."""
    wanted, network = recipe(), toys.network("qwen2")
    objective = make_objective(wanted)
    (row,) = objective.collate(objective.examples(encoder("qwen2"), TRAIN[:1]), Layout("tree", 4096, 0))
    seen = []
    network.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    args, letters = SimpleNamespace(bf16=bf16), SimpleNamespace(letter_ids=None)
    ours: Any = SimpleNamespace(objective=objective, args=args, encoder=letters, seeds=None)
    trainer.LetterTrainer.row_loss(ours, network, row, objective.totals([row]))
    assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}


def test_rows_of_one_item_share_its_prompt_and_the_record_says_so(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where larger rows would share too little more."""

    def single(*given: Any) -> TrainingLayout:
        return TrainingLayout(Layout("single", 4096, 0), 2.5, training_layout(*given).memory)

    monkeypatch.setattr(sharded, "training_layout", single)
    found = train(recipe(lora_dropout=0.05, model_id=str(backbone_folder("qwen2"))), tmp_path).training["rows"]
    assert (found["kind"], found["sharing"]) == ("single", 2.5) and found["guard"]["agree"]
    assert found["dropout"] == "one mask for each shared token"


def test_what_an_evaluation_logs(backbone_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = toys.recipe(backbone_folder("qwen2"), "qwen2", objective="orpo", share_prefixes="on", lora_dropout=0.5)
    outcome = train(wanted, tmp_path)
    last = outcome.training["evaluations"][-1]
    from src.model.load import load_run

    examples = make_objective(wanted).examples(encoder("qwen2"), DEV)
    network = load_run(tmp_path, wanted, CPU)
    best = outcome.training["evaluations"][best_of(outcome.training["evaluations"])]
    for layout in LAYOUTS.values():
        for key, value in make_objective(wanted).measure(network, examples, layout).items():
            assert best[f"eval_{key}"] == pytest.approx(value, abs=1e-5), key
    assert last["eval_loss"] == pytest.approx(last["eval_nll"] + wanted.orpo_beta * last["eval_odds_ratio"])
    assert 0 <= last["eval_reward_accuracy"] <= 1 and {"eval_accuracy", "eval_log_loss"} <= last.keys()
    said = capsys.readouterr().out
    assert "rejected: ⟦" in said and "odds ratio against both wrong ones (ORPO)" in said
    assert said.count("dev pairs: loss") == wanted.epoch


def test_the_guard_compares_and_falls_back(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"objective": "orpo", "share_prefixes": "on", "epoch": 1}
    wanted = toys.recipe(backbone_folder("qwen2"), "qwen2", **keys)
    guard = train(wanted, tmp_path / "sound").training["rows"]["guard"]
    assert guard["agree"] and guard["letter_logits_gap"] < 1e-4 and guard["gradient_norm"][0] > 0
    collate = Orpo.collate

    def wrong(self: Any, *given: Any) -> Any:
        rows = collate(self, *given)
        return [{**row, "depth": row["depth"].clamp(max=3)} if "end" in row else row for row in rows]

    monkeypatch.setattr(Orpo, "collate", wrong)
    rows_of = train(wanted, tmp_path / "wrong").training["rows"]
    assert not rows_of["guard"]["agree"] and rows_of["kind"] == "padded"
    assert "WARNING" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["orpo", pytest.param("lora", marks=pytest.mark.thorough)])
def test_two_epochs_and_two_are_four_bit_for_bit(
    method: str, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"method": method, "epoch": 4, "lr": 1e-3, "lora_dropout": 0.3, "orpo_pairs": "one", "share_prefixes": "on"}
    wanted = toys.recipe(backbone_folder("qwen2it"), "qwen2it", **{"objective": "orpo", **keys})
    straight = train(wanted, tmp_path / "straight")
    with monkeypatch.context() as patch:
        kill_after(patch, 10)
        with pytest.raises(Killed):
            train(wanted, tmp_path / "halved")
    halved = train(wanted, tmp_path / "halved")
    assert halved.training["resumed_from"]
    name = "model" if method == "orpo" else "adapter"
    assert equal(weights(tmp_path / "halved" / name), weights(tmp_path / "straight" / name))
    assert halved.training["evaluations"] == straight.training["evaluations"]


@pytest.mark.parametrize(
    ("method", "answer"), [("orpo", "whole"), pytest.param("lora", "letter", marks=pytest.mark.thorough)]
)
def test_it_learns_to_prefer_the_right_answer(
    method: str, answer: str, backbone_folder: Folder, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"orpo_answer": answer, "lora_dropout": 0, "share_prefixes": "on"}
    keys |= {"epoch": 10, "lr": 3e-3} if method == "orpo" else {"epoch": 20, "lr": 2e-2, "batch_size": 4}
    wanted = toys.recipe(backbone_folder("qwen2"), "qwen2", objective="orpo", method=method, **keys)
    items = toys.items(8)
    outcome = train(wanted, tmp_path, items, items)
    first, *_, last = outcome.training["evaluations"]
    assert last["eval_accuracy"] == 1.0 and last["eval_reward_accuracy"] == 1.0
    assert last["eval_log_odds"] > first["eval_log_odds"] and last["eval_loss"] < first["eval_loss"]
    assert math.isfinite(last["eval_loss"])


def test_wrong_answers_are_checked_as_right_ones_are() -> None:
    from src.console.cli import UserError

    items = toys.items(2, inference_3="화자1은 이 모든 일을 아주 오래전부터 하나도 빠짐없이 알고 있었다.")
    short = toys.encoder("qwen2", encoder("qwen2").prompt, context=1)
    objective = make_objective(recipe())
    longest = max(len(ids) for one in objective.examples(encoder("qwen2"), items) for ids in one.sequences)
    alone = max(len(one.ids) for one in encoder("qwen2").for_training(items))
    assert longest > alone
    short.context = alone
    short.for_training(items)
    with pytest.raises(UserError, match=rf"longer than the model's context .*\({longest} tokens\).*Nothing is cut"):
        objective.examples(short, items)
