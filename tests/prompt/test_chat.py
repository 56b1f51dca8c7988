"""The chat forms of the eight backbones as their pages document them, and templates that do odd things."""

import copy
import dataclasses
import datetime
import time
from typing import Any

import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from tokenizers import AddedToken

from src.console.cli import UserError
from src.prompt.chat import Chat, Frozen, Rendering
from src.prompt.encode import Encoder
from src.prompt.fewshot import Library
from src.prompt.prompts import Examples, load_prompt, parse_prompt
from tests import toys

SHORT = parse_prompt(toys.SHORT, "short")

# Llama 3's first template writes the assistant's header behind everything, asked or not.
LLAMA3_FIRST = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# A BOS in front of every user turn, and a blank in front of EOS.
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if message.role == 'user' %}{{ bos_token }}[INST] "
    "{{ first if loop.first else '' }}{{ message.content }} [/INST]\n{% else %}{{ message.content }} {{ eos_token }}"
    "{% endif %}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{{ message.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ message.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DATED = (
    "\n{{ bos_token }}{% if strftime_now is defined %}Today Date: {{ strftime_now('%d %b %Y') }}, "
    '{{ strftime_now("%Y-%m-%d %H:%M:%S") }}\n{% endif %}'
    "{% for message in messages %}<{{ message.role }}>\n{{ message.content }}{{ eos_token }}{% endfor %}<assistant>\n"
)
PARTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@dataclasses.dataclass(frozen=True)
class Form:
    """A documented form: whose tokenizer, the template (None: the toy's own), the end of an answer and of a turn, and
    a chat of system, user, assistant and user as it is to be.
    """

    short: str
    template: str | None
    turn_end: str
    stop: tuple[str, ...]
    text: str
    system_turn: str = "own"


