"""Toy backbones: true architectures with random weights and a few hundred words, and the tokenizer quirks of the eight.

Chat formats follow the published ones; the words come from the invented dialogues and our prompts.
"""

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as flex
import transformers.integrations.flex_attention as hf_flex
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from src.data import Item, parse_items
from src.model.backbones import backbones
from src.model.recipes import Recipe, make_recipe
from src.model.shapes import FAMILIES
from src.prompt.chat import Rendering
from src.prompt.encode import Encoder, Limits
from src.prompt.fewshot import Library
from src.prompt.messages import Prompt
from src.toy.miniature_tokenizers import BETWEEN, PROMPT_WORDS
from src.train import fine_tuning
from src.tree import compiled, layouts
from tests.conftest import DIALOGUES, make_item

torch.set_num_threads(1)

LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Writes the model's turn behind every user turn, whatever is asked for, and takes a system text raw.
KOGEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}<start_of_turn>user\n{{ message.content }}<end_of_turn>\n<start_of_turn>model\n"
    "{% else %}{{ message.content }}<end_of_turn>\n{% endif %}{% endfor %}"
)
# SOLAR-Instruct's plain words, for tokenizers that ship no template.
SOLAR = (
    "{{ bos_token }}{% for message in messages %}### {{ message.role | capitalize }}:\n{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
EEVE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% elif message.role == 'user' %}A chat between a user and an assistant.\nHuman: {{ message.content }}\n"
    "{% else %}Assistant:\n{{ message.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Toy:
    """One backbone's kind: `pieces` is SentencePiece-like (True with a dummy `▁` in front, False without), None is
    byte-level BPE.
    """

    architecture: str
    pieces: bool | None
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str | None
    adds_bos: bool = False
    adds_eos: bool = False
    template: str | None = None


LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOYS = {
    "bllossom": Toy(
        "llama", None, LLAMA3_TOKENS, LLAMA3_TOKENS[0], "<|eot_id|>", "<|end_of_text|>", adds_bos=True, template=LLAMA3
    ),
    "polar": Toy("llama", True, ("<unk>", "<s>", "</s>"), "<s>", "</s>", "</s>", adds_bos=True, adds_eos=True),
    "kogemma": Toy("gemma2", False, GEMMA_TOKENS, "<bos>", "<eos>", "<pad>", adds_bos=True, template=KOGEMMA),
    "solarko": Toy("llama", True, ("<unk>", "<s>", "</s>"), "<s>", "</s>", None, adds_bos=True),
    "eeve": Toy(
        "llama", True, ("<unk>", "<s>", "</s>", "<|im_end|>"), "<s>", "<|im_end|>", "</s>", adds_bos=True, template=EEVE
    ),
    "qwen2": Toy("qwen2", None, QWEN_TOKENS, None, "<|endoftext|>", "<|endoftext|>", template=CHATML),
    "qwen2it": Toy("qwen2", None, QWEN_TOKENS, None, "<|im_end|>", "<|endoftext|>", template=CHATML),
    "spow12": Toy(
        "qwen2", None, (*QWEN_TOKENS, "<|PAD|>", "<|BOS|>"), "<|BOS|>", "<|endoftext|>", "<|PAD|>", template=CHATML
    ),
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
GEMMA2 = {"sliding_window": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0}

SHORT = """
name: short
user: |-
  {% for turn in dialogue %}
  {{ "*" if turn.target }}{{ turn.speaker }}: {{ turn.text }}
  {% endfor %}
  {{ question }}
  {% for option in options %}
  {{ option.letter }}. {{ option.text }}
  {% endfor %}
system: 고르세요.
categories: {원인: 원인, 후행사건: 후행사건, 전제: 전제, 동기: 동기, 반응: 반응}
answer: "{{ letter }}. {{ option }}"
"""


def items(count: int, start: int = 0, **changes: Any) -> list[Item]:
    """Items `start` and following of the invented ones, as loaded from a file."""
    raw = [make_item(number, **changes) for number in range(start, start + count)]
    found, problems = parse_items(json.dumps(raw).encode(), "made")
    assert not problems, problems
    return found


@cache
def tokenizer(short: str) -> Any:
    """The toy tokenizer of a backbone; one object for all, so not to be changed (`copy.deepcopy` it)."""
    toy = TOYS[short]
    texts = [text for turns, options in DIALOGUES for text in (*turns, *options)] * 3
    # The prompts as the miniature's tokenizers know them, so that a new prompt changes no toy.
    for words in PROMPT_WORDS.read_text(encoding="utf-8").split(f"\n{BETWEEN}\n"):
        texts += [words.removesuffix("\n")] * 3
    texts += ["화자1: 화자2: ### System: ### User: ### Assistant: Human: Assistant: A. B. C. A B C"] * 20
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    if toy.pieces is None:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=1200, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        made.train_from_iterator(texts, trainer)
        made.add_special_tokens(list(toy.specials))
    else:
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        trainer = trainers.BpeTrainer(vocab_size=1400, special_tokens=[*toy.specials, *pieces], show_progress=False)
        made.train_from_iterator([line for text in texts for line in text.splitlines()], trainer)
        raw = json.loads(made.to_str())
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in toy.specials]
        made = Tokenizer.from_str(json.dumps(raw))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if toy.pieces else "never")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    before, after = [toy.bos] * toy.adds_bos, [toy.eos] * toy.adds_eos
    if before or after:
        made.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(token, made.token_to_id(token)) for token in (*before, *after)],
        )
    names = {"bos_token": toy.bos, "eos_token": toy.eos, "pad_token": toy.pad}
    names["unk_token"] = "<unk>" if toy.pieces is not None else None
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **{k: v for k, v in names.items() if v}
    )
    fast.chat_template = toy.template
    return fast


