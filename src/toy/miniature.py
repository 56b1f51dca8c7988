"""The miniature: the eight backbones at toy size, with their architecture and their tokenizer's quirks, in seconds.

A frozen random base cannot be tuned with adapters, so each is pre-trained for a few seconds, on dialogues that
`src/toy/corpus.py` invents for it: the same kind as the sample corpus, never its items. Three things make seconds
enough:

- attention starts where trained models end up, on near tokens and on equal tokens further back: mimetic
  initialisation (Trockman & Kolter 2023, arXiv:2305.09828);
- two probes on middle layers, thrown away afterwards, ask for the steps on the way: is this word in the dialogue, is
  this option right;
- the questions of a dialogue share its tokens, each seeing the dialogue and itself.

A backbone may start with the weights of another, its `parent`, and with its embeddings of the tokens that both know.
Numbers of these models say that the code works, nothing about the backbones; they are always called the miniature's.
"""

import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from src.console.start import ours
from src.data import CATEGORIES
from src.model.backbones import backbones
from src.model.recipe_files import RECIPES
from src.prompt.prompts import LETTERS
from src.toy import corpus
from src.tree import prefix as tree

VALUES = ours("resource/miniature/miniature.yaml")
PROMPT_WORDS, BETWEEN = ours("resource/miniature/prompt_words.txt"), "-----"
"""Prompts as the tokenizers know them, a text of their own: a new or changed prompt makes no other miniature."""

# How byte-level tokenizers cut text before merging: Llama 3 keeps up to three digits together, Qwen2 none.
BYTE_SPLITS = {
    kind: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for kind, digits in (("bytes-llama3", r"\p{N}{1,3}"), ("bytes-qwen2", r"\p{N}"))
}

# Radians a token; pairs of features that turn more slowly can compare tokens a dialogue apart.
SLOW = 0.014
Raw = Mapping[str, Any]
"""An item in the official shape, as `src/toy/corpus.py` makes them."""
Marks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Rows, columns and the truth at these places, all (places,)."""


def load_values(path: Path = VALUES) -> dict[str, Any]:
    """Every value of the miniature; see the file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def make_backbone(
    short: str,
    values: Mapping[str, Any],
    texts: Sequence[str],
    parent: tuple[Any, Any] | None = None,
    update: Callable[[int], None] = lambda done: None,
) -> tuple[Any, Any, float | None]:
    """(model in fp32, tokenizer, share of right letters on new dialogues, None without pre-training) of one backbone.

    texts: from `tokenizer_texts`; parent: model and tokenizer it starts from; `update` gets the count of steps done.
    Equal arguments give equal weights on one machine.
    """
    spec = values["backbones"][short]
    assert ("parent" in spec) == (parent is not None), f"{short}: parent is {spec.get('parent')}"
    seed = values["seed"] + list(values["backbones"]).index(short)
    tokenizer = make_tokenizer(spec["tokenizer"], texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_model(spec["model"], tokenizer, values["initialisation"])
        if parent:
            inherit(network, tokenizer, *parent)
        form = ChatForm(tokenizer, tokenizer.chat_template or backbones()[short].chat_template)
        accuracy = pretrain(network, form, values["pretraining"], seed, update)
    return network, tokenizer, accuracy


def recipes(values: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """YAML of the miniature's recipes by name: the published ones, for backbones in `folder` and their size."""
    texts = {}
    for short in values["backbones"]:
        published = RECIPES / "published" / f"{short}.yaml"
        recipe = yaml.safe_load(published.read_text(encoding="utf-8"))
        recipe |= {"model_id": (folder / short).as_posix(), **values["recipes"][recipe["method"]]}
        head = f"# {published.name} at toy size, made by run.make_miniature from {VALUES.as_posix()}.\n"
        texts[f"mini-{short}"] = head + yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, width=120)
    return texts


# Tokenizers


def tokenizer_texts(values: Mapping[str, Any]) -> list[str]:
    """What the eight tokenizers are trained on: invented dialogues and options, and the prompts that frame them."""
    items = corpus.make_dialogues(values["tokenizer"]["dialogues"], values["seed"])
    texts = [_dialogue(item) for item in items[:: len(CATEGORIES)]]
    texts += ["\n".join(_options(item)) for item in items]
    for words in PROMPT_WORDS.read_text(encoding="utf-8").split(f"\n{BETWEEN}\n"):
        texts += [words.removesuffix("\n")] * values["tokenizer"]["prompt_repeats"]
    return texts


def make_tokenizer(spec: Mapping[str, Any], texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of `spec` (a backbone's `tokenizer` in the values) whose vocabulary comes from `texts`."""
    tokenizer = _byte_level(spec, texts) if spec["kind"] in BYTE_SPLITS else _pieces(spec, texts)
    before = [spec["bos"]] if spec.get("add_bos") else []
    after = [spec["eos"]] if spec.get("add_eos") else []
    if before or after:
        single = [*before, "$A", *after]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(f"{one}:1" for one in before), "$B:1", *(f"{one}:1" for one in after)],
            special_tokens=[(one, tokenizer.token_to_id(one)) for one in (*before, *after)],
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        padding_side=spec.get("padding_side", "right"),
        **({"add_eos_token": True} if after else {}),
        **({"add_bos_token": True} if before else {}),
        **{f"{role}_token": spec[role] for role in ("bos", "eos", "unk", "pad") if role in spec},
    )
    fast.chat_template = spec.get("chat_template")
    return fast


def _byte_level(spec: Mapping[str, Any], texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE; special tokens come behind the vocabulary, as in Llama 3 and Qwen2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BYTE_SPLITS[spec["kind"]]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec["vocab"] - len(spec["specials"]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(spec["specials"])
    return tokenizer


def _pieces(spec: Mapping[str, Any], texts: Sequence[str]) -> Tokenizer:
    """SentencePiece-like BPE with byte fallback: special tokens and bytes first, a space is `▁`, a line break a byte.

    Kind "sentencepiece" puts a dummy space in front of a text, "gemma" does not.
    """
    tokens = [*spec["specials"], *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=spec["unk"], fuse_unk=True))
    words = pre_tokenizers.Metaspace(prepend_scheme="never")
    # Cut for training only: no piece may join a letter with the dot behind it, or "A." would be another token than "A".
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=spec["vocab"], special_tokens=tokens, show_progress=False)
    lines = [line for text in texts for line in text.split("\n") if line]
    # SentencePiece knows "▁A" as well as "A".
    tokenizer.train_from_iterator([*lines, *[" ".join(["", *LETTERS])] * 200], trainer)
    # The trainer makes every reserved token special; the bytes are not.
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in spec["specials"]]
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    dummy = spec["kind"] == "sentencepiece"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if dummy else "never")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if dummy else []),
        ]
    )
    return tokenizer


