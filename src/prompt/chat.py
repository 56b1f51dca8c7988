"""A backbone's chat template. Probes find out once what it does, and the result is kept.

A template is a program that somebody else wrote. It may refuse a system turn, write the assistant's header unasked,
write today's date, open the answer with an empty block of thoughts, or drop a text. Names and flags do not say so.
Therefore small chats are rendered and inspected.
"""

import dataclasses
import datetime
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers.utils import chat_template_utils

from src.console.cli import UserError
from src.files import templates
from src.files.reading import HALF, shortened
from src.prompt.control import ControlTokens
from src.prompt.messages import Message, fold_system

ANOTHER = "Give another one: --chat_template FILE."

SYSTEM, USER, ANSWER = "probe-system", "probe-user", "A. probe-answer"

# transformers renders templates itself, in an environment of this class.
chat_template_utils.ImmutableSandboxedEnvironment = templates.BoundedEnvironment  # type: ignore[misc]

# With this argument, templates that know it (Qwen3's) open the answer with an empty block of thoughts. These models
# were trained to answer at once after it.
WITHOUT_THINKING = {"enable_thinking": False}


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The rendering settings that a run's record keeps, so that the same text is rendered later.

    source      whose template it is: "tokenizer" or "recipe"
    date        ISO date that the template writes, None if it writes none
    arguments   given to the template
    """

    source: str | None = None
    date: str | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rendering:
    """Settings from a recipe, and from a run's record, for rendering messages for a backbone.

    chat_template   the recipe's; for a tokenizer that ships none, or, with `override`, in place of the shipped one
    system_turn     "auto" asks the template, "own" keeps a system message, "folded" puts it before the user's
    reasoning       the letter comes after reasoning and the prompt's bridge. The reasoning is the item's own in
                    training, none in `Encoder.for_scoring`, a model's in `Encoder.for_chains`
    frozen          of a run that is resumed or scored; None takes today's date and finds the arguments
    """

    chat_template: str | None = None
    override: bool = False
    system_turn: str = "auto"
    reasoning: bool = False
    frozen: Frozen | None = None


class Chat:
    """One backbone's template. UserError where there is none, or where it loses text.

    template      its text; `source` says whose it is, "tokenizer" or "recipe"
    system_turn   how a system message is written: "own" or "folded"
    turn_end      text that ends an answer
    """

    def __init__(self, tokenizer: Any, name: str, rendering: Rendering) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.template, self.source = _chosen_template(tokenizer, name, rendering)
        self.control = ControlTokens(tokenizer, self.template)
        frozen = rendering.frozen
        self.date = _date_of(self.template, frozen, self._whose)
        self.dated_template = _with_date(self.template, self.date)
        self.arguments: dict[str, Any] = {}
        user = self._apply([_user()])
        if self._apply([_user()]) != user:
            raise UserError(
                f"{self._whose} writes different text each time it is asked, so what is trained could never be scored. "
                f"{ANOTHER}"
            )
        if frozen is None and self._apply([_user()], WITHOUT_THINKING) != user:
            self.arguments = dict(WITHOUT_THINKING)
        elif frozen is not None:
            self.arguments = dict(frozen.arguments)
        self._check_kept(user, "user", USER)
        self.system_turn = self._system_turn() if rendering.system_turn == "auto" else rendering.system_turn
        if self.system_turn == "own":
            self._check_kept(self._apply([_system(), _user()]), "system", SYSTEM)
        self.turn_end = self._turn_end()

    def render(self, messages: Sequence[Message]) -> str:
        """The messages up to the answer, marked (`ControlTokens.mark`) where their texts spell control tokens."""
        marked = [{**message, "content": self.control.hide(message["content"])} for message in messages]
        if self.system_turn == "folded":
            marked = fold_system(marked)
        text = self._apply(marked)
        for message in marked:
            self._check_whole(text, message)
        return self.control.unhide(text)

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end a generated turn."""
        word = self.control.pattern.search(self.turn_end)
        end = [self.control.ids[word[0]]] if word else self.control.encode(self.turn_end, self.name)
        eos = self.tokenizer.eos_token_id
        return sorted({*(end if len(end) == 1 else []), *([] if eos is None else [eos])})

    def refuse_lost_answers(self) -> None:
        """UserError if the template drops earlier answers of the assistant, which worked examples need."""
        self._check_kept(self._apply([_user(), _answer(), _user()]), "assistant", ANSWER)

    def notes(self, with_system: bool) -> list[str]:
        """A line for everything that the template does besides framing the messages."""
        lines = []
        messages = [_system(), _user()] if with_system else [_user()]
        text = self.render(messages)
        head = text[: min(place for word in (SYSTEM, USER) if (place := text.find(word)) >= 0)]
        if len(re.findall(r"\w+", self.control.pattern.sub(" ", head))) > 2:
            lines.append(f"the chat template writes in front of the prompt: {head!r}")
        if self.arguments:
            added = _added(self._apply(messages, {}), self._apply(messages))
            lines.append(f"the chat template opens the answer without thinking, with {added!r}")
        elif opened := self._opened():
            lines.append(f"the chat template opens the answer with {opened!r}")
        if self.date:
            lines.append(f"the chat template writes the date; for this run it stays {self.date}")
        return lines

    @property
    def _whose(self) -> str:
        return f"{self.name}: the {self.source}'s chat template"

    def _apply(self, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None) -> str:
        roles = ", ".join(message["role"] for message in messages)
        try:
            return apply_template(
                self.tokenizer,
                messages,
                chat_template=self.dated_template,
                add_generation_prompt=messages[-1]["role"] == "user",
                **(self.arguments if arguments is None else arguments),
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._whose} is no Jinja2: line {error.lineno}: {_said(error)}. {ANOTHER}") from error
        except jinja2.TemplateError as error:
            raise UserError(f"{self._whose} does not take turns of {roles}: {_said(error)}. {ANOTHER}") from error
        except Exception as error:  # a template can raise anything that Python can
            raise UserError(f"{self._whose} fails on turns of {roles}: {templates.why(error)}. {ANOTHER}") from error

    def _check_kept(self, text: str, role: str, word: str) -> None:
        if word not in text:
            raise UserError(
                f"{self._whose} leaves out the text of the {role}'s turn: "
                f"it does not write `message.content`, or takes it for a list of parts. {ANOTHER}"
            )

    def _check_whole(self, text: str, message: Message) -> None:
        """UserError if `text` lacks words of a message. Blanks may move, as with `trim`."""
        if message["content"].strip() in text:
            return
        words = " ".join(message["content"].split())
        if words not in " ".join(text.split()):
            shown = self.control.clean(self.control.unhide(words))[:60]
            raise UserError(
                f"{self._whose} cuts or changes the text of the {message['role']}'s turn "
                f"that begins with {shown!r}. {ANOTHER}"
            )

    def _opened(self) -> str:
        """Text that opens the answer to be generated but not earlier ones, such as `<think>`."""
        coming = self._apply([_user()]).rpartition(USER)[2].rstrip()
        try:
            earlier = self._apply([_user(), _answer(), _user()])
        except UserError:  # a template that takes no second question
            return ""
        before = earlier.partition(ANSWER)[0].rpartition(USER)[2].rstrip()
        return coming.removeprefix(before).strip() if before and coming.startswith(before) else ""

    def _system_turn(self) -> str:
        try:
            return "own" if SYSTEM in self._apply([_system(), _user()]) else "folded"
        except UserError:  # many templates refuse the role
            return "folded"

    def _turn_end(self) -> str:
        """The text after an answer, up to the first control token. It is supervised, so that generation stops.

        Some templates write the next turn's header too, even when asked not to.
        """
        whole = self._apply([_user(), _answer()])
        position = whole.rfind(ANSWER)
        rest = whole[position + len(ANSWER) :] if position >= 0 else ""
        found = self.control.pattern.search(rest)
        end = (rest[: found.end()] if found else rest).strip()
        return end or self.tokenizer.eos_token or ""


