"""The tokenizers of the miniature: small vocabularies, and the quirks of the eight backbones' own tokenizers."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from src.console.start import ours
from src.toy import corpus
from src.toy.corpus import RawItem

PROMPT_WORDS, BETWEEN = ours("resource/miniature/prompt_words.txt"), "-----"
"""Prompts as the tokenizers know them: a copy, so that a new or changed prompt does not change the miniature."""

# How byte-level tokenizers cut text before merging: Llama 3 keeps up to three digits together, Qwen2 none.
BYTE_SPLITS = {
    kind: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for kind, digits in (("bytes-llama3", r"\p{N}{1,3}"), ("bytes-qwen2", r"\p{N}"))
}


def dialogue_text(item: RawItem) -> str:
    return "\n".join(f"화자{turn['speaker']}: {turn['utterance']}" for turn in item["input"]["conversation"])


def option_lines(item: RawItem, marks: Sequence[str]) -> list[str]:
    """The options, each behind its mark and a dot."""
    return [f"{mark}. {item['input'][key]}" for mark, key in zip(marks, corpus.load_words().options, strict=True)]


def tokenizer_texts(values: Mapping[str, Any]) -> list[str]:
    """The training texts of the eight tokenizers: invented dialogues and options, and the prompts that frame them."""
    items = corpus.make_dialogues(values["tokenizer"]["dialogues"], values["seed"])
    texts = [dialogue_text(item) for item in items[:: len(corpus.load_words().categories)]]
    texts += ["\n".join(option_lines(item, corpus.load_words().letters)) for item in items]
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


def texts_of(tokenizer: Any, kind: str) -> dict[str, int]:
    """The text of each token of a tokenizer of `kind` → its id. Parts of characters are left out. Where tokenizers name
    their first and last token differently, these count as equal texts.
    """
    found, bytes_alone = {}, {}
    for token, id in tokenizer.get_vocab().items():
        if byte := re.fullmatch(r"<0x([0-7][0-9A-F])>", token):
            bytes_alone[chr(int(byte[1], 16))] = id
            continue
        text = decoders.ByteLevel().decode([token]) if kind in BYTE_SPLITS else token.replace("▁", " ")
        if "\ufffd" not in text:
            found[text] = id
    found = bytes_alone | found  # a text has its byte's token only where it has no other
    roles = {"first": tokenizer.bos_token_id, "last": tokenizer.eos_token_id}
    return found | {f"<{role}>": id for role, id in roles.items() if id is not None}


def _byte_level(spec: Mapping[str, Any], texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE; special tokens come after the vocabulary, as in Llama 3 and Qwen2."""
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
    """SentencePiece-like BPE with byte fallback: special tokens and bytes come first, a space is `▁`, a line break is a
    byte.

    Kind "sentencepiece" puts a dummy space in front of a text, "gemma" does not.
    """
    tokens = [*spec["specials"], *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=spec["unk"], fuse_unk=True))
    words = pre_tokenizers.Metaspace(prepend_scheme="never")
    # Cut for training only: no piece may join a letter with the dot after it, or "A." would be another token than "A".
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=spec["vocab"], special_tokens=tokens, show_progress=False)
    lines = [line for text in texts for line in text.split("\n") if line]
    # SentencePiece knows "▁A" as well as "A".
    tokenizer.train_from_iterator([*lines, *[" ".join(["", *corpus.load_words().letters])] * 200], trainer)
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
