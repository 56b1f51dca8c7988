"""Messages → tokens: the one encoder that training, scoring and preference tuning share.

The rendered chat text is tokenised once, prompt and answer together, without the tokenizer's own special tokens; a BOS
is added where the tokenizer itself adds one. So training and scoring use the same token for a letter, after the same
context.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from src import task
from src.console.cli import UserError
from src.data import Item, Utterance
from src.prompt.chat import ANOTHER, Chat, Rendering
from src.prompt.fewshot import Library
from src.prompt.messages import Message, Prompt, Rendered, reasoning_of

SEAM = 12
"""Characters at the end of a prompt that decide how a letter after it is tokenised."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a model's input. None stands for no limit.

    context     its longest input in tokens; longer items are refused, never cut
    vocab       how many token ids it has embeddings for; an item with another is refused
    """

    context: int | None = None
    vocab: int | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One tokenised item. `ids[:answer_start]` is the prompt, the rest is supervised; when scoring there is no rest."""

    id: str
    order: str
    ids: tuple[int, ...]
    answer_start: int
    letter: int | None
    """Index of the right letter under this order, None without a label."""
    dialogue: str = ""
    """Equal for the items of one dialogue."""
    rejected: tuple[tuple[int, ...], ...] = ()
    """The same prompt with wrong answers in place of the right one, for preference tuning."""

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Every sequence of the item: the prompt with the right answer, then with each wrong one."""
        return self.ids, *self.rejected

    @property
    def tokens(self) -> int:
        """How many tokens `sequences` have when the prompt they share counts once. The letters already differ."""
        return len(self.ids) + sum(len(ids) - self.answer_start for ids in self.rejected)


class Encoder:
    """Tokenises items for one backbone with one prompt.

    name        the backbone, for messages
    library     where a prompt with examples takes them from
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Prompt,
        name: str,
        rendering: Rendering | None = None,
        limits: Limits | None = None,
        library: Library | None = None,
    ) -> None:
        rendering, limits = rendering or Rendering(), limits or Limits()
        self.tokenizer, self.prompt, self.name, self.library = tokenizer, prompt, name, library
        self.reasoning, self.context, self.vocab = rendering.reasoning, limits.context, limits.vocab
        if (library is None) != (prompt.examples is None):
            raise UserError(
                f"prompt {prompt.name} has examples, and there is no training split here to take them from."
            )
        if self.reasoning and len(prompt.bridge) < SEAM:
            raise UserError(
                f"prompt {prompt.name}: reasoning needs a `bridge` of at least {SEAM} characters, "
                f"the words between the reasoning and the letter; found {prompt.bridge!r}."
            )
        self.letters = task.current().letters
        self.chat = Chat(tokenizer, name, rendering)
        self.template, self.template_source = self.chat.template, self.chat.source
        self.control = self.chat.control
        if prompt.examples is not None:
            self.chat.refuse_lost_answers()
        self.bos_id = self._own_bos()
        self.pad_id = _pad_id(tokenizer, self.vocab)
        self.lead = self._lead()
        self.letter_ids: tuple[int, ...] | None = None

    @property
    def template_sha256(self) -> str:
        return hashlib.sha256(self.template.encode()).hexdigest()

    @property
    def system_turn(self) -> str:
        return self.chat.system_turn

    @property
    def turn_end(self) -> str:
        return self.chat.turn_end

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end a generated turn."""
        return self.chat.stop_ids

    @functools.cached_property
    def rendered_sha256(self) -> tuple[str, str]:
        """Hashes of the text and of the token ids of invented items, one of every category, without examples. They
        change when a template, a date, a library or a tokenizer renders or reads differently.
        """
        texts = [self._open(self._chat(self.prompt.render(one, reasoning=self.reasoning))) for one in _probes()]
        ids = [self._ids(text) for text in texts]
        clean = [self.control.clean(text) for text in texts]
        text_sha, ids_sha = (hashlib.sha256(json.dumps(found).encode()).hexdigest() for found in (clean, ids))
        return text_sha, ids_sha

    def notes(self, items: Sequence[Item]) -> list[str]:
        """Notes for the user on the prompt of `items`, a line each."""
        lines = self.chat.notes(bool(self.prompt.system))
        if self.lead:
            lines.append(
                f"the chat template ends with a blank, so the letters are read with it: {self.lead + self.letters[0]!r}"
            )
        spelled = {
            item.id: word
            for item in items
            if (word := self.control.first_in((*(turn.text for turn in item.dialogue), *item.options)))
        }
        if spelled:
            first, word = next(iter(spelled.items()))
            lines.append(
                f"{len(spelled)} of {len(items)} items spell a control token of this tokenizer "
                f"({first} is the first, with {word!r}); it is read as text"
            )
        return lines

    def prompt_text(self, item: Item, order: str | None = None) -> str:
        """The whole prompt as text, up to the letter, or with reasoning up to the reasoning."""
        return self.control.clean(self._chat(self._render(item, order)))

    def token_starts(self, item: Item) -> list[int]:
        """Where each token starts in the text up to the letter (`prompt_text`, and with reasoning the bridge). A BOS
        that the tokenizer adds has no start.
        """
        return self.control.starts(self._open(self._chat(self._render(item))), self.name)

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The messages in the backbone's chat template, up to where its answer begins."""
        return self.control.clean(self.chat.render(messages))

    def for_training(
        self, items: Sequence[Item], wrong: Callable[[Item], Sequence[int]] = lambda item: ()
    ) -> list[Example]:
        """Prompt, right answer and turn end of labelled items in the file's own order of options.

        wrong: gives for an item the indices of the options that are encoded as rejected answers as well.
        """
        examples, prompts = [], []
        for item in items:
            assert item.label is not None, f"{item.id} has no label"
            rendered = self._render(item)
            prompt = self._chat(rendered)
            before = self._with_bridge(prompt, _carried(item)) if self.reasoning else prompt
            prompts.append(before)
            prompt_ids = self._ids(prompt)
            lead = "" if self.reasoning else self.lead
            answered = [
                tuple(self._ids(before + lead + self.control.mark(rendered.answers[option]) + self.turn_end))
                for option in (item.label, *wrong(item))
            ]
            if any(ids[: len(prompt_ids)] != tuple(prompt_ids) for ids in answered):
                raise UserError(
                    f"{self.name}: item {item.id}: the answer's first token merges with the end of the prompt, "
                    f"so no letter could be read there. The prompt ends with {prompt[-20:]!r}; "
                    "let the prompt or the chat template (--chat_template FILE) end it with a line break."
                )
            examples.append(
                Example(
                    id=item.id,
                    order=task.current().file_order,
                    ids=answered[0],
                    answer_start=len(prompt_ids),
                    letter=item.label,
                    dialogue=item.dialogue_key,
                    rejected=tuple(answered[1:]),
                )
            )
        self._check(examples, prompts)
        for one, item, before in zip(examples, items, prompts, strict=True):
            assert item.label is not None
            start = len(self._ids(before)) if self.reasoning else one.answer_start
            self._check_trained_letters(one, start, (item.label, *wrong(item)))
        return examples

    def for_scoring(self, items: Sequence[Item], orders: Sequence[str] | None = None) -> list[Example]:
        """The prompts alone, item by item and for each order (by default the file's); the letters are read after the
        last token.
        """
        shown = (task.current().file_order,) if orders is None else orders
        return self.for_chains([(item.id, item, order, "") for item in items for order in shown])

    def for_chains(self, chains: Sequence[tuple[str, Item, str, str]]) -> list[Example]:
        """Prompts followed by generated text: for each (id of the example, item, order, generated text)."""
        examples, prompts = [], []
        for id, item, order, text in chains:
            prompt = self._chat(self._render(item, order))
            prompts.append(self._with_bridge(prompt, text) if self.reasoning else prompt)
            ids = self._ids(prompts[-1])
            letter = None if item.label is None else order.index(str(item.label))
            examples.append(Example(id, order, tuple(ids), len(ids), letter, item.dialogue_key))
        self._check(examples, prompts)
        return examples

    def for_reasoning(self, item: Item, order: str | None = None) -> list[int]:
        """The prompt after which reasoning is generated."""
        return self._ids(self._chat(self._render(item, order)))

    def show(self, example: Example) -> str:
        """The example as the model sees it, the supervised part between ⟦ and ⟧, rejected answers below it."""
        decode, start = self.tokenizer.decode, example.answer_start
        right, *wrong = (f"⟦{decode(list(ids[start:]))}⟧" for ids in example.sequences)
        return "\n".join([f"{decode(list(example.ids[:start]))}{right}", *(f"rejected: {answer}" for answer in wrong)])

    def _render(self, item: Item, order: str | None = None) -> Rendered:
        examples = self.library.choose(item) if self.library else ()
        return self.prompt.render(item, order, reasoning=self.reasoning, examples=examples)

    def _chat(self, rendered: Rendered) -> str:
        """The marked text up to the answer, without a blank at its end that belongs to the answer (`lead`)."""
        text = self.chat.render(rendered.messages)
        return text.removesuffix(self.lead)

    def _open(self, prompt: str) -> str:
        """The prompt up to the letter; with reasoning, the prompt, no reasoning, and the bridge."""
        return prompt + self.lead + self.prompt.reasoned("") if self.reasoning else prompt

    def _with_bridge(self, prompt: str, reasoning: str) -> str:
        """The prompt, the reasoning (always read as text) and the bridge."""
        return prompt + self.lead + self.prompt.reasoned(self.control.mark(reasoning))

    def _ids(self, marked: str) -> list[int]:
        ids = self.control.encode(marked, self.name)
        return [self.bos_id, *ids] if self.bos_id is not None and ids[:1] != [self.bos_id] else ids

    def _own_bos(self) -> int | None:
        """The BOS id if this tokenizer adds one by itself, else None (Qwen2 has none and needs none)."""
        ids = self.tokenizer("x")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None and ids[0] == bos else None

    def _lead(self) -> str:
        """Blanks at the end of a prompt that would form one token with the letter after them ("Assistant: " and "A"
        are " A" to most tokenizers). They are moved to the front of the answer.
        """
        text = self.chat.render([{"role": "user", "content": "probe"}])
        lead = text[len(text.rstrip(" ")) :]
        ids, longer = self._ids(text), self._ids(text + self.letters[0])
        return lead if longer[: len(ids)] != ids else ""

    def _check(self, examples: Sequence[Example], prompts: Sequence[str]) -> None:
        self._check_letters(prompts)
        self._check_context(examples)
        self._check_vocab(examples)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for one in examples:
            # A template may write a BOS before each turn, but no model was trained on two in a row.
            if bos is not None and bos != eos and one.ids[:2] == (bos, bos):
                raise UserError(
                    f"{self.name}: item {one.id}: the prompt begins with two BOS tokens; "
                    f"the chat template writes one too many. {ANOTHER}"
                )
            if one.ids[one.answer_start - 1] == eos:
                raise UserError(
                    f"{self.name}: item {one.id}: the prompt ends with EOS; "
                    f"the chat template closes it before the answer. {ANOTHER}"
                )

    def _check_context(self, examples: Sequence[Example]) -> None:
        if self.context is None:
            return
        lengths = [(one.id, max(map(len, one.sequences))) for one in examples]
        long = [(id, length) for id, length in lengths if length > self.context]
        if long:
            many = "1 item is" if len(long) == 1 else f"{len(long)} items are"
            shown = ", ".join(f"{id} ({length} tokens)" for id, length in long[:5])
            raise UserError(
                f"{self.name}: {many} longer than the model's context of {self.context} tokens: "
                f"{shown}{' …' if len(long) > 5 else ''}. "
                "Nothing is cut; use a shorter prompt or leave the backbone out."
            )

    def _check_vocab(self, examples: Sequence[Example]) -> None:
        """Every token of the items, and the letters, must have an embedding in the model."""
        if self.vocab is None:
            return
        found = {id: one.id for one in examples for ids in one.sequences for id in ids if id >= self.vocab}
        found |= {id: examples[0].id for id in self.letter_ids or () if id >= self.vocab}
        if found:
            shown = ", ".join(
                f"{self.tokenizer.convert_ids_to_tokens(id)!r} ({id}, item {item})"
                for id, item in sorted(found.items())[:5]
            )
            raise UserError(
                f"{self.name}: the tokenizer has {len(self.tokenizer)} tokens, the model embeddings for {self.vocab}, "
                f"and items hold {len(found)} token(s) beyond them: {shown}{' …' if len(found) > 5 else ''}. "
                "Give the tokenizer that belongs to these weights."
            )

    def _check_letters(self, prompts: Sequence[str]) -> None:
        """Reads the letters' ids after every ending that a prompt has. Each must be one token, all different, and the
        same after every ending.
        """
        lead = "" if self.reasoning else self.lead
        for text in {prompt[-SEAM:]: prompt for prompt in prompts}.values():
            ids = self._ids(text)
            found = []
            for letter in self.letters:
                longer = self._ids(text + lead + letter)
                if longer[: len(ids)] != ids or len(longer) != len(ids) + 1:
                    raise UserError(
                        f"{self.name}: the letter {letter} is not one token of its own after the prompt, "
                        f"which ends with {text[-20:]!r}: {longer[len(ids) - 2 :]} against {ids[-2:]}. "
                        "The letters cannot be compared. "
                        "Let the prompt or the chat template (--chat_template FILE) end with a line break."
                    )
                found.append(longer[-1])
            if len(set(found)) != len(found):
                raise UserError(
                    f"{self.name}: the letters {', '.join(self.letters)} are not {len(found)} different tokens: "
                    f"{found}."
                )
            if self.letter_ids not in (None, tuple(found)):
                raise UserError(
                    f"{self.name}: the letters are tokens {self.letter_ids} after one prompt and {tuple(found)} "
                    f"after another, which ends with {text[-20:]!r}. "
                    "Let the chat template or the prompt end all alike."
                )
            self.letter_ids = tuple(found)

    def _check_trained_letters(self, example: Example, start: int, options: Sequence[int]) -> None:
        """Each answer of `example` must have the letter of its option (in `options`) as its token at `start`."""
        assert self.letter_ids is not None
        for index, answered in zip(options, example.sequences, strict=True):
            if answered[start] != self.letter_ids[index]:
                raise UserError(
                    f"{self.name}: item {example.id}: the letter merges with what follows it in the answer: "
                    f"{self.tokenizer.decode([answered[start]])!r} would be trained, and {self.letters[index]!r} read. "
                    "In the prompt's `answer`, put a line break after the letter."
                )