CHATML_TEXT = (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA. x<|im_end|>\n"
    "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA3_TEXT = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA. x<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
SOLAR_TEXT = "<s>### System:\nS\n\n### User:\nU\n\n### Assistant:\nA. x</s>### User:\nV\n\n### Assistant:\n"
FORMS = {
    "bllossom": Form("bllossom", LLAMA3_FIRST, "<|eot_id|>", ("<|eot_id|>",), LLAMA3_TEXT),
    "bllossom, header when asked": Form("bllossom", toys.LLAMA3, "<|eot_id|>", ("<|eot_id|>",), LLAMA3_TEXT),
    "polar": Form("polar", None, "</s>", ("</s>",), SOLAR_TEXT),
    "solarko": Form("solarko", None, "</s>", ("</s>",), SOLAR_TEXT),
    "kogemma": Form(
        "kogemma",
        toys.KOGEMMA,
        "<end_of_turn>",
        ("<eos>", "<end_of_turn>"),
        "<bos>S<start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\nA. x<end_of_turn>\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma": Form(
        "kogemma",
        GEMMA,
        "<end_of_turn>",
        ("<eos>", "<end_of_turn>"),
        "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA. x<end_of_turn>\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
        system_turn="folded",
    ),
    "eeve": Form(
        "eeve",
        toys.EEVE.replace("A chat between a user and an assistant.\n", ""),
        "<|im_end|>",
        ("<|im_end|>",),
        "Human: S\n\nU\nAssistant:\nA. x<|im_end|>\nHuman: V\nAssistant:\n",
        system_turn="folded",
    ),
    "qwen2": Form("qwen2", None, "<|im_end|>", ("<|endoftext|>", "<|im_end|>"), CHATML_TEXT),
    "qwen2it": Form("qwen2it", None, "<|im_end|>", ("<|im_end|>",), CHATML_TEXT),
    "spow12": Form(
        "spow12",
        "{{ bos_token }}" + toys.CHATML,
        "<|im_end|>",
        ("<|endoftext|>", "<|im_end|>"),
        "<|BOS|>" + CHATML_TEXT,
    ),
    "llama2": Form(
        "polar",
        LLAMA2,
        "</s>",
        ("</s>",),
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]\nA. x </s><s>[INST] V [/INST]\n",
    ),
}


def tokenizer_of(form: Form) -> Any:
    made = copy.deepcopy(toys.tokenizer(form.short))
    if form.template:
        made.chat_template = form.template
    return made


def encoder(form: Form, prompt: Any = SHORT, **keys: Any) -> Encoder:
    return toys.encoder(form.short, prompt, words=tokenizer_of(form), **keys)


def made(template: str, short: str = "qwen2it", **keys: Any) -> Encoder:
    return encoder(Form(short, template, "", (), ""), **keys)


@pytest.mark.parametrize("name", FORMS)
def test_the_documented_forms(name: str) -> None:
    form = FORMS[name]
    one = encoder(form)
    assert (one.turn_end, one.system_turn) == (form.turn_end, form.system_turn)
    assert one.stop_ids == sorted(one.tokenizer.convert_tokens_to_ids(list(form.stop)))
    turns = (("system", "S"), ("user", "U"), ("assistant", "A. x"), ("user", "V"))
    assert one.chat_text([{"role": role, "content": content} for role, content in turns]) == form.text


@pytest.mark.parametrize("name", FORMS)
def test_letters_and_turn_end_in_the_documented_forms(name: str) -> None:
    one, items = encoder(FORMS[name]), toys.items(5)
    end = one.tokenizer.convert_tokens_to_ids(FORMS[name].turn_end)
    for item, trained, scored in zip(items, one.for_training(items), one.for_scoring(items), strict=True):
        assert one.letter_ids is not None and item.label is not None
        supervised = trained.ids[trained.answer_start :]
        assert trained.ids[: trained.answer_start] == scored.ids
        assert supervised[0] == one.letter_ids[item.label]
        assert supervised[-1] == end and supervised.count(end) == 1, "the end of the turn, and nothing behind it"
        assert not set(supervised[:-1]) & set(one.control.ids.values())


@pytest.mark.parametrize("name", FORMS)
def test_worked_examples_in_the_documented_forms(name: str) -> None:
    shots = dataclasses.replace(SHORT, examples=Examples(2))
    pool = toys.items(16, start=5)
    library = Library(pool, shots.examples or Examples(2))
    one, alone = encoder(FORMS[name], shots, library=library), encoder(FORMS[name])
    item = next(item for item in toys.items(5) if sum(other.category == item.category for other in pool) >= 2)
    (example,), (plain,) = one.for_scoring([item]), alone.for_scoring([item])
    end = one.tokenizer.convert_tokens_to_ids(FORMS[name].turn_end)
    text, turns = one.prompt_text(item), alone.prompt_text(item)
    assert text.endswith(turns[turns.find("*1: ") if "*1: " in turns[:60] else -80 :][-80:])
    for shown in library.choose(item):
        answer = SHORT.render(shown).answers[shown.label or 0]
        assert f"{answer}{FORMS[name].turn_end}" in text.replace(" </s>", "</s>")
    assert example.ids.count(end) >= plain.ids.count(end) + 2, "each example's answer is ended as ours is"
    assert one.letter_ids == alone.letter_ids


# What a template may do beside


def test_a_template_that_takes_content_for_a_list_of_parts_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"qwen2it: the tokenizer's chat template leaves out .* user's turn: .*--chat_te"
    ):
        made(PARTS)
    deaf = toys.CHATML.replace(
        "{{ message.content }}", "{% if message.role != 'assistant' %}{{ message.content }}{% endif %}"
    )
    made(deaf).for_training(toys.items(1))  # an answer is put behind the template
    shots = dataclasses.replace(SHORT, examples=Examples(1))
    with pytest.raises(UserError, match="leaves out the text of the assistant's turn"):
        made(deaf, prompt=shots, library=Library(toys.items(16), Examples(1)))
    with pytest.raises(UserError, match="leaves out the text of the system's turn"):
        made(
            toys.CHATML.replace("message.content", "(message.content if message.role == 'user' else '')"),
            system_turn="own",
        )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0].content + 1 }}", "fails on turns of user: TypeError"),
        ("{{ 1 // (messages | length - 1) }}{{ messages[0].content }}", "fails on turns of user: ZeroDivisionError"),
        ("{% for message in messages %}{{ message.content }}{% endfo %}", "is no Jinja2: line 1"),
        ("{{ messages[0].content }}{% include 'x' %}", "fails on turns of user|does not take turns of user"),
        ("{{ missing.field.of }}{{ messages[0].content }}", "does not take turns of user"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails on turns of user: it calls itself without an end"),
    ],
)
def test_a_template_that_fails_is_one_line_that_names_it(template: str, said: str) -> None:
    with pytest.raises(
        UserError, match=rf"qwen2it: the tokenizer's chat template ({said}).*--chat_template FILE"
    ) as found:
        made(template)
    assert "\n" not in str(found.value)


