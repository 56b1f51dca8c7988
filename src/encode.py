"""Messages → tokens: the one encoder that training, scoring and preference tuning share.

The rendered chat text is tokenised once, prompt and answer together, without the tokenizer's own special tokens; a
BOS is put in front by rule. So the letter that is trained is the letter that is read, in the context the model will
really see.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from src.cli import UserError
from src.data import Item
from src.fewshot import Library
from src.prompts import LETTERS, ORDERS, Message, Prompt, Rendered, reasoning_of

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
    chat_template   the template to use when the tokenizer ships none
    system_turn     "auto" probes the template, "own" keeps a system message, "folded" puts it in front of the user's
    context         the model's longest input in tokens; longer items are refused, never cut
    library         where a prompt with examples takes them from
    reasoning       the letter stands behind reasoning and the prompt's bridge: behind the item's own in training,
                    behind none in `for_scoring`, behind what a model has generated in `for_chains`
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Prompt,
        *,
        name: str,
        chat_template: str | None = None,
        system_turn: str = "auto",
        context: int | None = None,
        library: Library | None = None,
        reasoning: bool = False,
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
        shipped = tokenizer.chat_template
        if isinstance(shipped, dict):  # several by name: for tools, for retrieval
            shipped = shipped.get("default")
        self.template_source = "tokenizer" if shipped else "recipe"
        self.template = shipped or chat_template
        if not self.template:
            raise UserError(
                f"{name}: the tokenizer ships no chat template and the recipe gives none. Set `chat_template` "
                f"in the recipe "
                "(a Jinja2 text over messages, bos_token and add_generation_prompt)."
            )
        self.bos_id = self._own_bos()
        self.pad_id = _pad_id(tokenizer)
        self.system_turn = self._system_turn() if system_turn == "auto" else system_turn
        self.turn_end = self._turn_end()
        self.letter_ids: tuple[int, int, int] | None = None

    @property
    def template_sha256(self) -> str:
        return hashlib.sha256(str(self.template).encode()).hexdigest()

    def prompt_text(self, item: Item, order: str = ORDERS[0]) -> str:
        """The whole prompt as text, up to where the letter comes, or before it the reasoning."""
        return self.chat(self._render(item, order).messages)

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
            prompt = self.chat(rendered.messages)
            before = prompt + self.prompt.reasoned(self._plain(_carried(item))) if self.reasoning else prompt
            prompts.append(before)
            prompt_ids = self._ids(prompt)
            ids, *rejected = (
                tuple(self._ids(before + rendered.answers[place] + self.turn_end))
                for place in (item.label, *wrong(item))
            )
            if any(answered[: len(prompt_ids)] != tuple(prompt_ids) for answered in (ids, *rejected)):
                raise UserError(
                    f"{self.name}: item {item.id}: the answer's first token merges with the end of the prompt, "
                    f"so no letter could "
                    f"be read there. The prompt ends with {prompt[-20:]!r}; let the template end it with a line break."
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
            prompt = self.prompt_text(item, order)
            prompts.append(prompt + self.prompt.reasoned(self._plain(text)) if self.reasoning else prompt)
            ids = self._ids(prompts[-1])
            letter = None if item.label is None else order.index(str(item.label))
            examples.append(Example(id, order, tuple(ids), len(ids), letter, item.dialogue_key))
        self._check(examples, prompts)
        return examples

    def for_reasoning(self, item: Item, order: str = ORDERS[0]) -> list[int]:
        """The prompt behind which reasoning is generated."""
        return self._ids(self.prompt_text(item, order))

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end a generated turn."""
        end = self.tokenizer(self.turn_end, add_special_tokens=False)["input_ids"] if self.turn_end else []
        special = [id for id in end[:1] if id in self.tokenizer.all_special_ids or len(end) == 1]
        eos = self.tokenizer.eos_token_id
        return sorted({*special, *([] if eos is None else [eos])})

    def show(self, example: Example) -> str:
        """The example as the model sees it, the supervised part between ⟦ and ⟧, rejected answers below it."""
        decode, start = self.tokenizer.decode, example.answer_start
        right, *wrong = (f"⟦{decode(list(ids[start:]))}⟧" for ids in example.sequences)
        return "\n".join([f"{decode(list(example.ids[:start]))}{right}", *(f"rejected: {answer}" for answer in wrong)])

    def _render(self, item: Item, order: str = ORDERS[0]) -> Rendered:
        examples = self.library.choose(item) if self.library else ()
        return self.prompt.render(item, order, reasoning=self.reasoning, examples=examples)

    def _plain(self, text: str) -> str:
        """Generated text without what would be read as special tokens: no chain may end its own turn."""
        for special in self.tokenizer.all_special_tokens:
            text = text.replace(special, "")
        return text

    def chat(self, messages: Sequence[Message]) -> str:
        """The messages in the backbone's chat template, up to where its answer begins."""
        if self.system_turn == "folded" and messages[0]["role"] == "system":
            system, user, *rest = messages
            messages = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return self._apply(messages)

    def _apply(self, messages: Sequence[Message]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=messages[-1]["role"] == "user",
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{self.name}: the {self.template_source}'s chat template does not take turns of {roles}: {error}"
            ) from error

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [self.bos_id, *ids] if self.bos_id is not None and ids[:1] != [self.bos_id] else ids

    def _own_bos(self) -> int | None:
        """The BOS id where this tokenizer puts one in front by itself, else None (Qwen2 has none, and wants none)."""
        ids = self.tokenizer("x")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None and ids[0] == bos else None

    def _system_turn(self) -> str:
        probe = [{"role": "system", "content": "probe-system"}, {"role": "user", "content": "probe-user"}]
        try:
            return "own" if "probe-system" in self._apply(probe) else "folded"
        except UserError:  # many templates refuse the role
            return "folded"

    def _turn_end(self) -> str:
        """What the template writes behind an answer, up to the end-of-turn token: supervised, so that generation
        would stop.
        """
        user, answer = {"role": "user", "content": "probe-user"}, "A. probe-answer"
        before = self._apply([user]) + answer
        whole = self._apply([user, {"role": "assistant", "content": answer}])
        end = whole[len(before) :].strip() if whole.startswith(before) else ""
        return end or self.tokenizer.eos_token or ""

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
        specials = {self.tokenizer.bos_token_id} - {None, self.tokenizer.eos_token_id}
        for one in examples:
            prompt = one.ids[: one.answer_start]
            if sum(prompt.count(id) for id in specials) > 1:
                raise UserError(
                    f"{self.name}: item {one.id}: more than one BOS in the prompt; its text or the chat "
                    f"template holds one."
                )
            if prompt[-1] == self.tokenizer.eos_token_id:
                raise UserError(
                    f"{self.name}: item {one.id}: the prompt ends with EOS; the chat template closes it before "
                    f"the answer."
                )

    def _check_letters(self, prompts: Sequence[str]) -> None:
        """Reads the letters' ids behind every ending that a prompt has; they must agree, be single and distinct."""
        for text in {prompt[-SEAM:]: prompt for prompt in prompts}.values():
            ids = self._ids(text)
            found = []
            for letter in LETTERS:
                longer = self._ids(text + letter)
                if longer[: len(ids)] != ids or len(longer) != len(ids) + 1:
                    raise UserError(
                        f"{self.name}: the letter {letter} is not one token of its own behind the prompt, which "
                        f"ends with "
                        f"{text[-20:]!r}: {longer[len(ids) - 2 :]} against {ids[-2:]}. The three letters cannot "
                        f"be compared."
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


def _pad_id(tokenizer: Any) -> int:
    """An id to fill rows with. Masks come from lengths, so it is never looked at; still it is no EOS."""
    for id in (tokenizer.pad_token_id, tokenizer.unk_token_id):
        if id is not None and id != tokenizer.eos_token_id:
            return id
    return next(id for id in range(len(tokenizer)) if id != tokenizer.eos_token_id)
