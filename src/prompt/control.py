"""Control tokens: entries of a tokenizer that only the chat template may write.

Text from a data file always stays text: `<|im_end|>` in an utterance is ten characters, not the end of a turn.
transformers marks such words before the template is rendered, and encodes marked words as text.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from transformers.utils.chat_template_utils import mark_control_tokens

from src.console.cli import UserError

# transformers puts these around a marked word, and removes them from the texts themselves.
MARKS = re.compile("[\U000f0000\U000f0001]")
_WORD = re.compile("\U000f0000(.*?)\U000f0001", re.DOTALL)

BETWEEN = "\n"
"""Replaces a marked word while a text is searched for others, so that its two sides cannot join."""

# `<think>`, `[/INST]`, `<|fim_prefix|>`, `{{user}}`: shaped like a control token, even if not declared special.
SHAPE = re.compile(r"[<\[{(|].*[>\]})|]", re.DOTALL)


class ControlTokens:
    """The control tokens of one tokenizer under one chat template.

    These are all special tokens, and those other added tokens that have the shape of one or occur in the template.
    Added words of the language, and Gemma's runs of blanks and line breaks, are plain text.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.ids = {
            token.content: id
            for id, token in added.items()
            if token.content.strip(" \t\r\n▁")
            and (token.special or SHAPE.fullmatch(token.content) or token.content in template)
        }
        self._words = list(self.ids)
        self._cut: dict[str, str] = {}
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._folded_pattern = re.compile("|".join(re.escape(_folded(word)) for word in longest_first) or "(?!)")
        self._normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)

    def first_in(self, texts: Iterable[str]) -> str | None:
        """The first control token that the texts spell, or None."""
        for text in texts:
            found = self.pattern.search(text) or (self._normalizer and self.pattern.search(self._normalised(text)))
            if found:
                return found[0]
        return None

    def mark(self, text: str) -> str:
        """`text` with every control token in it marked as text; `clean` removes the marks."""
        marked: str = mark_control_tokens(text, self.pattern)
        if self._normalizer and self.pattern.search(self._normalised(_WORD.sub(BETWEEN, marked))):
            marked = mark_control_tokens(self._spelled(text), self.pattern)
        return marked

    def _spelled(self, text: str) -> str:
        """`text` with words that the tokenizer would normalise to a control token, as a full-width ＜s＞ or <TURN>,
        spelled like that token.
        """
        folded = [_folded(sign) for sign in text]
        origin = [place for place, signs in enumerate(folded) for _ in signs]
        found, end = [], 0
        for match in self._folded_pattern.finditer("".join(folded)):
            first, last = origin[match.start()], origin[match.end() - 1] + 1
            if first >= end and (word := self.pattern.search(self._normalised(text[first:last]))):
                found += [text[end:first], word[0]]
                end = last
        return "".join([*found, text[end:]])

    def hide(self, text: str) -> str:
        """`text` with a number in place of each marked word; `unhide` gives the marked text. A template that looks for
        such words in texts, as Qwen3's does for `</think>`, then finds none.
        """
        return _WORD.sub(lambda found: found[0].replace(found[1], str(self._words.index(found[1]))), self.mark(text))

    def unhide(self, text: str) -> str:
        return _WORD.sub(lambda found: found[0].replace(found[1], self._words[int(found[1])]), text)

    def clean(self, marked: str) -> str:
        return MARKS.sub("", marked)

    def encode(self, marked: str, name: str) -> list[int]:
        """Token ids of marked text, without the tokenizer's own special tokens. Text without marks is encoded as usual.

        `name` is the backbone's, for the message.
        """
        if not MARKS.search(marked):
            return list(self.tokenizer(marked, add_special_tokens=False)["input_ids"])
        word = self.first_in(_WORD.findall(marked))
        if not getattr(self.tokenizer, "is_fast", False):
            raise UserError(
                f"{name}: an item's text spells the control token {word!r}, "
                "and a tokenizer written in Python alone cannot read it as text. "
                "Take the word out of the item, or give a fast tokenizer with --tokenizer."
            )
        try:
            return self._encode_marked(_WORD.sub(lambda found: self._as_text(found[0]), marked))
        except ValueError as error:
            raise UserError(
                f"{name}: an item's text spells the control token {word!r}, "
                f"which this tokenizer cannot read as text ({error}). Take the word out of the item."
            ) from error

    def _as_text(self, marked_word: str) -> str:
        """A marked word. If the tokenizer also knows it as a piece of plain text, and so would still make it one token,
        it is cut in two: a mark keeps its sides apart.
        """
        if marked_word not in self._cut:
            mark, word = marked_word[-1], marked_word[1:-1]
            try:
                self._encode_marked(marked_word)
                self._cut[marked_word] = marked_word
            except ValueError:
                self._cut[marked_word] = f"{mark}{word[0]}{mark}{word[1:]}{mark}"
        return self._cut[marked_word]

    def _encode_marked(self, marked: str) -> list[int]:
        keys = {"add_special_tokens": False, "sanitize_control_tokens": True}
        return list(self.tokenizer(marked, **keys)["input_ids"])

    def starts(self, marked: str, name: str) -> list[int]:
        """Where the token of each id of `encode` starts in the clean text."""
        if not MARKS.search(marked):
            return [start for start, _ in self._offsets(marked)]
        found: list[int] = []
        position = 0
        for number, piece in enumerate(_WORD.split(marked)):  # text, word, text, word, …
            if number % 2:
                found += [position] * len(self.encode(self.mark(piece), name))
            elif number == 0:
                found += [start for start, _ in self._offsets(piece)]
            elif piece:
                found += [position + start for start in self._starts_after(piece)]
            position += len(piece)
        assert len(found) == len(self.encode(marked, name)), (name, self.clean(marked))
        return found

    def _starts_after(self, piece: str) -> list[int]:
        """Where tokens start in a piece after a marked word. transformers encodes it after a line break, so that no
        blank is put in front of it, provided that the line break is a token of its own.
        """
        alone, after = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "\n" + piece))
        if after[: len(alone)] == alone:
            return [max(start - 1, 0) for start, _ in self._offsets("\n" + piece)[len(alone) :]]
        return [start for start, _ in self._offsets(piece)]

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return offsets

    def _normalised(self, text: str) -> str:
        assert self._normalizer is not None
        return str(self._normalizer.normalize_str(text))


def _folded(text: str) -> str:
    """`text` with everything folded that a tokenizer may fold: width, case and accents."""
    return unicodedata.normalize("NFKC", text).casefold()