def test_a_template_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.files.templates.SECONDS", 0.3)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    started = time.monotonic()
    with pytest.raises(UserError, match=r"template fails on turns of user: it has not ended after 0\.3 s"):
        made(endless)
    assert time.monotonic() - started < 5


def later(days: int) -> Any:
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.now(tz) + datetime.timedelta(days=days)

    return Later


def test_a_run_keeps_the_date_that_its_template_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(DATED, "polar")
    today = datetime.date.today()
    assert first.chat.date == today.isoformat()
    text = first.prompt_text(toys.items(1)[0])
    assert text.startswith(f"\n<s>Today Date: {today:%d %b %Y}, {today} 00:00:00\n")
    assert f"writes the date; for this run it stays {today}" in "\n".join(first.notes([]))
    monkeypatch.setattr(chat_template_utils, "datetime", later(35))
    # What a merged model is saved with writes the same day for whoever renders it later.
    messages = [{"role": "user", "content": "U"}]
    alone = first.tokenizer.apply_chat_template(messages, chat_template=first.chat.dated_template, tokenize=False)
    assert alone == first.chat_text(messages)
    kept = made(DATED, "polar", frozen=Frozen("tokenizer", first.chat.date))
    assert kept.for_scoring(toys.items(3)) == first.for_scoring(toys.items(3))
    assert kept.rendered_sha256 == first.rendered_sha256
    other = made(DATED, "polar", frozen=Frozen("tokenizer", "2024-07-26"))
    assert "Today Date: 26 Jul 2024, 2024-07-26 00:00:00" in other.prompt_text(toys.items(1)[0])
    assert other.template_sha256 == first.template_sha256 and other.rendered_sha256 != first.rendered_sha256


def test_a_held_date_changes_nothing_but_the_date() -> None:
    template = DATED.replace(', {{ strftime_now("%Y-%m-%d %H:%M:%S") }}', "")
    one = made(template, "polar")
    messages = [{"role": "user", "content": "U"}]
    own = one.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert one.chat_text(messages) == own and own.startswith("\n<s>Today Date: ")


def test_a_date_that_an_older_record_does_not_keep_is_refused() -> None:
    with pytest.raises(UserError, match="the run's record does not keep the date that it was trained with"):
        made(DATED, "polar", frozen=Frozen("tokenizer", None))


WRITINGS = {
    "computed": "{% set how = '%d %b %Y' %}{{ strftime_now(how) }}",
    "named": "{{ strftime_now(format='%d %b %Y') }}",
    "under another name": "{% set now = strftime_now %}{{ now('%d %b %Y') }}",
    "in a macro": "{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ day() }}",
    "with an escape": "{{ strftime_now('%d\\u0020%b\\u0020%Y') }}",
    "with a percent sign": "{{ strftime_now('%%d') | replace('%d', strftime_now('%d %b %Y')) }}",
    "a default, as Llama 3.2": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}{{ date_string }}",
}


@pytest.mark.parametrize("writing", WRITINGS.values(), ids=WRITINGS)
def test_a_date_is_held_however_it_is_written(writing: str) -> None:
    one = made(writing + toys.CHATML, frozen=Frozen("tokenizer", "2024-07-26"))
    assert one.chat_text([{"role": "user", "content": "U"}]).startswith("26 Jul 2024<|im_start|>")


def test_a_template_that_writes_other_text_each_time_is_refused() -> None:
    with pytest.raises(UserError, match="qwen2it: the tokenizer's chat template writes different text each time"):
        made("{{ range(99999) | random }}" + toys.CHATML)


@pytest.mark.parametrize(
    "change", ["content[:120]", "content | truncate(120)", "content.split('\n')[0]", "content | lower", "content | e"]
)
def test_a_template_that_cuts_or_changes_a_text_is_refused(change: str) -> None:
    one = made(toys.CHATML.replace("message.content", f"message.{change}"))
    item = toys.items(1)[0]
    item = dataclasses.replace(item, options=("화자1은 Tom & <Jerry>를 보았다.", *item.options[1:]))
    with pytest.raises(UserError, match="cuts or changes the text of the user's turn that begins with"):
        one.for_scoring([item])


