import copy
import dataclasses
from typing import Any

import pytest

from src.console.cli import UserError
from src.prompt.encode import Encoder, Example
from src.prompt.prompts import Prompt, load_prompt, parse_prompt
from tests import toys
from tests.made_prompts import TASK
from tests.made_task import FOUR, PROMPT, four_items, working_on

SHORT = parse_prompt(toys.SHORT, "short")


def encoder(short: str, prompt: Prompt = SHORT, **changes: Any) -> Encoder:
    """The encoder of a toy backbone; `tokenizer` and `template` (of the tokenizer) may be changed, or any argument."""
    tokenizer = copy.deepcopy(toys.tokenizer(short))
    if "template" in changes:
        tokenizer.chat_template = changes.pop("template")
    return toys.encoder(short, prompt, words=tokenizer, **changes)


def prompt_with(**changes: str) -> Prompt:
    return Prompt(**{**vars(SHORT), **changes})


def tokens(one: Encoder, ids: tuple[int, ...]) -> list[str]:
    return one.tokenizer.convert_ids_to_tokens(list(ids))


# Every backbone


@pytest.mark.parametrize("short", toys.TOYS)
@pytest.mark.parametrize("name", ["entry", "korean", "plain"])
def test_every_category_and_prompt_under_every_quirk(short: str, name: str) -> None:
    one = encoder(short, load_prompt(name))
    items = toys.items(5)
    assert {item.category for item in items} == set(TASK.categories)
    trained, scored = one.for_training(items), one.for_scoring(items)
    assert one.letter_ids is not None
    for item, example, prompt in zip(items, trained, scored, strict=True):
        assert item.label is not None
        # What is trained first is what is read, behind the same prompt.
        assert example.ids[: example.answer_start] == prompt.ids and prompt.answer_start == len(prompt.ids)
        assert example.ids[example.answer_start] == one.letter_ids[item.label]
        assert (example.letter, prompt.letter, example.order) == (item.label, item.label, "012")
        # At most one BOS, in front, and no EOS after the prompt.
        bos = one.tokenizer.bos_token_id
        assert prompt.ids.count(bos) == (bos in prompt.ids[:1]) and prompt.ids[-1] != one.tokenizer.eos_token_id
        # All of it is there, whatever the template does: the text is what the tokens spell.
        text = one.tokenizer.decode(list(prompt.ids))
        for message in one.prompt.render(item).messages:
            assert message["content"] in text
        # The answer is supervised up to the end of the turn.
        answer = "ABC"[item.label] + ("" if name == "korean" else f". {item.options[item.label]}")
        assert one.tokenizer.decode(list(example.ids[example.answer_start :])) == answer + one.turn_end
    assert one.pad_id != one.tokenizer.eos_token_id
    assert 0 <= one.pad_id < len(one.tokenizer)


@pytest.mark.parametrize(
    ("short", "bos", "pad", "turn_end", "system_turn", "source"),
    [
        ("bllossom", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "own", "tokenizer"),
        ("polar", "<s>", "<unk>", "</s>", "own", "recipe"),
        ("kogemma", "<bos>", "<pad>", "<end_of_turn>", "own", "tokenizer"),
        ("solarko", "<s>", "<unk>", "</s>", "own", "recipe"),
        ("eeve", "<s>", "</s>", "<|im_end|>", "folded", "tokenizer"),
        ("qwen2", None, "!", "<|im_end|>", "own", "tokenizer"),
        ("qwen2it", None, "<|endoftext|>", "<|im_end|>", "own", "tokenizer"),
        ("spow12", None, "<|PAD|>", "<|im_end|>", "own", "tokenizer"),
    ],
)
def test_what_is_found_out_of_each_tokenizer(
    short: str, bos: str | None, pad: str, turn_end: str, system_turn: str, source: str
) -> None:
    one = encoder(short)
    name = one.tokenizer.convert_ids_to_tokens
    assert (one.bos_id is None) == (bos is None) and (bos is None or name(one.bos_id) == bos)
    assert (name(one.pad_id), one.turn_end, one.system_turn, one.template_source) == (
        pad,
        turn_end,
        system_turn,
        source,
    )