def _system() -> Message:
    return {"role": "system", "content": SYSTEM}


def _user() -> Message:
    return {"role": "user", "content": USER}


def _answer() -> Message:
    return {"role": "assistant", "content": ANSWER}


def _added(without: str, with_it: str) -> str:
    """The end of `with_it`, from where it differs from `without`."""
    same = next((n for n, (a, b) in enumerate(zip(without, with_it, strict=False)) if a != b), len(without))
    return with_it[same:]


def _date_of(template: str, frozen: Frozen | None, whose: str) -> str | None:
    """The ISO date for a template that writes the date; None for one that does not."""
    if "strftime_now" not in template:
        return None
    if frozen is None:
        return datetime.date.today().isoformat()
    if frozen.date is None or not re.fullmatch(r"\d{4}-\d\d-\d\d", frozen.date):
        raise UserError(
            f"{whose} writes the date, and the run's record does not keep the date that it was trained with, "
            "so the same text cannot be rendered again. Train the run again; the date is kept now."
        )
    return frozen.date


def _with_date(template: str, date: str | None) -> str:
    """`template` with a macro `strftime_now` in front of it that knows one day only. (transformers does not let us
    give functions to a template.)
    """
    if date is None:
        return template
    day = datetime.datetime.fromisoformat(date)
    signs = [f"%{flag}{letter}" for letter in string.ascii_letters for flag in ("", "-")]
    known = [(sign, text) for sign in signs if (text := day.strftime(sign)) != sign]
    table = "[" + ", ".join(f"({_quoted(sign)}, {_quoted(text)})" for sign, text in known) + "]"
    percent = _quoted("\ue000")  # of a "%%", which begins no sign
    # `+%}` keeps a line break at the beginning of the template.
    return (
        f'{{%- macro strftime_now(format) -%}}{{%- set found = namespace(text=format | replace("%%", {percent})) -%}}'
        f"{{%- for sign, text in {table} -%}}"
        "{%- set found.text = found.text | replace(sign, text) -%}{%- endfor -%}"
        f'{{{{- found.text | replace({percent}, "%") -}}}}{{%- endmacro +%}}{template}'
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _said(error: BaseException) -> str:
    return shortened(str(error).rstrip("."), 400)


def apply_template(tokenizer: Any, messages: Sequence[Message], **words: Any) -> str:
    """The text of `messages` in the tokenizer's chat template, or in `chat_template`, within the bounds of templates.
    Raises whatever the template raises.
    """
    with templates.bounded():
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **words)
    if not isinstance(text, str):
        raise TypeError(f"it makes {type(text).__name__}, no text")
    if HALF.search(text):
        raise ValueError("it makes half a character")
    return text