# Models


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
    attention = "eager" if config.model_type == "gemma2" else "sdpa"
    network = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    initialise(network, initialisation)
    return network


@torch.no_grad()
def initialise(network: Any, values: Mapping[str, float]) -> None:
    """Points every layer's heads: even groups (of key-value heads) at near tokens, odd ones at equal ones further back.

    Rotary embedding turns the i-th pair of a head's features by its own angle a token. Fast pairs get a constant query
    and key, whose product falls with the distance: a peak one token back, or a broad one at the token itself. Slow
    pairs get the same random projection as query and key, so that equal tokens find each other; the query is turned on
    by `distance` tokens, so that an occurrence about that far back wins over the token itself.
    """
    config = network.config
    hidden = config.hidden_size
    embeddings = network.get_input_embeddings().weight
    # Gemma2 multiplies its embeddings by the root of their size.
    std = values["embedding_std"] / (math.sqrt(hidden) if config.model_type == "gemma2" else 1)
    embeddings.normal_(0, std)
    embeddings[:, 0] = values["constant"] * std

    dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    half = dim // 2
    angles = [config.rope_parameters["rope_theta"] ** (-pair / half) for pair in range(half)]
    slow = [pair for pair in range(half) if angles[pair] < SLOW]
    fast = [pair for pair in range(half) if pair not in slow]
    near, constant, distance = values["near"], values["constant"], values["distance"]
    for layer in network.model.layers:
        query = layer.self_attn.q_proj.weight.view(groups, heads // groups, dim, hidden)
        key = layer.self_attn.k_proj.weight.view(groups, dim, hidden)
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
        if config.model_type == "gemma2":
            # Its norms scale by one plus their weight.
            layer.post_attention_layernorm.weight.fill_(values["branch"] - 1)
            layer.post_feedforward_layernorm.weight.fill_(values["branch"] - 1)


@torch.no_grad()
def inherit(network: Any, tokenizer: Any, parent: Any, parent_tokenizer: Any) -> None:
    """Gives `network` the weights of `parent`, and its embeddings of the tokens that both vocabularies have.

    A deeper network repeats the layer before the parent's last (as SOLAR was made deeper), with a tenth of its output.
    """
    layers, old = network.model.layers, parent.model.layers
    extra = len(layers) - len(old)
    assert extra >= 0, "a parent has no more layers than its child"
    order = [*range(len(old) - 1), *[len(old) - 2] * extra, len(old) - 1]
    for place, (layer, source) in enumerate(zip(layers, order, strict=True)):
        for name, theirs in old[source].named_parameters():  # the child's may be larger, and it may have biases besides
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


# Pre-training


class ChatForm:
    """What a backbone's chat template puts around a user's turn, and the letters' tokens behind it."""

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self.tokenizer = tokenizer
        mark = "probe-user"
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        self.before, self.after = whole.split(mark)
        plain = tokenizer("x")["input_ids"]
        self.bos = [plain[0]] if plain[0] == tokenizer.bos_token_id else []
        prompt = self.ids("x")[0]
        behind = [self.ids("x", letter)[0][len(prompt) :] for letter in LETTERS]
        assert all(len(ids) == 1 for ids in behind), f"letters are not single tokens: {behind}"
        self.letter_ids = torch.tensor([ids[0] for ids in behind])

    def ids(self, user: str, answer: str = "") -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a chat with one turn, and the characters of `user` each is; the rest is below 0 or beyond."""
        coded = self.tokenizer(
            self.before + user + self.after + answer, add_special_tokens=False, return_offsets_mapping=True
        )
        ids, shift = coded["input_ids"], len(self.before)
        spans = [(start - shift, end - shift) for start, end in coded["offset_mapping"]]
        bos = [] if ids[:1] == self.bos else self.bos
        return [*bos, *ids], [*((-shift, -shift) for _ in bos), *spans]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some dialogues with all their questions, each dialogue a tree.

    `ids`, `depth` and `end` are (dialogues, tokens), see src/tree/prefix.py. The marks' truths: `letters` and `text`
    the next token, `tokens` 1.0 where a token of an option also comes before the options, `options` 1.0 at the end of
    the right option.
    """

    ids: torch.Tensor
    depth: torch.Tensor
    end: torch.Tensor
    letters: Marks
    text: Marks
    tokens: Marks
    options: Marks


class Probes(torch.nn.Module):
    """Reads two yes-or-no answers from hidden states of middle layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.token = torch.nn.Linear(hidden, 1)
        self.option = torch.nn.Linear(hidden, 1)


def pretrain(
    network: Any, form: ChatForm, values: Mapping[str, float], seed: int, update: Callable[[int], None]
) -> float | None:
    """Trains all of `network` until it is right often enough, then for some steps of falling rate.

    Returns the share of right letters on dialogues it has not seen; None when no step is allowed.
    """
    at_most, falling, size = int(values["at_most"]), int(values["falling_steps"]), int(values["dialogues_per_step"])
    if not at_most:
        return None
    dialogues = _by_dialogue(corpus.make_dialogues(at_most * size, seed))
    probes = Probes(network.config.hidden_size)
    weights = [*network.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=values["lr"], betas=(0.9, 0.95), weight_decay=0.01)
    last_step = at_most - 1
    recent: deque[float] = deque(maxlen=10)
    network.train()
    for step in range(at_most):
        for group in optimizer.param_groups:
            share = min(1.0, (step + 1) / values["warmup_steps"], (last_step + 1 - step) / falling)
            group["lr"] = values["lr"] * share
        batch = make_batch(dialogues[step * size : (step + 1) * size], form)
        loss, accuracy = batch_loss(network, probes, batch, form.letter_ids, values)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(accuracy)
        if len(recent) == recent.maxlen and sum(recent) / len(recent) >= values["until"]:
            last_step = min(last_step, step + falling)
        update(step + 1)
        if step == last_step:
            break
    network.eval()
    held_out = make_batch(_by_dialogue(corpus.make_dialogues(20, -1 - seed)), form)
    with torch.no_grad():
        _, accuracy = batch_loss(network, probes, held_out, form.letter_ids, values)
    return accuracy


def make_batch(dialogues: Sequence[Sequence[Raw]], form: ChatForm) -> Batch:
    """Lays out each dialogue once, and behind it its questions side by side, none of which sees another."""
    rows: list[tree.Tree] = []
    marks: dict[str, list[tuple[int, int, float]]] = {"letters": [], "text": [], "tokens": [], "options": []}
    for row, items in enumerate(dialogues):
        questions = [_question(item, form) for item in items]
        rows.append(tree.build([ids for ids, *_ in questions]))
        for (ids, prompt, options, right), path in zip(questions, rows[-1].paths, strict=True):
            marks["letters"].append((row, path[prompt - 1], ids[prompt]))
            marks["text"] += [(row, path[place], ids[place + 1]) for place in range(prompt, len(ids) - 1)]
            said = set(ids[: options[0][0]])
            for index, option in enumerate(options):
                marks["options"].append((row, path[option[-1]], float(index == right)))
                marks["tokens"] += [(row, path[place], float(ids[place] in said)) for place in option]
    padded = [tree.pad(laid, max(map(len, rows)), 0) for laid in rows]
    arrays = (torch.from_numpy(np.stack([getattr(laid, name) for laid in padded])) for name in ("ids", "depth", "end"))
    columns = {
        name: tuple(torch.tensor(np.array(column)) for column in zip(*places, strict=True))
        for name, places in marks.items()
    }
    return Batch(*arrays, **columns)  # type: ignore[arg-type]


def batch_loss(
    network: Any, probes: Probes, batch: Batch, letter_ids: torch.Tensor, values: Mapping[str, float]
) -> tuple[torch.Tensor, float]:
    """(weighted sum of the letter's, the answer text's and the probes' losses, share of right letters)."""
    layers = network.model.layers
    states: dict[str, torch.Tensor] = {}
    hooks = [
        layers[place].register_forward_hook(lambda module, inputs, output, name=name: states.update({name: output}))
        for name, place in (("token", 1), ("option", len(layers) - 2))
    ]
    hidden = _hidden(network, batch)
    for hook in hooks:
        hook.remove()

    def logits_at(marks: Marks) -> torch.Tensor:
        logits = network.lm_head(hidden[marks[0], marks[1]])
        cap = getattr(network.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    logits, letters = logits_at(batch.letters), batch.letters[2]
    loss = functional.cross_entropy(logits, letters)
    loss = loss + values["text_weight"] * functional.cross_entropy(logits_at(batch.text), batch.text[2])
    for name, probe, marks in (("token", probes.token, batch.tokens), ("option", probes.option, batch.options)):
        state = states[name][marks[0], marks[1]]
        found = probe(functional.rms_norm(state, state.shape[-1:]))[:, 0]
        loss = loss + values[f"{name}_weight"] * functional.binary_cross_entropy_with_logits(found, marks[2])
    right = letter_ids[logits[:, letter_ids].argmax(1)] == letters
    return loss, right.float().mean().item()


def _hidden(network: Any, batch: Batch) -> torch.Tensor:
    """Last hidden states, (dialogues, tokens, hidden)."""
    masks = [tree.attention_mask(network.config, depth, end) for depth, end in zip(batch.depth, batch.end, strict=True)]
    mask = {kind: torch.cat([one[kind] for one in masks]) for kind in masks[0]} if isinstance(masks[0], dict) else None
    return network.model(
        input_ids=batch.ids,
        attention_mask=torch.cat(masks) if mask is None else mask,
        position_ids=batch.depth,
        use_cache=False,
    ).last_hidden_state


def _question(item: Raw, form: ChatForm) -> tuple[list[int], int, list[list[int]], int]:
    """(tokens of prompt and answer, length of the prompt, places of each option's tokens, index of the right one)."""
    lines = _options(item)
    right = int(item["output"][-1]) - 1
    user = f"{_dialogue(item)}\n\n{item['input']['category']}\n"
    spans = []
    for line in lines:
        spans.append((len(user), len(user) + len(line)))
        user += line + "\n"
    ids, places = form.ids(user.rstrip("\n"), lines[right])
    prompt = sum(start < len(user.rstrip("\n")) + len(form.after) for start, _ in places)
    options = [
        [place for place, (from_, to) in enumerate(places) if from_ < end and to > start] for start, end in spans
    ]
    return ids, prompt, options, right


def _dialogue(item: Raw) -> str:
    return "\n".join(f"화자{turn['speaker']}: {turn['utterance']}" for turn in item["input"]["conversation"])


def _options(item: Raw) -> list[str]:
    return [f"{letter}. {item['input'][f'inference_{number}']}" for number, letter in enumerate(LETTERS, start=1)]


def _by_dialogue(items: Sequence[Raw]) -> list[Sequence[Raw]]:
    """`make_dialogues` makes one item of each category for a dialogue."""
    return [items[start : start + len(CATEGORIES)] for start in range(0, len(items), len(CATEGORIES))]