def test_exact_tokens_of_one_example() -> None:
    one = encoder("polar", prompt_with(system="", user="{{ question }}\n", answer="{{ letter }}. {{ option }}"))
    (item,) = toys.items(1, inference_1="응")
    (example,) = one.for_training([item])
    assert one.prompt_text(item) == "<s>### User:\n원인\n\n### Assistant:\n"
    prompt = ["<s>", "##", "#", "▁User:", "<0x0A>", "원인", "<0x0A>", "<0x0A>", "##", "#", "▁Assistant:", "<0x0A>"]
    answer = ["A", ".", "▁", "응", "</s>"]
    assert tokens(one, example.ids) == prompt + answer
    assert example == Example(item.id, "012", example.ids, len(prompt), 0, item.dialogue_key)
    assert one.show(example) == "<s>### User:\n원인\n\n### Assistant:\n⟦A. 응</s>⟧"


def test_the_letter_is_not_the_word_that_begins_with_a_blank() -> None:
    one = encoder("polar")
    one.for_scoring(toys.items(1))
    alone = one.tokenizer("A", add_special_tokens=False)["input_ids"]
    assert tokens(one, tuple(alone)) == ["▁A"]
    assert one.letter_ids is not None and tokens(one, one.letter_ids) == ["A", "B", "C"]
    assert one.letter_ids[0] != alone[0] and alone[0] == one.tokenizer.get_vocab()["▁A"]


def test_a_bos_by_the_tokenizer_alone() -> None:
    # A template without BOS for a tokenizer that would put one in front by itself, and one that writes its own.
    without = encoder("polar", template="{% for message in messages %}{{ message.content }}\n{% endfor %}")
    written = encoder("polar")
    for one in (without, written):
        (example,) = one.for_scoring(toys.items(1))
        assert tokens(one, example.ids).count("<s>") == 1 and example.ids[0] == one.bos_id


def test_two_bos_in_a_row_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"bllossom: item made-0000: the prompt begins with two BOS tokens; .*--chat_te"
    ):
        encoder("bllossom", template="{{ bos_token }}" + toys.LLAMA3).for_scoring(toys.items(1))


def test_a_prompt_closed_by_eos_is_refused() -> None:
    closed = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(UserError, match="made-0000: the prompt ends with EOS"):
        encoder("solarko", template=closed).for_scoring(toys.items(1))


def test_a_refused_system_turn_is_folded_into_the_users() -> None:
    folded, own = encoder("eeve"), encoder("qwen2")
    (item,) = toys.items(1)
    user = SHORT.render(item).messages[1]["content"]
    assert f"Human: 고르세요.\n\n{user}\nAssistant:\n" in folded.prompt_text(item)
    assert own.prompt_text(item).startswith("<|im_start|>system\n고르세요.<|im_end|>\n<|im_start|>user\n*1: ")
    assert "helpful" not in own.prompt_text(item)
    # A template that drops the turn without a word is found out too; a recipe can ask for either.
    silent = "{% for message in messages if message.role == 'user' %}{{ message.content }}\n{% endfor %}"
    assert "고르세요." in encoder("qwen2", template=silent).prompt_text(item)
    assert (
        encoder("qwen2", system_turn="folded")
        .prompt_text(item)
        .startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n고르세요.\n\n*1: ")
    )
    with pytest.raises(UserError, match=r"eeve: .*does not take turns of system, user: System role not supported"):
        encoder("eeve", system_turn="own").prompt_text(item)
    # Without a system text there is nothing to fold.
    assert encoder("eeve", prompt_with(system="")).prompt_text(item).count("Human: *1") == 1


def test_the_template_of_the_recipe_is_for_tokenizers_without() -> None:
    with pytest.raises(UserError, match="polar: the tokenizer ships no chat template and the recipe gives none"):
        encoder("polar", chat_template=None)
    with pytest.raises(UserError, match="polar: the recipe's chat template is no Jinja2: line 1"):
        encoder("polar", chat_template="{% if %}")
    kept = encoder("qwen2", chat_template="{{ messages[0].content }}")
    assert (kept.template_source, kept.template) == ("tokenizer", toys.CHATML)
    given = encoder("qwen2", chat_template=toys.KOGEMMA, override=True)
    assert (given.template_source, given.template) == ("recipe", toys.KOGEMMA)
    several = encoder("qwen2", template={"tools": "{{ tools }}", "default": toys.CHATML})
    assert (several.template_source, several.template) == ("tokenizer", toys.CHATML)
    assert encoder("polar").template_sha256 == encoder("solarko").template_sha256 != kept.template_sha256


