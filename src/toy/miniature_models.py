"""The models of the miniature: real architectures, with attention that starts where trained models end up."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from src.model.shapes import Shape

SLOW = 0.014
"""Radians a token. Pairs of features that turn more slowly can compare tokens a dialogue apart."""

GELU = 1.702
"""GELU(x) is about x / (1 + exp(-1.702 x)) (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""


def make_model(spec: Mapping[str, Any], tokenizer: Any, initialisation: Mapping[str, float]) -> Any:
    """An untrained fp32 model of the config `spec`, drawn from torch's global generator; vocabulary padded to 64."""
    settings = {key: value for key, value in spec.items() if key not in ("model_type", "rope_theta")}
    config = AutoConfig.for_model(
        spec["model_type"],
        rope_parameters={"rope_type": "default", "rope_theta": spec["rope_theta"]},
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=initialisation["weight_std"],
        **settings,
    )
    attention = Shape.of_config(config).family.attention
    network = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    initialise(network, initialisation)
    return network


@torch.no_grad()
def initialise(network: Any, values: Mapping[str, float]) -> None:
    """Points the heads of every layer: even groups (of key-value heads) at near tokens, odd groups at equal tokens
    further back.

    Rotary embedding turns the i-th pair of a head's features by its own angle a token. Fast pairs get a constant query
    and key, whose product falls with the distance: a peak one token back, or a broad one at the token itself. Slow
    pairs get the same random projection as query and key, so that equal tokens find each other. The query is turned on
    by `distance` tokens, so that an occurrence about that far back wins over the token itself.
    """
    config = network.config
    hidden = config.hidden_size
    embeddings = network.get_input_embeddings().weight
    # Gemma2 multiplies its embeddings by the root of their size.
    std = values["embedding_std"] / (math.sqrt(hidden) if config.model_type == "gemma2" else 1)
    embeddings.normal_(0, std)
    embeddings[:, 0] = values["constant"] * std

    for layer in network.model.layers:
        _point_heads(layer.self_attn, config, values)
        if config.model_type == "gemma2":
            # Its norms scale by one plus their weight.
            layer.post_attention_layernorm.weight.fill_(values["branch"] - 1)
            layer.post_feedforward_layernorm.weight.fill_(values["branch"] - 1)


def _point_heads(attention: Any, config: Any, values: Mapping[str, float]) -> None:
    """Writes the query and key weights of one layer."""
    hidden, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or hidden // heads
    half = dim // 2
    angles = _angles(config)
    slow = [pair for pair in range(half) if angles[pair] < SLOW]
    fast = [pair for pair in range(half) if pair not in slow]
    near, constant, distance = values["near"], values["constant"], values["distance"]
    query = attention.q_proj.weight.view(groups, heads // groups, dim, hidden)
    key = attention.k_proj.weight.view(groups, dim, hidden)
    for group in range(groups):
        if group % 2:
            for pair in slow:
                first, second = torch.randn(2, hidden) * values["equal"] / math.sqrt(hidden)
                key[group, pair], key[group, pair + half] = first, second
                cos, sin = math.cos(angles[pair] * distance), math.sin(angles[pair] * distance)
                query[group, :, pair] = cos * first + sin * second
                query[group, :, pair + half] = cos * second - sin * first
            continue
        key[group] *= 0.3
        query[group] *= 0.3
        key[group, fast, 0] = near / constant
        for head in range(heads // groups):
            broad = head % 2
            back = 0 if broad else 1
            for pair in fast:
                if angles[pair] < 0.35 if broad else angles[pair] > 0.05:
                    query[group, head, pair, 0] = near * math.cos(angles[pair] * back)
                    query[group, head, pair + half, 0] = -near * math.sin(angles[pair] * back)


def _angles(config: Any) -> list[float]:
    """Radians a token that each pair of a head's features turns by."""
    half = (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) // 2
    return [config.rope_parameters["rope_theta"] ** (-pair / half) for pair in range(half)]


def _pairs_of(config: Any, parent: Any) -> list[int]:
    """For each pair of a head's features, the parent's pair that turns about as fast."""
    theirs = [math.log(angle) for angle in _angles(parent)]
    return [min(range(len(theirs)), key=lambda pair: abs(theirs[pair] - math.log(angle))) for angle in _angles(config)]


def _copy_attention(mine: Any, theirs: Any, pairs: Sequence[int]) -> None:
    """Copies attention weights so that heads see distances as the parent's do. A pair that is taken twice counts half;
    what larger heads have more of their values starts without effect.
    """
    half, old_half = len(pairs), theirs.head_dim // 2
    shares = torch.tensor([pairs.count(pair) for pair in pairs]).sqrt()[:, None]
    for name in ("q_proj", "k_proj", "v_proj"):
        old = dict(getattr(theirs, name).named_parameters())
        for kind in old:  # a parent may lack biases, but has none that its child lacks
            before = old[kind].view(-1, 2, old_half, old[kind].numel() // len(old[kind]))
            after = getattr(mine, name).get_parameter(kind).view(-1, 2, half, before.shape[-1])
            if name == "v_proj":
                after.flatten(1, 2)[:, : 2 * old_half] = before.flatten(1, 2)
                continue
            after[:] = before[:, :, pairs] / shares
            if name == "q_proj":
                after *= theirs.scaling / mine.scaling
    output, before = (one.o_proj.weight.view(one.o_proj.out_features, -1, one.head_dim) for one in (mine, theirs))
    output[:] = 0
    output[:, :, : theirs.head_dim] = before


def _copy_mlp(mine: Any, theirs: Any) -> None:
    """What a larger one has more starts without effect."""
    mine.down_proj.weight.zero_()
    for name, old in theirs.named_parameters():
        mine.get_parameter(name)[tuple(map(slice, old.shape))] = old


def _copy_norms(layer: Any, source: Any, branches: Sequence[float]) -> None:
    """Norm weights, to Gemma2 from an architecture with two norms a layer. Gemma2's scale by one plus their weight, and
    it has two more behind what attention and MLP add, which get the sizes that these have in the parent: `branches`.

    Its GELU of x is about SiLU of 1.7 x, divided by 1.7.
    """
    if not hasattr(layer, "pre_feedforward_layernorm"):
        layer.input_layernorm.load_state_dict(source.input_layernorm.state_dict())
        layer.post_attention_layernorm.load_state_dict(source.post_attention_layernorm.state_dict())
        return
    layer.input_layernorm.weight.copy_(source.input_layernorm.weight - 1)
    layer.pre_feedforward_layernorm.weight.copy_(source.post_attention_layernorm.weight - 1)
    layer.post_attention_layernorm.weight.fill_(branches[0] - 1)
    layer.post_feedforward_layernorm.weight.fill_(branches[1] - 1)
    layer.mlp.gate_proj.weight /= GELU


@torch.no_grad()
def inherit(
    network: Any,
    texts: Mapping[str, int],
    parent: Any,
    parent_texts: Mapping[str, int],
    branches: Sequence[Sequence[float]],
) -> None:
    """Gives `network` the weights of `parent`, and its embeddings of the tokens that stand for the same text.

    texts: text of a token → its id, from `texts_of`. branches: for each layer of the parent, the sizes of
    what attention and MLP add.

    A deeper network repeats the parent's last layer but one, with a tenth of its output (SOLAR was made deeper
    likewise).
    """
    layers, old = network.model.layers, parent.model.layers
    turns = _pairs_of(network.config, parent.config)
    extra = len(layers) - len(old)
    assert extra >= 0, "a parent has no more layers than its child"
    order = [*range(len(old) - 1), *[len(old) - 2] * extra, len(old) - 1]
    gemma2 = network.config.model_type == "gemma2"
    for place, (layer, source) in enumerate(zip(layers, order, strict=True)):
        _copy_attention(layer.self_attn, old[source].self_attn, turns)
        _copy_mlp(layer.mlp, old[source].mlp)
        _copy_norms(layer, old[source], branches[source])
        if len(old) - 1 <= place < len(layers) - 1:
            layer.self_attn.o_proj.weight *= 0.1
            layer.mlp.down_proj.weight *= 0.1
    network.model.norm.weight.copy_(parent.model.norm.weight - (1 if gemma2 else 0))
    shared = [(id, parent_texts[text]) for text, id in texts.items() if text in parent_texts]
    mine, theirs = (torch.tensor(column) for column in zip(*shared, strict=True))
    network.get_input_embeddings().weight[mine] = parent.get_input_embeddings().weight[theirs] / (
        math.sqrt(network.config.hidden_size) if gemma2 else 1
    )
    if not network.config.tie_word_embeddings:
        network.get_output_embeddings().weight[mine] = parent.get_output_embeddings().weight[theirs]