def _chosen_template(tokenizer: Any, name: str, rendering: Rendering) -> tuple[str, str]:
    """(template, source): the tokenizer's or the recipe's, the latter first only if it overrides."""
    shipped = tokenizer.chat_template
    if isinstance(shipped, dict):  # several by name: for tools, for retrieval
        shipped = shipped.get("default")
    frozen = rendering.frozen
    overrides = rendering.override if frozen is None or frozen.source is None else frozen.source == "recipe"
    both = [(rendering.chat_template, "recipe"), (shipped, "tokenizer")]
    for template, source in both if overrides else reversed(both):
        if template:
            return _small(template, f"{name}: the {source}'s chat template"), source
    raise UserError(
        f"{name}: the tokenizer ships no chat template and the recipe gives none. "
        "Give one: --chat_template FILE, or `chat_template` in the recipe "
        "(a Jinja2 text over messages, bos_token and add_generation_prompt)."
    )


def _small(template: Any, whose: str) -> str:
    if not isinstance(template, str):
        raise UserError(f"{whose} is {type(template).__name__}; allowed: text. {ANOTHER}")
    if len(template) > templates.MOST_BYTES:
        raise UserError(f"{whose} is too large; allowed: {templates.MOST_BYTES:,} characters. {ANOTHER}")
    return template