# Orders


def test_orders_move_the_right_letter() -> None:
    one = encoder("qwen2")
    items = toys.items(3)
    examples = one.for_scoring(items, TASK.all_orders)
    assert [(example.id, example.order) for example in examples] == [
        (item.id, order) for item in items for order in TASK.all_orders
    ]
    for item, example in zip((item for item in items for _ in TASK.all_orders), examples, strict=True):
        assert item.label is not None and example.letter is not None
        right = f"\n{TASK.letters[example.letter]}. {item.options[item.label]}"
        assert right in one.tokenizer.decode(list(example.ids))
    (unlabelled,) = one.for_scoring(toys.items(1, output=""))
    assert unlabelled.letter is None


# What is refused


def test_an_item_longer_than_the_context() -> None:
    one = encoder("qwen2")
    items = toys.items(3)
    lengths = [len(example.ids) for example in one.for_scoring(items)]
    assert len(encoder("qwen2", context=max(lengths)).for_scoring(items)) == 3
    long = lengths.index(max(lengths))
    message = rf"qwen2: 1 item is longer than .* context of {max(lengths) - 1} tokens: made-000{long} \("
    with pytest.raises(UserError, match=message + rf"{max(lengths)} tokens\)\. Nothing is cut"):
        encoder("qwen2", context=max(lengths) - 1).for_scoring(items)
    # In training the answer counts.
    with pytest.raises(UserError, match=r"3 items are longer"):
        encoder("qwen2", context=max(lengths)).for_training(items)


def test_a_blank_at_the_end_of_the_template_belongs_to_the_letter() -> None:
    # To byte-level BPE " A" is one word.
    blank = (
        "{% for message in messages %}{{ message.content }}{% if not loop.last %}\n{% endif %}{% endfor %}\nAnswer: "
    )
    one, without = encoder("qwen2", template=blank), encoder("qwen2", template=blank.rstrip())
    items = toys.items(3)
    trained, scored = one.for_training(items), one.for_scoring(items, TASK.all_orders)
    assert one.lead == " " and without.lead == ""
    assert one.letter_ids is not None and tokens(one, one.letter_ids) == ["ĠA", "ĠB", "ĠC"]
    assert [example.ids for example in scored] == [
        example.ids for example in without.for_scoring(items, TASK.all_orders)
    ]
    for item, example in zip(items, trained, strict=True):
        assert item.label is not None and example.ids[example.answer_start] == one.letter_ids[item.label]
        answer = one.prompt.render(item).answers[item.label]
        assert one.tokenizer.decode(list(example.ids)) == one.prompt_text(item) + " " + answer + one.turn_end
    assert "the letters are read with it: ' A'" in "\n".join(one.notes(items))
    # To SentencePiece a blank in front of a letter is a word of its own kind, too.
    alone = prompt_with(answer="{{ letter }}\n{{ option }}")  # this toy knows "▁A." as one piece
    pieces = encoder("polar", alone, chat_template="{{ bos_token }}" + blank)
    pieces.for_training(items)
    assert pieces.letter_ids is not None and tokens(pieces, pieces.letter_ids) == ["▁A", "▁B", "▁C"]


def test_a_seam_where_the_letter_merges() -> None:
    two = "{% for message in messages %}{{ message.content }}  {% endfor %}"
    one = encoder("qwen2", template=two)
    with pytest.raises(UserError, match=r"qwen2: the letter A is not one token of its own .*--chat_template FILE"):
        one.for_training(toys.items(1))
    with pytest.raises(UserError, match="qwen2: the letter A is not one token of its own after the prompt"):
        one.for_scoring(toys.items(1))


def test_every_ending_of_a_prompt_is_looked_at() -> None:
    # Behind a blank, "A" is another word; of two items of one category only one ends so.
    template = "{{ messages[-1].content }}{{ ' ' if messages[-1].content.endswith('-') }}"
    one = encoder("qwen2", prompt_with(system=""), template=template)
    sound, merging = (toys.items(1, category="원인", inference_3=text) for text in ("물을 마신다.", "물을 마신다-"))
    one.for_scoring(sound)
    for items in ([*sound, *merging], [*merging, *sound]):
        with pytest.raises(UserError, match="the letter A is not one token of its own"):
            one.for_scoring(items)


