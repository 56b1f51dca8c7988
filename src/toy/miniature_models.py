"""The models of the miniature: real architectures, with attention that starts where trained models end up."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from src.model.shapes import Shape

SLOW = 0.014
"""Radians a token. Pairs of features that turn more slowly can compare tokens a dialogue apart."""


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
    angles = [config.rope_parameters["rope_theta"] ** (-pair / half) for pair in range(half)]
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


@torch.no_grad()
def inherit(network: Any, tokenizer: Any, parent: Any, parent_tokenizer: Any) -> None:
    """Gives `network` the weights of `parent`, and its embeddings of the tokens that both vocabularies have.

    A deeper network repeats the parent's last layer but one, with a tenth of its output (SOLAR was made deeper
    likewise).
    """
    layers, old = network.model.layers, parent.model.layers
    extra = len(layers) - len(old)
    assert extra >= 0, "a parent has no more layers than its child"
    order = [*range(len(old) - 1), *[len(old) - 2] * extra, len(old) - 1]
    for place, (layer, source) in enumerate(zip(layers, order, strict=True)):
        for name, theirs in old[source].named_parameters():  # the child's may be larger, and may have biases too
            layer.get_parameter(name)[tuple(map(slice, theirs.shape))] = theirs
        if len(old) - 1 <= place < len(layers) - 1:
            layer.self_attn.o_proj.weight *= 0.1
            layer.mlp.down_proj.weight *= 0.1
    network.model.norm.load_state_dict(parent.model.norm.state_dict())
    known = parent_tokenizer.get_vocab()
    shared = [(id, known[token]) for token, id in tokenizer.get_vocab().items() if token in known]
    mine, theirs = (torch.tensor(column) for column in zip(*shared, strict=True))
    for new, other in (
        (network.get_input_embeddings(), parent.get_input_embeddings()),
        (network.get_output_embeddings(), parent.get_output_embeddings()),
    ):
        new.weight[mine] = other.weight[theirs]