def _carried(item: Item) -> str:
    text = reasoning_of(item)
    if text is None:
        raise UserError(
            f"item {item.id} carries no reasoning; "
            'training with `reasoning` needs a text under "reasoning" in the object of every training item, '
            "beside its id."
        )
    return text


def _pad_id(tokenizer: Any, vocab: int | None) -> int:
    """An id for padding. Masks come from lengths, so the model never looks at it. Still it is not EOS, and the model
    has an embedding for it.
    """
    for id in (tokenizer.pad_token_id, tokenizer.unk_token_id):
        if id is not None and id != tokenizer.eos_token_id and (vocab is None or id < vocab):
            return int(id)
    return 0 if tokenizer.eos_token_id != 0 else 1


def _probes() -> list[Item]:
    """An invented item of every category. Records keep hashes of them, so they may not change."""
    said = (Utterance("1", 1, "어제 뭐 했어?"), Utterance("2", 2, "비가 와서 집에 있었어.\n책을 2권 읽었지."))
    three = ("화자2는 책을 읽었다.", "화자2는 산에 갔다.", "화자1은 비를 맞았다.")
    count = len(task.current().options)
    options = (*three, *(f"화자1은 책을 {number}권 샀다." for number in range(count - len(three))))[:count]
    return [Item("probe", said, ("2",), category, options, 0, {}) for category in task.current().categories]