def test_a_letter_that_merges_with_its_answer() -> None:
    # The vocabulary holds "A." and "B." as pieces of their own, so "A." would be trained and "A" read.
    tokenizer = copy.deepcopy(toys.tokenizer("solarko"))
    tokenizer.add_tokens(["A.", "B.", "C."])
    one = toys.encoder("solarko", SHORT, words=tokenizer)
    one.for_scoring(toys.items(1))
    with pytest.raises(UserError, match=r"made-0000: the letter merges .* 'A.' would be trained, and 'A' read"):
        one.for_training(toys.items(1))


def test_letters_that_are_not_three_tokens() -> None:
    tokenizer = copy.deepcopy(toys.tokenizer("polar"))

    class Deaf:
        """Takes B for A."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **keys: Any) -> Any:
            return tokenizer(text[:-1] + text[-1].replace("B", "A"), **keys)

    one = toys.encoder("polar", SHORT, words=Deaf())
    with pytest.raises(UserError, match="polar: the letters A, B, C are not 3 different tokens"):
        one.for_scoring(toys.items(1))


def test_letters_that_change_with_the_item() -> None:
    one = encoder("polar")
    one.for_scoring(toys.items(1))
    assert one.letter_ids is not None
    one.letter_ids = (one.letter_ids[1], one.letter_ids[0], one.letter_ids[2])
    with pytest.raises(UserError, match=r"the letters are tokens .* after one prompt and .* after another"):
        one.for_scoring(toys.items(1))


# A tokenizer that is larger than the embedding


def test_padding_lies_within_the_embedding() -> None:
    pad = encoder("kogemma").pad_id
    assert encoder("kogemma", vocab=pad + 1).pad_id == pad
    padding = encoder("spow12").pad_id  # among its last tokens
    one = encoder("spow12", vocab=padding)
    assert 0 <= one.pad_id < padding and one.pad_id != one.tokenizer.eos_token_id


def test_tokens_beyond_the_embedding_are_named() -> None:
    (example,) = encoder("qwen2").for_training(toys.items(1))
    highest = max(example.ids)
    encoder("qwen2", vocab=highest + 1).for_training(toys.items(1))
    one = encoder("qwen2", vocab=highest)
    token = one.tokenizer.convert_ids_to_tokens(highest)
    for encode in (one.for_training, one.for_scoring):
        with pytest.raises(UserError) as caught:
            encode(toys.items(1))
        assert f"the model embeddings for {highest}, and items hold" in str(caught.value)
        assert f"{token!r} ({highest}, item made-0000)" in str(caught.value)


# Another task


@pytest.mark.parametrize("short", ["polar", "kogemma", "qwen2"])
def test_four_letters_are_read_and_trained(short: str) -> None:
    with working_on(FOUR):
        one, items = encoder(short, parse_prompt(PROMPT, "four")), four_items(4)
        orders = FOUR.orders(8)
        trained, scored = one.for_training(items, lambda item: [(item.label or 0) ^ 1]), one.for_scoring(items, orders)
        assert one.letters == tuple("ABCD") and len(set(one.letter_ids or ())) == 4
        assert one.letter_ids is not None
        for item, example in zip(items, trained, strict=True):
            assert item.label is not None and example.order == "0123"
            letters = [ids[example.answer_start] for ids in example.sequences]
            assert letters == [one.letter_ids[item.label], one.letter_ids[item.label ^ 1]]
        assert [(example.id, example.order) for example in scored] == [
            (item.id, order) for item in items for order in orders
        ]
        for item, example in zip((item for item in items for _ in orders), scored, strict=True):
            assert example.letter == example.order.index(str(item.label))
        assert len(one.rendered_sha256) == 2


def test_every_number_of_options_has_probes() -> None:
    for count in range(2, 10):
        task = dataclasses.replace(
            FOUR, options=tuple(f"o{place}" for place in range(count)), letters=tuple("ABCDEFGHI"[:count])
        )
        with working_on(task):
            assert len(encoder("qwen2", parse_prompt(PROMPT, "any")).rendered_sha256) == 2