def encoder(
    short: str,
    prompt: Prompt,
    *,
    words: Any = None,
    library: Library | None = None,
    context: int | None = None,
    vocab: int | None = None,
    **rendering: Any,
) -> Encoder:
    """The encoder of a backbone, with its recipe's chat template. words: the tokenizer, by default the toy's."""
    values = {"chat_template": backbones()[short].chat_template, **rendering}
    return Encoder(words or tokenizer(short), prompt, short, Rendering(**values), Limits(context, vocab), library)


def network(short: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of the backbone's architecture in fp32, spread wide enough that answers differ."""
    toy, vocabulary = TOYS[short], tokenizer(short)
    values = {**SIZES, **(GEMMA2 if toy.architecture == "gemma2" else {}), **changes}
    config = AutoConfig.for_model(
        toy.architecture,
        **{
            "vocab_size": -(-len(vocabulary) // 64) * 64,
            "initializer_range": 0.15,
            "tie_word_embeddings": toy.architecture == "gemma2",
            "bos_token_id": vocabulary.bos_token_id,
            "eos_token_id": vocabulary.eos_token_id,
            "pad_token_id": vocabulary.pad_token_id,
            **values,
        },
    )
    torch.manual_seed(seed)
    attention = FAMILIES[toy.architecture].attention
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()


def save(short: str, folder: Path, **changes: Any) -> Path:
    """Model and tokenizer of the toy backbone in `folder`, as a download would lie there."""
    network(short, **changes).save_pretrained(folder)
    copy.deepcopy(tokenizer(short)).save_pretrained(folder)
    return folder


def recipe(folder: Path, short: str, **changes: Any) -> Recipe:
    """A recipe that trains the toy in `folder` quickly; `changes` on top."""
    values = {"backbone": short, "model_id": str(folder), "method": "lora", "lr": 3e-3, "epoch": 2, "batch_size": 2}
    return make_recipe({**values, **changes}, "toy")


def limits() -> Any:
    """Within, torch's own limits of recompiling, and after it again."""
    return torch._dynamo.config.patch(
        recompile_limit=8, accumulated_recompile_limit=256, fail_on_recompile_limit_hit=False, specialize_float=False
    )


@contextlib.contextmanager
def compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Within, a CPU counts as a GPU that rows are computed on by flex attention in compiled layers. torch refuses its
    backward on a CPU; its definition, compiled by aot_eager, has one. What is set in torch is set back.

    Gives what further patches are made with: `monkeypatch` itself would put these ones back when it ends.
    """

    def compile_layer(layer: Any, **keys: Any) -> None:
        layer._compiled_call_impl = torch.compile(layer._call_impl, backend="aot_eager", **keys)

    attention = torch.compile(flex.flex_attention, backend="aot_eager")

    def attend(query: Any, key: Any, value: Any, training: bool = False, **keys: Any) -> Any:
        return attention(query, key, value, **keys)

    torch._dynamo.reset()
    with monkeypatch.context() as patch, limits(), torch.compiler.set_stance("default"):
        for room in (compiled, fine_tuning):
            patch.setattr(room, "rows_on_gpu", lambda device: True)
        patch.setattr(layouts, "free_bytes", lambda device: 2**37)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        patch.setattr(flex, "_validate_device", lambda query, key, value: None)
        patch.setattr(hf_flex, "compile_friendly_flex_attention", attend)
        patch.setattr(torch.nn.Module, "compile", compile_layer)
        yield patch
    torch._dynamo.reset()
