"""Stand-ins for what the bench measures with: a corpus, a tokenizer and weights of the true sizes, all made here.

Speed and memory do not depend on what words and weights say, so nothing has to be downloaded. The sample corpus is
lengthened with its own talk to the official length statistics; a tokenizer trained on it makes about as many tokens of
Korean as the backbones' do; and the backbones have their true shapes, with random weights made on the device.
"""

import itertools
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import bitsandbytes
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from src import corpus, miniature
from src.data import Item
from src.encode import Encoder
from src.prompts import Prompt
from src.recipes import backbones

SEED = 0

# Turns and characters of a dialogue as in the official train split, which test resembles: least, mean, most.
TURNS = (12, 20.8, 30)
CHARACTERS = (200, 393, 1016)
CHARACTERS_SPREAD = 0.4
"""Standard deviation of the characters' logarithm."""
CHARACTERS_PER_TOKEN = 1.5
"""Of the talk, in the bench's tokenizer: about what the backbones' tokenizers make of Korean."""
PROMPT_REPEATS = 5
"""How often the tokenizer's training text repeats the prompt, so that its English becomes words as well."""
SPECIALS = ("<|pad|>", "<|begin|>", "<|eot|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]\n{{ message.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


# The corpus and its tokenizer


def lengthened(items: Sequence[dict[str, Any]], seed: int = SEED) -> list[dict[str, Any]]:
    """`items` of the sample corpus, in the official shape, with dialogues of the official length.

    Talk drawn from all dialogues of `items` comes before and behind each; items of one dialogue still share it.
    """
    rng = random.Random(f"bench {seed} {items[0]['id']}")
    talk = sorted({turn["utterance"] for item in items for turn in item["input"]["conversation"]})
    longer: list[dict[str, Any]] = []
    for turns, group in itertools.groupby(items, key=lambda item: item["input"]["conversation"]):
        dialogue = _longer(turns, talk, rng)
        longer += [item | {"input": item["input"] | {"conversation": dialogue}} for item in group]
    return longer


def _longer(turns: list[dict[str, Any]], talk: Sequence[str], rng: random.Random) -> list[dict[str, Any]]:
    """`turns` between new ones, up to lengths drawn from `TURNS` and `CHARACTERS`."""
    least, mean, most = TURNS
    count = round(rng.triangular(least, most, 3 * mean - least - most)) - len(turns)
    shortest, characters, longest = CHARACTERS
    drawn = rng.lognormvariate(math.log(characters) - CHARACTERS_SPREAD**2 / 2, CHARACTERS_SPREAD)
    room = min(max(drawn, shortest), longest) - sum(len(turn["utterance"]) for turn in turns)
    new = []
    for place in range(count):
        wanted = room / (count - place)
        text = min(rng.sample(talk, 4), key=lambda one: abs(len(one) - wanted))
        while len(text) < wanted - 8:  # half an utterance: nearest in the mean
            text += " " + rng.choice(talk)
        room -= len(text)
        id = f"{turns[0]['utterance_id']}-talk-{place + 1}"
        new.append({"speaker": rng.choice((1, 2)), "utterance": text, "utterance_id": id})
    cut = rng.randint(0, len(new))
    return [*new[:cut], *turns, *new[cut:]]


def make_corpus(seed: int = SEED) -> dict[str, list[dict[str, Any]]]:
    """The lengthened train and test splits, all items labelled."""
    splits = corpus.make_corpus(seed)
    return {split: lengthened(splits[split], seed) for split in ("train", "test")}


def train_tokenizer(items: Sequence[Item], prompt: Prompt) -> Tokenizer:
    """Byte-level BPE with as few merges as make `CHARACTERS_PER_TOKEN` characters of the items' talk a token."""
    talk = sorted({text for item in items for text in (*(turn.text for turn in item.dialogue), *item.options)})
    texts = talk + [prompt.system, prompt.user, *prompt.categories.values()] * PROMPT_REPEATS
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=4000, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    whole = json.loads(made.to_str())
    sample = talk[:: max(1, len(talk) // 1000)]
    characters = sum(map(len, sample))
    low, high = 0, len(whole["model"]["merges"])
    while low < high:
        middle = (low + high) // 2
        tokens = sum(len(one.ids) for one in _first_merges(whole, middle).encode_batch(sample))
        low, high = (middle + 1, high) if characters / tokens < CHARACTERS_PER_TOKEN else (low, middle)
    return _first_merges(whole, low)


def _first_merges(whole: Mapping[str, Any], count: int) -> Tokenizer:
    """The trained tokenizer as it was after its first `count` merges."""
    model = whole["model"]
    merges = model["merges"][:count]
    reached = {"".join(pair) for pair in merges}
    later = {"".join(pair) for pair in model["merges"][count:]} - reached
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda pair: pair[1]) if token not in later]
    vocab = {token: id for id, token in enumerate(tokens)}
    return Tokenizer.from_str(json.dumps({**whole, "model": {**model, "vocab": vocab, "merges": merges}}))


def make_encoder(tokenizer: Tokenizer, prompt: Prompt, context: int | None = None) -> Encoder:
    """The encoder of every row. Its BOS is not the first id, whose embedding an architecture may keep at zero."""
    pad, bos, eos = SPECIALS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.chat_template = TEMPLATE
    return Encoder(fast, prompt, name="bench", context=context)


def corpus_statistics(encoder: Encoder, train: Sequence[Item], test: Sequence[Item]) -> dict[str, Any]:
    """What the lengthened corpus is like, in turns, characters and tokens."""
    examples = encoder.for_training(train)
    texts = [turn.text for item in train[::5] for turn in item.dialogue]
    talk_tokens = sum(len(ids) for ids in encoder.tokenizer(texts, add_special_tokens=False)["input_ids"])
    characters = [sum(len(turn.text) for turn in item.dialogue) for item in train]
    lengths = [len(one.ids) for one in examples]
    scored = [len(one.ids) for one in encoder.for_scoring(test)]
    # What all prompts begin with, as the first and the last in sorted order do.
    ordered = sorted(one.ids for one in examples)
    pairs = zip(ordered[0], ordered[-1], strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return {
        "train_items": len(train),
        "test_items": len(test),
        "dialogues": len({item.dialogue_key for item in train}),
        "turns_mean": statistics.mean(len(item.dialogue) for item in train),
        "characters_mean": statistics.mean(characters),
        "characters_max": max(characters),
        "vocabulary": len(encoder.tokenizer),
        "characters_per_token": sum(map(len, texts)) / talk_tokens,
        "tokens_mean": statistics.mean(lengths),
        "tokens_max": max(lengths),
        "shared_prompt_tokens": shared,
        "scored_tokens_mean": statistics.mean(scored),
        "prompt": encoder.prompt.name,
    }


# The backbones


def model_config(short: str, device: str, layers: int | None = None) -> Any:
    """The config of the backbone's true shape, or on a "cpu" of its miniature's; `layers` shortens the stack."""
    if device == "cpu":
        spec = miniature.load_values()["backbones"][short]
        values = {key: value for key, value in spec["model"].items() if key != "rope_theta"}
        values["vocab_size"] = spec["tokenizer"]["vocab"]
    else:
        row = backbones()[short]
        values = {
            "model_type": "llama",
            "intermediate_size": row.intermediate_size,
            "num_attention_heads": row.heads,
            "num_key_value_heads": row.kv_heads,
            "head_dim": row.head_dim,
            "tie_word_embeddings": row.tied,
            "max_position_embeddings": row.context,
            **row.expect,
            "vocab_size": row.vocab,
            "hidden_size": row.hidden_size,
            "num_hidden_layers": row.layers,
        }
    values["num_hidden_layers"] = min(layers or values["num_hidden_layers"], values["num_hidden_layers"])
    return AutoConfig.for_model(values.pop("model_type"), **values, pad_token_id=None, use_cache=False)


def make_model(
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    nf4: torch.dtype | None = None,
    double: bool = False,
) -> Any:
    """A model of random weights in `dtype`, made on `device`, layer by layer.

    nf4: quantises the linear layers, to compute in that dtype, each layer before the next one is made; `double`
    quantises the scales as well.
    """
    torch.manual_seed(SEED)
    layers = config.num_hidden_layers
    config.num_hidden_layers = 0
    with device:
        network = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    config.num_hidden_layers = network.config.num_hidden_layers = layers
    with torch.device("meta"):
        layer_class = type(AutoModelForCausalLM.from_config(_with_layers(config, 1)).model.layers[0])
    default = torch.get_default_dtype()
    for place in range(layers):
        torch.set_default_dtype(dtype)
        try:
            with device:
                layer = layer_class(network.config, place)
        finally:
            torch.set_default_dtype(default)
        layer.apply(network._init_weights)
        if nf4 is not None:
            _quantise(layer, nf4, double, device)
        network.model.layers.append(layer)
    if nf4 is not None:
        network.is_loaded_in_4bit = True  # what peft asks for
    return network


def _with_layers(config: Any, layers: int) -> Any:
    """A copy of `config` with a shorter stack."""
    values = {**config.to_dict(), "num_hidden_layers": layers}
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:layers]
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _quantise(layer: Any, compute: torch.dtype, double: bool, device: torch.device) -> None:
    """Puts each linear layer's weights into NF4."""
    for name, linear in [pair for pair in layer.named_modules() if isinstance(pair[1], torch.nn.Linear)]:
        packed = bitsandbytes.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=compute,
            compress_statistics=double,
            quant_type="nf4",
            device="meta",
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            linear.weight.data, requires_grad=False, compress_statistics=double, quant_type="nf4"
        )
        packed.bias = linear.bias
        packed.to(device)  # quantises
        if "support_avx512bf16_for_cpu" in vars(packed):  # see src/model.py
            vars(packed)["support_avx512bf16_for_cpu"] = False
        layer.set_submodule(name, packed)