@pytest.mark.parametrize("change", ["content | trim", "content.split() | join(' ')", "content.strip() + '\n'"])
def test_a_template_may_move_blanks(change: str) -> None:
    one = made(toys.CHATML.replace("message.content", f"message.{change}"))
    assert one.for_scoring(toys.items(2))


def test_a_template_that_drops_thoughts_keeps_what_people_typed() -> None:
    template = toys.CHATML.replace("message.content", "message.content.split('</think>')[-1]")
    tokenizer = copy.deepcopy(toys.tokenizer("qwen2it"))
    tokenizer.add_tokens(["</think>"])
    tokenizer.chat_template = template
    one = Chat(tokenizer, "toy", Rendering(template, override=True))
    marked = one.render([{"role": "user", "content": "앞 </think> 뒤"}])
    assert "앞 </think> 뒤" in one.control.clean(marked)
    assert tokenizer.convert_tokens_to_ids("</think>") not in one.control.encode(marked, "toy")


def test_what_opens_an_answer_is_said_whoever_asked_for_it() -> None:
    always = toys.CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    (line,) = made(always).notes([])
    assert line == "the chat template opens the answer with '<think>'"


def test_the_answer_is_opened_without_thinking_and_that_is_said() -> None:
    one = made(THINKING)
    item = toys.items(1)[0]
    assert one.prompt_text(item).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert one.turn_end == "<|im_end|>"
    (line,) = one.notes([])
    assert line == r"the chat template opens the answer without thinking, with '<think>\n\n</think>\n\n'"
    # A run that was made before this was decided goes on as it was trained.
    before = made(THINKING, frozen=Frozen("tokenizer"))
    assert before.prompt_text(item).endswith("<|im_start|>assistant\n")
    assert before.rendered_sha256 != one.rendered_sha256


def test_a_system_turn_of_the_templates_own_is_said() -> None:
    bare = dataclasses.replace(SHORT, system="")
    (line,) = encoder(FORMS["qwen2it"], bare).notes([])
    assert line.startswith("the chat template writes in front of the prompt: '<|im_start|>system\\nYou are a helpful")
    assert encoder(FORMS["qwen2it"]).notes([]) == []
    (line,) = made(toys.EEVE, "eeve").notes([])
    assert "A chat between a user and an assistant." in line


def test_a_word_that_the_template_writes_is_a_control_token_and_a_plain_one_is_not() -> None:
    tokenizer = copy.deepcopy(toys.tokenizer("qwen2it"))
    tokenizer.add_tokens([AddedToken("사용자말", special=False), AddedToken("우산이", special=False), "<b>"])
    template = toys.CHATML.replace("<|im_start|>{{ message.role }}", "사용자말{{ message.role }}")
    chat = Chat(tokenizer, "toy", Rendering(template, override=True))
    assert "사용자말" in chat.control.ids and "<b>" in chat.control.ids and "우산이" not in chat.control.ids


def test_a_real_prompt_under_every_form_is_hashed_as_rendered() -> None:
    prompts = [load_prompt(name) for name in ("korean", "entry")]
    found = {encoder(form, prompt).rendered_sha256 for form in FORMS.values() for prompt in prompts}
    # polar and solarko render the same text; the two Llama 3 templates and the two ChatML ones do as well.
    assert len({text for text, _ in found}) == 2 * (len(FORMS) - 3)


@pytest.mark.parametrize("text", ["{{ cycler() }}", "{{ 'a'.center(3 * 10 ** 9) }}", "{{ 10 ** (10 ** 9) }}"])
def test_a_template_that_raises_what_it_likes_or_takes_all_memory(text: str) -> None:
    with pytest.raises(UserError, match=r"the tokenizer's chat template (fails on|does not take) turns of user: "):
        made("{{ messages[0].content }}" + text)


def test_a_template_that_is_too_large_is_not_compiled() -> None:
    with pytest.raises(UserError, match="the tokenizer's chat template is too large; allowed: 200,000 characters"):
        made("{{ messages[0].content }}" + "x" * 200_000)


def test_a_record_with_another_date_or_arguments_that_are_not_the_templates() -> None:
    for frozen in (Frozen("recipe", "soon"), Frozen("recipe", "2024-01-02", {"tokenize": True})):
        with pytest.raises(UserError, match="chat template"):
            Chat(toys.tokenizer("qwen2it"), "q", Rendering(DATED, override=True, frozen=frozen))
