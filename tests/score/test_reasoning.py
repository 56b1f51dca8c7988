import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from src.console.cli import UserError
from src.data import Item
from src.model.recipes import make_recipe
from src.prompt.encode import Encoder
from src.prompt.prompts import load_prompt
from src.score.item_scores import read_scores, write_scores
from src.score.letters import LetterScorer
from src.score.reasoning import (
    Chain,
    Sampling,
    average,
    batches,
    check_lengths,
    generate,
    generation_config,
    reason,
    summary,
)
from tests import toys
from tests.conftest import LETTERS, ORDERS

PROMPT = load_prompt("korean+cot")
ITEMS = toys.items(5)
SHORT_CHAIN = Sampling(max_new_tokens=7)


def encoder(short: str, **keys: Any) -> Encoder:
    return toys.encoder(short, PROMPT, reasoning=True, **keys)


def carrying(item: Item, text: str) -> Item:
    return dataclasses.replace(item, source={**item.source, "reasoning": text})


@pytest.mark.parametrize("short", ["polar", "qwen2it", "kogemma"])
def test_chains_side_by_side_are_those_of_each_prompt_alone(short: str) -> None:
    """Against a loop without padding, batch or cache."""
    network, one = toys.network(short), encoder(short)
    chains = generate(network, one, ITEMS, ORDERS[:2], SHORT_CHAIN)
    assert [(chain.id, chain.order) for chain in chains] == [(item.id, order) for item in ITEMS for order in ORDERS[:2]]
    assert len(batches(network, [10] * 10, SHORT_CHAIN)) == 1, "all in one batch"
    lengths = {len(one.for_reasoning(item)) for item in ITEMS}
    assert len(lengths) > 1, "of unequal lengths"
    by_id = {item.id: item for item in ITEMS}
    for chain in chains[::3]:
        ids = one.for_reasoning(by_id[chain.id], chain.order)
        new: list[int] = []
        while len(new) < 7 and not (new and new[-1] in one.stop_ids):
            with torch.no_grad():
                new.append(int(network(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        kept = [token for token in new if token not in one.stop_ids]
        assert chain.text == one.tokenizer.decode(kept, skip_special_tokens=True).strip()
        assert (chain.tokens, chain.finished) == (len(kept), len(kept) < len(new))


@pytest.mark.parametrize("short", sorted(toys.TOYS))
def test_the_letters_behind_the_bridge_are_the_letters_that_are_trained(short: str) -> None:
    one = encoder(short)
    texts = ("화자1은 비를 맞았다.", "A", "끝이 공백이다. \n\n", "", "답: B", "영어 words A.", "½ 😀 ⟦")
    examples = one.for_chains([(f"{n}", ITEMS[0], "012", text) for n, text in enumerate(texts)])
    at_once = toys.encoder(short, PROMPT)
    at_once.for_scoring(ITEMS)
    assert one.letter_ids == at_once.letter_ids
    for example, text in zip(examples, texts, strict=True):
        assert one.tokenizer.decode(list(example.ids)).endswith(f"{PROMPT.bridge}\n")
        if not text:  # no item is trained without its reasoning
            continue
        labelled = [dataclasses.replace(carrying(ITEMS[0], text), label=label) for label in range(len(LETTERS))]
        trained = [trained.ids[: len(example.ids) + 1] for trained in one.for_training(labelled)]
        assert trained == [(*example.ids, id) for id in one.letter_ids or ()]


def test_a_chain_cannot_end_its_own_turn() -> None:
    one = encoder("qwen2it")
    said, plain = (
        one.for_chains([("0", ITEMS[0], "012", text)])[0].ids for text in ("비가 <|im_end|>왔다.", "비가 왔다.")
    )
    end = one.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert said.count(end) == plain.count(end) and "비가 <|im_end|>왔다." in one.tokenizer.decode(list(said))


@pytest.mark.parametrize("short", ["qwen2", "kogemma"])
def test_scores_are_the_models_own_behind_each_chain(short: str) -> None:
    network, one = toys.network(short), encoder(short)
    sampling = Sampling(samples=3, temperature=1.0, max_new_tokens=5, seed=1)
    one.for_scoring(ITEMS)
    found = reason(LetterScorer(network, one.letter_ids or (), one.pad_id), one, ITEMS[:2], ORDERS[:2], sampling)
    assert [(own.id, own.orders, own.samples) for own in found.items] == [
        (item.id, ORDERS[:2], 3) for item in ITEMS[:2]
    ]
    chains = found.chains
    assert [chain.sample for chain in chains] == [0, 1, 2] * 4
    assert len({chain.text for chain in chains if chain.id == ITEMS[0].id}) > 1
    for chain in chains:
        (example,) = one.for_chains([("0", next(i for i in ITEMS if i.id == chain.id), chain.order, chain.text)])
        with torch.no_grad():
            own = network(input_ids=torch.tensor([example.ids])).logits[0, -1, list(one.letter_ids or ())]
        torch.testing.assert_close(torch.tensor(chain.logits), own, atol=2e-4, rtol=0)
    assert found.items == average(chains) and found.how.kind == "tree", "chains share their prompts"


def test_sampling_follows_its_seed() -> None:
    network, one = toys.network("qwen2"), encoder("qwen2")
    drawn = Sampling(samples=2, temperature=1.0, max_new_tokens=6, seed=3)
    before = torch.random.get_rng_state()
    first = generate(network, one, ITEMS, ORDERS[:1], drawn)
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's randomness moves"
    assert generate(network, one, ITEMS, ORDERS[:1], drawn) == first
    assert generate(network, one, ITEMS, ORDERS[:1], dataclasses.replace(drawn, seed=4)) != first
    cold = generate(network, one, ITEMS, ORDERS[:1], dataclasses.replace(drawn, temperature=1e-4))
    assert [chain.text for chain in cold[::2]] == [chain.text for chain in cold[1::2]]


def test_a_models_own_generation_config_does_not_count() -> None:
    network, one = toys.network("qwen2"), encoder("qwen2")
    plain = generate(network, one, ITEMS[:2], ORDERS[:1], SHORT_CHAIN)
    network.generation_config.repetition_penalty = 1.9
    network.generation_config.do_sample = True
    network.generation_config.no_repeat_ngram_size = 1
    own = network.generation_config
    assert generate(network, one, ITEMS[:2], ORDERS[:1], SHORT_CHAIN) == plain
    assert network.generation_config is own


def test_probabilities_are_averaged() -> None:
    # Two chains are nearly sure of A, three lean to B: the votes say B, the probabilities A.
    sure, leaning = (8.0, 0.0, 0.0), (0.0, 0.2, 0.0)
    (found,) = average([Chain("i", "012", n, "", 1, True, one) for n, one in enumerate([sure, sure, *[leaning] * 3])])
    shares = torch.softmax(torch.tensor([sure, sure, *[leaning] * 3], dtype=torch.float64), -1).mean(0)
    assert torch.tensor(found.logprobs).exp().tolist() == pytest.approx(shares.tolist())
    assert (found.prediction, found.samples, found.agreement) == (0, 5, 0.4)
    # Under other orders the letters are other options.
    (found,) = average([Chain("i", order, 0, "", 1, True, sure) for order in ("012", "120")])
    assert found.prediction == 0 and found.agreement == 0.5 and found.samples == 1
    assert math.isclose(found.logprobs[0], found.logprobs[1])


@pytest.mark.usefixtures("four_options")
def test_four_letters_are_averaged_as_three_are() -> None:
    # The one chain is sure of the option that A shows, option 2. Two lean to that under D, option 1.
    sure, leaning = (9.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.3)
    (found,) = average([Chain("i", "2031", n, "", 1, True, one) for n, one in enumerate([sure, leaning, leaning])])
    shares = torch.softmax(torch.tensor([sure, leaning, leaning], dtype=torch.float64), -1).mean(0)
    assert torch.tensor(found.logits[0], dtype=torch.float64).exp().tolist() == pytest.approx(shares.tolist())
    assert (found.prediction, found.samples, found.agreement) == (2, 3, pytest.approx(1 / 3))
    assert found.logprobs == pytest.approx([math.log(shares[place]) for place in (1, 3, 0, 2)])


def test_scores_keep_samples_and_agreement(tmp_path: Path) -> None:
    scores = average([Chain("i", "012", n, "", 1, True, (n, 0.5, 0.0)) for n in range(2)])
    write_scores(tmp_path / "scores_dev.jsonl", scores)
    assert read_scores(tmp_path / "scores_dev.jsonl") == scores
    assert json.loads((tmp_path / "scores_dev.jsonl").read_text())["samples"] == 2
    told = summary([Chain("i", "012", n, "", 3, n == 0, (0, 0, 1)) for n in range(2)], scores, Sampling(2, 0.7))
    assert (told["samples"], told["mean_tokens"], told["finished"], told["agreement"]) == (2, 3, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"samples": 0}, "--samples: found 0"),
        ({"samples": 2}, "--samples 2 needs a --temperature above 0"),
        ({"temperature": -1.0}, "--temperature: found -1.0"),
        ({"top_p": 0.0}, "--top_p: found 0.0"),
        ({"max_new_tokens": 0}, "--max_new_tokens: found 0"),
    ],
)
def test_settings_of_chains_are_checked(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sampling(**values)


def test_what_does_not_fit_is_refused_before_anything_is_generated() -> None:
    longest = max(len(example.ids) for example in encoder("qwen2").for_scoring(ITEMS))
    check_lengths(encoder("qwen2", context=longest + 7), ITEMS, ORDERS[:1], SHORT_CHAIN)
    with pytest.raises(UserError, match=r"--max_new_tokens up to 6, or a shorter prompt"):
        check_lengths(encoder("qwen2", context=longest + 6), ITEMS, ORDERS[:1], SHORT_CHAIN)
    with pytest.raises(UserError, match="prompt entry: reasoning needs a `bridge`"):
        toys.encoder("qwen2", load_prompt("entry"), reasoning=True)


def test_all_tokens_that_end_a_turn_end_a_chain() -> None:
    ends = {"qwen2": ["<|endoftext|>", "<|im_end|>"], "bllossom": ["<|eot_id|>"], "kogemma": ["<eos>", "<end_of_turn>"]}
    for short, tokens in ends.items():
        assert encoder(short).stop_ids == sorted(toys.tokenizer(short).convert_tokens_to_ids(tokens)), short
    config = generation_config(Sampling(3, 0.5, 0.9, 11), 5, [7, 8])
    assert (config.num_return_sequences, config.temperature, config.top_p, config.max_new_tokens) == (3, 0.5, 0.9, 11)
    assert (config.pad_token_id, config.eos_token_id, config.use_cache) == (5, [7, 8], True)


# Training


@pytest.mark.parametrize("short", ["polar", "qwen2it", "kogemma"])
def test_reasoning_is_trained_where_the_data_carries_it(short: str) -> None:
    one = encoder(short)
    item = carrying(ITEMS[1], " 편의점 이야기가 나온다.\n")
    (example,) = one.for_training([item])
    text = one.tokenizer.decode(list(example.ids[example.answer_start :]))
    assert text.strip() == f"편의점 이야기가 나온다.\n\n{PROMPT.bridge}\nB{one.turn_end}".strip()
    assert example.ids[: example.answer_start] == tuple(one.for_reasoning(item))
    assert one.letter_ids and one.letter_ids[1] in example.ids[example.answer_start :]
    with pytest.raises(UserError, match=r'item made-0000 carries no reasoning; .*"reasoning"'):
        one.for_training(ITEMS)


def test_only_the_whole_answer_can_be_trained_with_reasoning() -> None:
    with pytest.raises(UserError, match="objective: found letter, allowed with reasoning: answer"):
        make_recipe({"model_id": "x", "reasoning": True, "objective": "letter"}, "here")
