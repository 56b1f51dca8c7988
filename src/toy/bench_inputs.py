"""The inputs of `run.bench`: a corpus, tokenizers and weights of the true sizes, all made here.

Speed and memory do not depend on the values of words and weights, so nothing has to be downloaded. The sample corpus is
lengthened with its own utterances to the official length statistics. A tokenizer trained on it makes as many tokens of
an item, and of what all items begin with, as the real tokenizers of its kind do (src/plan/kinds.py). The backbones have
their true shapes, with random weights made on the device.
"""

import bisect
import itertools
import json
import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import bitsandbytes
import jinja2
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from src import task
from src.data import Item
from src.model.backbones import backbones
from src.model.recipes import make_recipe
from src.plan.kinds import Kind, kinds
from src.prompt.encode import Encoder, Example, Limits
from src.prompt.prompts import Prompt
from src.toy import corpus
from src.toy.corpus import RawItem
from src.toy.miniature import load_values
from src.train.order import epoch_steps
from src.tree import layouts
from src.tree.rows import Layout, sizes

Merge = tuple[str, str]
SEED = 0

# Turns and characters of a dialogue as in the official splits: least, mean, most. Only the extremes of test are known,
# so its means are those of train. The least number of characters is a guess.
TURNS = {"train": (12, 20.8, 30), "test": (11, 20.8, 30)}
CHARACTERS = {"train": (200, 393, 1016), "test": (200, 393, 1200)}
CHARACTERS_SPREAD = 0.4
"""Standard deviation of the characters' logarithm."""
OTHER_TARGET = 0.15
"""Share of the items that ask about another turn than the others of their dialogue; they share less of the prompt."""
ADVERBS = ("이번에", "요즘 들어", "며칠 전부터", "누구보다도", "생각지 못하게", "주변의 도움으로", "지난주 내내")
ADVERBS_EACH = (0, 0, 1, 1, 1, 1, 3)
"""Numbers of adverbs, one of which is drawn for each item and put into its options. With real tokenizers, items then
have about as many tokens as the official ones, and share as many."""
STEP = 64
"""Items of the steps over which shared tokens are counted."""
FITTED = 60
"""Items, from the shortest to the longest, to which the tokenizer's merges are fitted."""
VOCABULARY = 8192
"""More tokens than any of the bench's tokenizers has."""
SPECIALS = ("<|pad|>", "<|begin|>", "<|eot|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]\n{{ message.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


# The corpus and its tokenizer


def lengthened(items: Sequence[RawItem], split: str, seed: int = SEED) -> list[RawItem]:
    """`items` of the sample corpus, in the official shape, with dialogues and options of the official lengths.

    Utterances drawn from all dialogues of `items` are put before and after each dialogue; items of one dialogue still
    share it. split: "train" or "test", the split whose lengths are meant.
    """
    rng = random.Random(f"bench {seed} {items[0]['id']}")
    talk = sorted({turn["utterance"] for item in items for turn in item["input"]["conversation"]})
    groups = [list(group) for _, group in itertools.groupby(items, key=lambda item: item["input"]["conversation"])]
    longer: list[RawItem] = []
    for group, wanted in zip(groups, rng.sample(_characters(split, len(groups)), len(groups)), strict=True):
        dialogue = _longer(group[0]["input"]["conversation"], wanted, talk, split, rng)
        for item in group:
            inner = item["input"] | {"conversation": dialogue}
            if rng.random() < OTHER_TARGET:
                inner["reference_id"] = [rng.choice(dialogue)["utterance_id"]]
            # The same for all options: they are edits of the right one.
            adverbs = rng.sample(ADVERBS, rng.choice(ADVERBS_EACH))
            inner |= {name: _with_words(inner[name], *adverbs) for name in task.current().options}
            longer.append(item | {"input": inner})
    return longer


def _characters(split: str, dialogues: int) -> list[float]:
    """The numbers of characters of `dialogues` dialogues, ascending. They are spread evenly over a lognormal
    distribution, so that the extremes come up.
    """
    least, mean, most = CHARACTERS[split]
    normal = statistics.NormalDist(math.log(mean) - CHARACTERS_SPREAD**2 / 2, CHARACTERS_SPREAD)
    drawn = [math.exp(normal.inv_cdf((place + 0.5) / dialogues)) for place in range(dialogues)]
    return [min(max(one, least), most) for one in drawn]


def _longer(
    turns: list[dict[str, Any]], characters: float, talk: Sequence[str], split: str, rng: random.Random
) -> list[dict[str, Any]]:
    """`turns` between new ones: about `characters` characters in all, in a number of turns drawn from `TURNS`."""
    least, mean, most = TURNS[split]
    count = round(rng.triangular(least, most, 3 * mean - least - most)) - len(turns)
    room = characters - sum(len(turn["utterance"]) for turn in turns)
    new = []
    for place in range(count):
        wanted = room / (count - place)
        text = min(rng.sample(talk, 16), key=lambda one: abs(len(one) - wanted))
        while len(text) < wanted - 8:  # half an utterance, which comes nearest on average
            text += " " + rng.choice(talk)
        room -= len(text)
        id = f"{turns[0]['utterance_id']}-talk-{place + 1}"
        new.append({"speaker": rng.choice((1, 2)), "utterance": text, "utterance_id": id})
    cut = rng.randint(0, len(new))
    return [*new[:cut], *turns, *new[cut:]]


def _with_words(sentence: str, *words: str) -> str:
    """`sentence` with `words` after its first word."""
    first, _, rest = sentence.partition(" ")
    return " ".join([first, *words, rest])


def make_corpus(seed: int = SEED) -> dict[str, list[RawItem]]:
    """The lengthened train and test splits, all items labelled."""
    splits = corpus.make_corpus(seed)
    return {split: lengthened(splits[split], split, seed) for split in ("train", "test")}


def train_tokenizer(items: Sequence[Item], prompt: Prompt, kind: Kind) -> Tokenizer:
    """Byte-level BPE whose items share their first `kind.shared_tokens` tokens and have `kind.mean_tokens` on average,
    with as few merges as that takes.

    Merges of the prompt's words and of the dialogues' are learned separately: a real tokenizer knows English far better
    than Korean, and this prompt is in both.
    """
    by_length = sorted(items, key=lambda item: sum(len(turn.text) for turn in item.dialogue))
    some = [_whole_text(item, prompt) for item in by_length[:: max(1, len(items) // FITTED)]]
    beginning = [some[0][: _common_length(some)]]
    # The text of short dialogues counts twice, since long ones repeat it.
    said = [(*(turn.text for turn in item.dialogue), item.options[0]) for item in by_length]
    texts = [text for part in (said, said[: len(said) // 2]) for text in sorted(set(itertools.chain(*part)))]
    of_prompt, of_talk = _merges([prompt.system, prompt.user, *prompt.categories.values()]), _merges(texts)
    words = len(of_prompt)
    for _ in range(3):  # each depends a little on the other
        korean = _fewest(of_talk, some, kind.mean_tokens, before=of_prompt[:words])
        words = _fewest(of_prompt, beginning, kind.shared_tokens, behind=of_talk[:korean])
    return _tokenizer([*of_prompt[:words], *of_talk[:korean]])


def _whole_text(item: Item, prompt: Prompt) -> str:
    """The item in the bench's chat template, its answer included."""
    rendered = prompt.render(item)
    answer = {"role": "assistant", "content": rendered.answers[item.label or 0]}
    return jinja2.Template(TEMPLATE).render(bos_token=SPECIALS[1], messages=[*rendered.messages, answer])


def _merges(texts: Sequence[str]) -> list[Merge]:
    """The merges that byte-level BPE learns from `texts`, the most frequent first."""
    made = _tokenizer([])
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY - 1000, show_progress=False))
    return [(left, right) for left, right in json.loads(made.to_str())["model"]["merges"]]


def _tokenizer(merges: Sequence[Merge]) -> Tokenizer:
    merges = list(dict.fromkeys(merges))
    words = dict.fromkeys([*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)])
    made = Tokenizer(BPE(vocab={word: id for id, word in enumerate(words)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIALS))
    return made


def _fewest(
    merges: Sequence[Merge],
    texts: Sequence[str],
    most: float,
    before: Sequence[Merge] = (),
    behind: Sequence[Merge] = (),
) -> int:
    """How many of the first `merges`, between those `before` and `behind`, are needed to cut `texts` into at most
    `most` tokens on average; all of them where even that is not enough.
    """

    def suffice(count: int) -> bool:
        made = _tokenizer([*before, *merges[:count], *behind])
        return statistics.mean(len(one.ids) for one in made.encode_batch(list(texts))) <= most

    return bisect.bisect_left(range(len(merges)), True, key=suffice)


def _common_length(sequences: Sequence[str] | Sequence[tuple[int, ...]]) -> int:
    """The length of the beginning that all sequences share: that of the first and the last in sorted order."""
    pairs = zip(min(sequences), max(sequences), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def kind_for(short: str) -> Kind:
    """The kind of tokenizer that a backbone is measured with."""
    return kinds()[backbones()[short].tokens_like]


def make_encoder(tokenizer: Tokenizer, prompt: Prompt, context: int | None = None) -> Encoder:
    """The encoder of every case. Its BOS is not the first id, whose embedding an architecture may keep at zero."""
    pad, bos, eos = SPECIALS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.chat_template = TEMPLATE
    return Encoder(fast, prompt, name="bench", limits=Limits(context))


def corpus_statistics(encoder: Encoder, train: Sequence[Item], test: Sequence[Item]) -> dict[str, Any]:
    """The lengthened corpus in turns, characters and tokens; its ratios are defined as in tokenizers.yaml."""
    examples = encoder.for_training(train)
    prompts = [one.ids for one in encoder.for_scoring(test)]
    layout = Layout("tree", layouts.GPU_ROW, encoder.pad_id)
    recipe = make_recipe({"model_id": "bench", "batch_size": STEP, "order": "dialogue", "seed": SEED}, "bench")
    steps = [[examples[number].ids for number in step] for step in epoch_steps(examples, recipe)]
    computed = sum(sum(sizes(step, layout)) for step in steps) / len(examples)
    texts = [turn.text for item in train[::5] for turn in item.dialogue]
    talk_tokens = sum(len(ids) for ids in encoder.tokenizer(texts, add_special_tokens=False)["input_ids"])
    characters = [sum(len(turn.text) for turn in item.dialogue) for item in train]
    lengths = [len(one.ids) for one in examples]
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
        "shared_prompt_tokens": _common_length([one.ids for one in examples]),
        "computed_tokens": computed,
        "training_ratio": statistics.mean(lengths) / computed,
        "scored_tokens_mean": statistics.mean(map(len, prompts)),
        "scoring_ratio": sum(map(len, prompts)) / sum(sizes(prompts, layout)),
        "prompt": encoder.prompt.name,
    }


def mixed_lengths(examples: Sequence[Example]) -> list[Example]:
    """`examples` in an order that mixes short and long ones evenly, so that a few seconds represent all."""
    by_length = sorted(examples, key=lambda one: one.tokens)
    stride = max(1, round(0.618 * len(by_length)))
    while math.gcd(stride, len(by_length)) > 1:
        stride += 1
    return [by_length[place * stride % len(by_length)] for place in range(len(by_length))]


# The backbones


def model_config(short: str, device: str, layers: int | None = None) -> Any:
    """The config of the backbone's true shape, or on a "cpu" of its miniature's. layers: those of a shortened stack."""
    if device == "cpu":
        values = {key: value for key, value in _miniature_shape(short).items() if key != "rope_theta"}
        values["vocab_size"] = VOCABULARY  # the bench's tokenizers are larger than the miniature's
    else:
        backbone = backbones()[short]
        values = {
            "model_type": backbone.model_type,
            "intermediate_size": backbone.intermediate_size,
            "num_attention_heads": backbone.heads,
            "num_key_value_heads": backbone.kv_heads,
            "head_dim": backbone.head_dim,
            "tie_word_embeddings": backbone.tied,
            "max_position_embeddings": backbone.context,
            **backbone.expect,
            "vocab_size": backbone.vocab,
            "hidden_size": backbone.hidden_size,
            "num_hidden_layers": backbone.layers,
        }
    values["num_hidden_layers"] = min(layers or values["num_hidden_layers"], values["num_hidden_layers"])
    return AutoConfig.for_model(values.pop("model_type"), **values, pad_token_id=None, use_cache=False)


def _miniature_shape(short: str) -> dict[str, Any]:
    """For a backbone without a miniature: the shape of another backbone of its architecture, or else of the first."""
    made = load_values()["backbones"]
    if short in made:
        return dict(made[short]["model"])
    model_type = backbones()[short].expect.get("model_type", "llama")
    shapes = [one["model"] for one in made.values()]
    return {**next((one for one in shapes if one["model_type"] == model_type), shapes[0]), "model_type": model_type}


def make_model(
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    nf4: torch.dtype | None = None,
    double: bool = False,
) -> Any:
    """A model of random weights in `dtype`, made on `device`, layer by layer.

    nf4: the linear layers are quantised and compute in this dtype; each layer is quantised before the next one is made.
    double: the scales are quantised as well.
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
        if "support_avx512bf16_for_cpu" in vars(packed):  # see src/model/load.py
            vars(packed)["support_avx512bf16_for_cpu"] = False
        layer.set_submodule(name, packed)
