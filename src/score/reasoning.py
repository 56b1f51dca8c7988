"""Reasoning before the answer: chains are generated, then the letters are read after each of them.

Nothing is parsed out of the generated text. The prompt's `bridge`, the same words for all chains, leads from it to the
letter, and only the letters' probabilities there count. Those of several sampled chains are averaged, which is
self-consistency (Wang et al. 2022, arXiv:2203.11171) with probabilities in place of votes.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from src.console.cli import UserError
from src.data import Item
from src.model.devices import free_bytes
from src.model.recipes import SEED
from src.prompt.encode import Encoder
from src.score.item_scores import ItemScores, Logits
from src.score.letters import HowRead, LetterScorer
from src.tree.compiled import standard_attention

CPU_CHAINS = 2**14
"""Tokens of prompts and chains that are generated side by side on a CPU."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How chains are generated.

    samples         chains of each prompt
    temperature     0 takes the likeliest token
    top_p           tokens are drawn from the likeliest ones that make up this share
    max_new_tokens  of a chain, at most
    seed            batch n draws from `seed` + n
    """

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"--{name}: found {value}, allowed: {allowed}"
            for name, value, fine, allowed in (
                ("samples", self.samples, self.samples >= 1, "1 or more"),
                ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more"),
                ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, up to 1"),
                ("sampling_seed", self.seed, SEED.holds(self.seed), SEED.words),
                ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            )
            if not fine
        ]
        if self.samples > 1 and self.temperature == 0:
            problems.append(f"--samples {self.samples} needs a --temperature above 0; at 0 all chains are the same")
        if problems:
            raise UserError("; ".join(problems) + ".")


@dataclasses.dataclass(frozen=True)
class Chain:
    """One generated chain of an item under an order of its options.

    sample    its number among the chains of this item and order
    tokens    how many were generated, without the one that ends the chain
    finished  whether the model ended it before the limit
    logits    the letters' after the chain; None before they are read
    """

    id: str
    order: str
    sample: int
    text: str
    tokens: int
    finished: bool
    logits: Logits | None = None


@dataclasses.dataclass(frozen=True)
class Reasoned:
    """Scores of items, the chains they were read after, and how prompts and chains were read."""

    items: list[ItemScores]
    chains: list[Chain]
    how: HowRead


def reason(
    scorer: LetterScorer,
    encoder: Encoder,
    items: Sequence[Item],
    orders: Sequence[str],
    sampling: Sampling,
    update: Callable[[int], None] = lambda done: None,
) -> Reasoned:
    """Scores and chains of `items`, in their order; `update` gets the count of chains generated."""
    chains = generate(scorer.model, encoder, items, orders, sampling, update)
    by_id = {item.id: item for item in items}
    examples = encoder.for_chains(
        [(f"{place}", by_id[chain.id], chain.order, chain.text) for place, chain in enumerate(chains)]
    )
    scored = scorer.score(examples)
    chains = [dataclasses.replace(chain, logits=one.logits[0]) for chain, one in zip(chains, scored.items, strict=True)]
    return Reasoned(average(chains), chains, scored.how)


@torch.inference_mode()
def generate(
    model: Any,
    encoder: Encoder,
    items: Sequence[Item],
    orders: Sequence[str],
    sampling: Sampling,
    update: Callable[[int], None] = lambda done: None,
) -> list[Chain]:
    """`sampling.samples` chains of each item and order, in this order, without the letters' logits."""
    asked = [(item.id, order) for item in items for order in orders]
    prompts = [encoder.for_reasoning(item, order) for item in items for order in orders]
    check_lengths(encoder, items, orders, sampling)
    stop = encoder.stop_ids
    found: dict[int, list[Chain]] = {}
    done = 0
    for number, places in enumerate(batches(model, [len(ids) for ids in prompts], sampling)):
        longest = max(len(prompts[place]) for place in places)
        # Padded on the left, so that all continue at the same position.
        ids = torch.full((len(places), longest), encoder.pad_id)
        mask = torch.zeros_like(ids)
        for line, place in enumerate(places):
            ids[line, longest - len(prompts[place]) :] = torch.tensor(prompts[place])
            mask[line, longest - len(prompts[place]) :] = 1
        cuda = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), standard_attention(model), own_generation_config_ignored(model):
            torch.manual_seed(sampling.seed + number)
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=generation_config(sampling, encoder.pad_id, stop),
            )
        new = out[:, longest:].cpu().tolist()
        for line, tokens in enumerate(new):
            place, sample = places[line // sampling.samples], line % sampling.samples
            end = next((at for at, token in enumerate(tokens) if token in stop), len(tokens))
            text = encoder.tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
            id, order = asked[place]
            found.setdefault(place, []).append(Chain(id, order, sample, text, end, end < len(tokens)))
        done += len(new)
        update(done)
    return [chain for place in range(len(asked)) for chain in found[place]]


def generation_config(sampling: Sampling, pad_id: int, stop: Sequence[int]) -> GenerationConfig:
    """Everything that decides a chain."""
    drawn = sampling.temperature > 0
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=drawn,
        temperature=sampling.temperature if drawn else 1.0,
        top_p=sampling.top_p if drawn else 1.0,
        top_k=0 if drawn else 50,  # 0 keeps all; 50 is the library's default, and unused without sampling
        repetition_penalty=1.0,
        num_beams=1,
        num_return_sequences=sampling.samples,
        use_cache=True,
        pad_token_id=pad_id,
        eos_token_id=list(stop) or None,
    )


