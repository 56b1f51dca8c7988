"""Messages → tokens: the one encoder that training, scoring and preference tuning share.

The rendered chat text is tokenised once, prompt and answer together, without the tokenizer's own special tokens; a
BOS is put in front by rule. So the letter that is trained is the letter that is read, in the context the model will
really see.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from src.console.cli import UserError
from src.data import CATEGORIES, Item, Utterance
from src.prompt.chat import ANOTHER, Chat, Frozen, choose_template
from src.prompt.fewshot import Library
from src.prompt.prompts import LETTERS, ORDERS, Message, Prompt, Rendered, reasoning_of

SEAM = 12
"""Characters at the end of a prompt that decide how a letter behind it is tokenised."""


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
        """All that the model is to see of the item: the right answer's tokens, then the wrong ones'."""
        return self.ids, *self.rejected

    @property
    def tokens(self) -> int:
        """How many tokens `sequences` have when the prompt they share counts once. The letters already differ."""
        return len(self.ids) + sum(len(ids) - self.answer_start for ids in self.rejected)


class Encoder:
    """Tokenises items for one backbone with one prompt.

    name            the backbone, for messages
    chat_template   the recipe's; for a tokenizer that ships none, or, with `override`, in place of the shipped one
    system_turn     "auto" probes the template, "own" keeps a system message, "folded" puts it in front of the user's
    context         the model's longest input in tokens; longer items are refused, never cut
    vocab           how many token ids the model has embeddings for; an item with another is refused
    library         where a prompt with examples takes them from
    reasoning       the letter stands behind reasoning and the prompt's bridge: behind the item's own in training,
                    behind none in `for_scoring`, behind what a model has generated in `for_chains`
    frozen          of a run that is gone on with or scored: what its record keeps of rendering
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Prompt,
        *,
        name: str,
        chat_template: str | None = None,
        override: bool = False,
        system_turn: str = "auto",
        context: int | None = None,
        vocab: int | None = None,
        library: Library | None = None,
        reasoning: bool = False,
        frozen: Frozen | None = None,
    ) -> None:
        self.tokenizer, self.prompt, self.name, self.context = tokenizer, prompt, name, context
        self.library, self.reasoning = library, reasoning
        if (library is None) != (prompt.examples is None):
            raise UserError(
                f"prompt {prompt.name} has examples, and there is no training split here to take them from."
            )
        if reasoning and len(prompt.bridge) < SEAM:
            raise UserError(
                f"prompt {prompt.name}: reasoning needs a `bridge` of at least {SEAM} characters, the words between "
                f"the reasoning and the letter; found {prompt.bridge!r}."
            )
        if frozen is not None and frozen.source is not None:
            override = frozen.source == "recipe"
        chosen = choose_template(tokenizer.chat_template, chat_template, override)
        if chosen is None:
            raise UserError(
                f"{name}: the tokenizer ships no chat template and the recipe gives none. Give one: --chat_template "
                "FILE, or `chat_template` in the recipe (a Jinja2 text over messages, bos_token and "
                "add_generation_prompt)."
            )
        self.template, self.template_source = chosen
        self.chat = Chat(
            tokenizer, self.template, name=name, source=self.template_source, system_turn=system_turn, frozen=frozen
        )
        self.control = self.chat.control
        if prompt.examples is not None:
            self.chat.refuse_lost_answers()
        self.bos_id = self._own_bos()
        self.vocab, self.pad_id = vocab, _pad_id(tokenizer, vocab)
        self.lead = self._lead()
        self.letter_ids: tuple[int, int, int] | None = None

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
        """Hashes of the text and of the token ids of invented items, one of every category, without examples: what
        moves when a template, a date, a library or a tokenizer renders or reads otherwise.
        """
        texts = [self._open(self._chat(self.prompt.render(one, reasoning=self.reasoning))) for one in _probes()]
        ids = [self._ids(text) for text in texts]
        clean = [self.control.clean(text) for text in texts]
        text_sha, ids_sha = (hashlib.sha256(json.dumps(found).encode()).hexdigest() for found in (clean, ids))
        return text_sha, ids_sha

    def notes(self, items: Sequence[Item]) -> list[str]:
        """What is to be known of the prompt of `items` before it is used, a line each."""
        lines = self.chat.notes(bool(self.prompt.system))
        if self.lead:
            lines.append(f"the chat template ends with a blank, so the letters are read with it: {self.lead + 'A'!r}")
        spelled = {
            item.id: word
            for item in items
            if (word := self.control.first_in((*(turn.text for turn in item.dialogue), *item.options)))
        }
        if spelled:
            first, word = next(iter(spelled.items()))
            lines.append(
                f"{len(spelled)} of {len(items)} items spell a control token of this tokenizer ({first} is the first, "
                f"with {word!r}); it is read as text"
            )
        return lines

    def prompt_text(self, item: Item, order: str = ORDERS[0]) -> str:
        """The whole prompt as text, up to where the letter comes, or before it the reasoning."""
        return self.control.clean(self._chat(self._render(item, order)))

    def token_starts(self, item: Item) -> list[int]:
        """Where in the text up to the letter (`prompt_text`, with the bridge behind it when reasoning) each token
        starts, a BOS of the tokenizer's own left out.
        """
        return self.control.starts(self._open(self._chat(self._render(item))), self.name)

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The messages in the backbone's chat template, up to where its answer begins."""
        return self.control.clean(self.chat.render(messages))

    def for_training(
        self, items: Sequence[Item], wrong: Callable[[Item], Sequence[int]] = lambda item: ()
    ) -> list[Example]:
        """Prompt, right answer and turn end of labelled items in the file's own order of options.

        wrong: of an item, the places of the options that are encoded as rejected answers as well.
        """
        examples, prompts = [], []
        for item in items:
            assert item.label is not None, f"{item.id} has no label"
            rendered = self._render(item)
            prompt = self._chat(rendered)
            before = self._behind(prompt, _carried(item)) if self.reasoning else prompt
            prompts.append(before)
            prompt_ids = self._ids(prompt)
            lead = "" if self.reasoning else self.lead
            ids, *rejected = (
                tuple(self._ids(before + lead + self.control.mark(rendered.answers[place]) + self.turn_end))
                for place in (item.label, *wrong(item))
            )
            if any(answered[: len(prompt_ids)] != tuple(prompt_ids) for answered in (ids, *rejected)):
                raise UserError(
                    f"{self.name}: item {item.id}: the answer's first token merges with the end of the prompt, so no "
                    f"letter could be read there. The prompt ends with {prompt[-20:]!r}; let the prompt or the chat "
                    "template (--chat_template FILE) end it with a line break."
                )
            own = item.id, ORDERS[0], ids, len(prompt_ids), item.label, item.dialogue_key
            examples.append(Example(*own, tuple(rejected)))
        self._check(examples, prompts)
        for one, item, before in zip(examples, items, prompts, strict=True):
            assert self.letter_ids is not None and item.label is not None
            letter = len(self._ids(before)) if self.reasoning else one.answer_start
            for place, answered in zip((item.label, *wrong(item)), one.sequences, strict=True):
                if answered[letter] != self.letter_ids[place]:
                    raise UserError(
                        f"{self.name}: item {one.id}: the letter merges with what follows it in the answer: "
                        f"{self.tokenizer.decode([answered[letter]])!r} would be trained, and "
                        f"{LETTERS[place]!r} read. In the prompt's `answer`, put a line break behind the letter."
                    )
        return examples

    def for_scoring(self, items: Sequence[Item], orders: Sequence[str] = ORDERS[:1]) -> list[Example]:
        """The prompts alone, item by item and for each order; the letters are read behind the last token."""
        return self.for_chains([(item.id, item, order, "") for item in items for order in orders])

    def for_chains(self, chains: Sequence[tuple[str, Item, str, str]]) -> list[Example]:
        """Prompts with what was generated behind them: for each (id of the example, item, order, generated text)."""
        examples, prompts = [], []
        for id, item, order, text in chains:
            prompt = self._chat(self._render(item, order))
            prompts.append(self._behind(prompt, text) if self.reasoning else prompt)
            ids = self._ids(prompts[-1])
            letter = None if item.label is None else order.index(str(item.label))
            examples.append(Example(id, order, tuple(ids), len(ids), letter, item.dialogue_key))
        self._check(examples, prompts)
        return examples

    def for_reasoning(self, item: Item, order: str = ORDERS[0]) -> list[int]:
        """The prompt behind which reasoning is generated."""
        return self._ids(self._chat(self._render(item, order)))

    def show(self, example: Example) -> str:
        """The example as the model sees it, the supervised part between ⟦ and ⟧, rejected answers below it."""
        decode, start = self.tokenizer.decode, example.answer_start
        right, *wrong = (f"⟦{decode(list(ids[start:]))}⟧" for ids in example.sequences)
        return "\n".join([f"{decode(list(example.ids[:start]))}{right}", *(f"rejected: {answer}" for answer in wrong)])

    def _render(self, item: Item, order: str = ORDERS[0]) -> Rendered:
        examples = self.library.choose(item) if self.library else ()
        return self.prompt.render(item, order, reasoning=self.reasoning, examples=examples)

    def _chat(self, rendered: Rendered) -> str:
        """The marked text up to where the answer begins; a blank at its end belongs to the answer (`lead`)."""
        text = self.chat.render(rendered.messages)
        return text.removesuffix(self.lead)

    def _open(self, prompt: str) -> str:
        """The prompt up to where a letter comes at once: behind it, or, when reasoning, behind none and the bridge."""
        return prompt + self.lead + self.prompt.reasoned("") if self.reasoning else prompt

    def _behind(self, prompt: str, reasoning: str) -> str:
        """The prompt with reasoning, which is text whatever it says, and the bridge behind it."""
        return prompt + self.lead + self.prompt.reasoned(self.control.mark(reasoning))

    def _ids(self, marked: str) -> list[int]:
        ids = self.control.encode(marked, self.name)
        return [self.bos_id, *ids] if self.bos_id is not None and ids[:1] != [self.bos_id] else ids

    def _own_bos(self) -> int | None:
        """The BOS id where this tokenizer puts one in front by itself, else None (Qwen2 has none, and wants none)."""
        ids = self.tokenizer("x")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None and ids[0] == bos else None

    def _lead(self) -> str:
        """Blanks at the end of a prompt that would make one token with the letter behind them ("Assistant: " and "A"
        are " A" to most tokenizers); they go in front of the answer then.
        """
        text = self.chat.render([{"role": "user", "content": "probe"}])
        lead = text[len(text.rstrip(" ")) :]
        ids, longer = self._ids(text), self._ids(text + LETTERS[0])
        return lead if longer[: len(ids)] != ids else ""

    def _check(self, examples: Sequence[Example], prompts: Sequence[str]) -> None:
        self._check_letters(prompts)
        if self.context is not None:
            lengths = [(one.id, max(map(len, one.sequences))) for one in examples]
            long = [(id, length) for id, length in lengths if length > self.context]
            if long:
                many = "1 item is" if len(long) == 1 else f"{len(long)} items are"
                shown = ", ".join(f"{id} ({length} tokens)" for id, length in long[:5])
                raise UserError(
                    f"{self.name}: {many} longer than the model's context of {self.context} "
                    f"tokens: {shown}"
                    f"{' …' if len(long) > 5 else ''}. Nothing is cut; use a shorter prompt or leave the backbone out."
                )
        self._check_vocab(examples)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for one in examples:
            # A template may well write one in front of each turn, but no model was trained on two in a row.
            if bos is not None and bos != eos and one.ids[:2] == (bos, bos):
                raise UserError(
                    f"{self.name}: item {one.id}: the prompt begins with two BOS tokens; the chat template writes one "
                    f"too many. {ANOTHER}"
                )
            if one.ids[one.answer_start - 1] == eos:
                raise UserError(
                    f"{self.name}: item {one.id}: the prompt ends with EOS; the chat template closes it before the "
                    f"answer. {ANOTHER}"
                )

    def _check_vocab(self, examples: Sequence[Example]) -> None:
        """Every token of the items, and the letters, must be one that the model has an embedding for."""
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
                f"{self.name}: the tokenizer has {len(self.tokenizer)} tokens, the model's embedding {self.vocab} "
                f"rows, and items hold {len(found)} token(s) beyond them: {shown}{' …' if len(found) > 5 else ''}. "
                "Give the tokenizer that belongs to these weights."
            )

    def _check_letters(self, prompts: Sequence[str]) -> None:
        """Reads the letters' ids behind every ending that a prompt has; they must agree, be single and distinct."""
        lead = "" if self.reasoning else self.lead
        for text in {prompt[-SEAM:]: prompt for prompt in prompts}.values():
            ids = self._ids(text)
            found = []
            for letter in LETTERS:
                longer = self._ids(text + lead + letter)
                if longer[: len(ids)] != ids or len(longer) != len(ids) + 1:
                    raise UserError(
                        f"{self.name}: the letter {letter} is not one token of its own behind the prompt, which ends "
                        f"with {text[-20:]!r}: {longer[len(ids) - 2 :]} against {ids[-2:]}. The three letters cannot "
                        "be compared. Let the prompt or the chat template (--chat_template FILE) end with a line break."
                    )
                found.append(longer[-1])
            a, b, c = found
            if len({a, b, c}) != 3:
                raise UserError(f"{self.name}: the letters {', '.join(LETTERS)} are not three tokens: {found}.")
            if self.letter_ids not in (None, (a, b, c)):
                raise UserError(
                    f"{self.name}: the letters are tokens {self.letter_ids} behind one prompt and {(a, b, c)} behind "
                    f"another, which ends with {text[-20:]!r}. Let the chat template or the prompt end all alike."
                )
            self.letter_ids = (a, b, c)


def _carried(item: Item) -> str:
    text = reasoning_of(item)
    if text is None:
        raise UserError(
            f'item {item.id} carries no reasoning; training with `reasoning` needs the key "reasoning", a text, in '
            "the object of every training item, beside its id."
        )
    return text


def _pad_id(tokenizer: Any, vocab: int | None) -> int:
    """An id to fill rows with. Masks come from lengths, so it is never looked at; still it is no EOS, and the model
    has an embedding for it.
    """
    for id in (tokenizer.pad_token_id, tokenizer.unk_token_id):
        if id is not None and id != tokenizer.eos_token_id and (vocab is None or id < vocab):
            return int(id)
    return 0 if tokenizer.eos_token_id != 0 else 1


def _probes() -> list[Item]:
    """An invented item of every category."""
    said = (Utterance("1", 1, "어제 뭐 했어?"), Utterance("2", 2, "비가 와서 집에 있었어.\n책을 2권 읽었지."))
    options = ("화자2는 책을 읽었다.", "화자2는 산에 갔다.", "화자1은 비를 맞았다.")
    return [Item("probe", said, ("2",), category, options, 0, {}) for category in CATEGORIES]