@contextlib.contextmanager
def own_generation_config_ignored(model: Any) -> Iterator[None]:
    """Within, the model's own generation_config is ignored: its penalties, say, would fill gaps in our settings."""
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    before = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, config in zip(owners, before, strict=True):
            owner.generation_config = config


def batches(model: Any, lengths: Sequence[int], sampling: Sampling) -> list[list[int]]:
    """Batches of prompts, as indices into `lengths`: the longest first, and as many at a time as the memory for their
    keys and values allows.
    """
    budget = CPU_CHAINS
    if model.device.type == "cuda":
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # Keys and values in two bytes, and as much again for a step's own work.
        budget = max(1, int(free_bytes(model.device) / 2 / (2 * 2 * 2 * config.num_hidden_layers * heads * size)))
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        room = budget // (sampling.samples * (lengths[found[-1][0]] + sampling.max_new_tokens)) if found else 0
        if not found or len(found[-1]) >= max(1, room):
            found.append([])
        found[-1].append(place)
    return found


def check_lengths(encoder: Encoder, items: Sequence[Item], orders: Sequence[str], sampling: Sampling) -> None:
    """Refuses items that would not fit into the model's context together with the longest chain and the bridge."""
    if encoder.context is None:
        return
    longest = max(encoder.for_scoring(items, orders), key=lambda one: len(one.ids))
    if len(longest.ids) + sampling.max_new_tokens > encoder.context:
        raise UserError(
            f"{encoder.name}: item {longest.id} has {len(longest.ids)} tokens; "
            f"with {sampling.max_new_tokens} of reasoning after them it does not fit into the context of "
            f"{encoder.context}. Nothing is cut; "
            f"allowed: --max_new_tokens up to {encoder.context - len(longest.ids)}, or a shorter prompt."
        )


def average(chains: Sequence[Chain]) -> list[ItemScores]:
    """One `ItemScores` per item: for each order the logarithm of the letters' mean probability over its chains.

    agreement: the share of an item's chains whose own likeliest option is the one that all together choose.
    """
    by_item: dict[str, dict[str, list[Logits]]] = {}
    for chain in chains:
        assert chain.logits is not None
        by_item.setdefault(chain.id, {}).setdefault(chain.order, []).append(chain.logits)
    scores = []
    for id, orders in by_item.items():
        logits = tuple(_mean(found) for found in orders.values())
        together = ItemScores(id, tuple(orders), logits)
        own = [ItemScores(id, (order,), (one,)).prediction for order, found in orders.items() for one in found]
        share = own.count(together.prediction) / len(own)
        samples = len(next(iter(orders.values())))
        scores.append(dataclasses.replace(together, samples=samples, agreement=share))
    return scores


def _mean(logits: Sequence[Logits]) -> Logits:
    if len(logits) == 1:
        return logits[0]
    log_shares = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    return tuple((torch.logsumexp(log_shares, 0) - math.log(len(logits))).tolist())


def summary(chains: Sequence[Chain], scores: Sequence[ItemScores], sampling: Sampling) -> dict[str, Any]:
    """The record's entry on the chains; `finished` and `agreement` are shares."""
    return {
        **dataclasses.asdict(sampling),
        "chains": len(chains),
        "mean_tokens": sum(chain.tokens for chain in chains) / len(chains),
        "finished": sum(chain.finished for chain in chains) / len(chains),
        "agreement": sum(one.agreement or 0.0 for one in scores) / len(scores),
    }
