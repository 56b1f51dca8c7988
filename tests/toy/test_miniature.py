"""The eight toy backbones: each is what its family is, loads as the real one, and starts where it learns quickly."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from run.make_miniature import make, with_parents
from src.model.recipe_files import load_recipe
from src.toy import corpus, miniature
from src.toy.miniature_models import make_model
from src.toy.miniature_tokenizers import make_tokenizer, texts_of, tokenizer_texts
from src.toy.miniature_training import LEAD, ChatForm, encode_question, hidden_states, make_batch

NAMES = ("bllossom", "polar", "kogemma", "solarko", "eeve", "qwen2", "qwen2it", "spow12")
USER = [{"role": "user", "content": "probe-user"}]
SYSTEM = [{"role": "system", "content": "probe-system"}, *USER]


def small_values() -> dict[str, Any]:
    values = miniature.load_values()
    values["tokenizer"]["dialogues"] = 60
    values["pretraining"] |= {"at_most": 2, "dialogues_per_step": 1}
    values["child"]["at_most"] = 2
    for spec in values["backbones"].values():
        spec.pop("pretraining", None)
    return values


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """(model, tokenizer) of each backbone without pre-training, loaded from its folder."""
    values, folder = small_values(), tmp_path_factory.mktemp("backbones")
    values["pretraining"]["at_most"] = values["child"]["at_most"] = 0
    texts = tokenizer_texts(values)
    for short in with_parents(values["backbones"], list(values["backbones"])):
        make(short, folder, values, texts)
    return {
        short: (AutoModelForCausalLM.from_pretrained(folder / short), AutoTokenizer.from_pretrained(folder / short))
        for short in values["backbones"]
    }


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def chat(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_architectures(made: dict[str, tuple[Any, Any]]) -> None:
    assert tuple(made) == NAMES
    configs = {short: network.config for short, (network, _) in made.items()}
    assert {short: config.model_type for short, config in configs.items()} == {
        **dict.fromkeys(("bllossom", "polar", "solarko", "eeve"), "llama"),
        **dict.fromkeys(("qwen2", "qwen2it", "spow12"), "qwen2"),
        "kogemma": "gemma2",
    }
    for short, config in configs.items():
        assert config.num_key_value_heads < config.num_attention_heads, short
        assert config.tie_word_embeddings == (short == "kogemma"), short
    assert configs["bllossom"].rope_parameters["rope_theta"] == 500000
    assert configs["polar"].rope_parameters["rope_theta"] == 10000
    assert configs["qwen2"].rope_parameters["rope_theta"] == 1000000
    layers = {short: config.num_hidden_layers for short, config in configs.items()}
    assert all(layers["polar"] > count for short, count in layers.items() if short != "polar")
    sizes = {short: len(tokenizer) for short, (_, tokenizer) in made.items()}
    assert sizes["polar"] < sizes["eeve"] < sizes["solarko"] < sizes["kogemma"]
    assert made["polar"][0].dtype == torch.float16
    assert made["qwen2"][0].dtype == torch.bfloat16


def test_gemma2(made: dict[str, tuple[Any, Any]]) -> None:
    config = made["kogemma"][0].config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert config.sliding_window < 300
    assert config.query_pre_attn_scalar == config.head_dim != config.hidden_size // config.num_attention_heads


def test_biases(made: dict[str, tuple[Any, Any]]) -> None:
    for short, (network, _) in made.items():
        biased = {name.split(".")[-2] for name, _ in network.named_parameters() if name.endswith("bias")}
        assert biased == ({"q_proj", "k_proj", "v_proj"} if short in ("qwen2", "qwen2it", "spow12") else set())


def test_linear_layers_suit_nf4(made: dict[str, tuple[Any, Any]]) -> None:
    for network, _ in made.values():
        linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
        assert linear and all(module.in_features % 64 == 0 for module in linear)


def test_special_tokens(made: dict[str, tuple[Any, Any]]) -> None:
    found = {
        short: (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) for short, (_, tokenizer) in made.items()
    }
    assert found == {
        "bllossom": ("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"),
        "polar": ("<s>", "</s>", "</s>"),
        "kogemma": ("<bos>", "<eos>", "<pad>"),
        "solarko": ("<s>", "</s>", None),
        "eeve": ("<s>", "<|im_end|>", "</s>"),
        "qwen2": (None, "<|endoftext|>", "<|endoftext|>"),
        "qwen2it": (None, "<|im_end|>", "<|endoftext|>"),
        "spow12": ("<|BOS|>", "<|endoftext|>", "<|PAD|>"),
    }


def test_who_adds_bos_and_eos(made: dict[str, tuple[Any, Any]]) -> None:
    for short, (_, tokenizer) in made.items():
        ids = tokenizer("안녕하세요")["input_ids"]
        has_bos = short not in ("qwen2", "qwen2it", "spow12")
        assert (ids[0] == tokenizer.bos_token_id) == has_bos, short
        assert (ids[-1] == tokenizer.eos_token_id) == (short == "polar"), short
        assert tokenizer.decode(ids, skip_special_tokens=True) == "안녕하세요", short
    assert made["polar"][1].padding_side == "left"


def test_letters(made: dict[str, tuple[Any, Any]]) -> None:
    """Alone, a letter is `▁A` in the SOLAR family; behind a line break it is `A` everywhere, with a dot of its own."""
    for short, (_, tokenizer) in made.items():
        alone = tokenizer.convert_ids_to_tokens(tokenizer("A", add_special_tokens=False)["input_ids"])
        assert alone == (["▁A"] if short in ("polar", "solarko", "eeve") else ["A"]), short
        behind = tokenizer.convert_ids_to_tokens(tokenizer("\nA. 답", add_special_tokens=False)["input_ids"])
        start = behind.index("A")
        assert behind[start + 1] == ".", (short, behind)


def test_byte_fallback_and_round_trip(made: dict[str, tuple[Any, Any]]) -> None:
    text = "화자1: 뷁 12345 ☃\n\n화자2:  두 칸"
    for short, (_, tokenizer) in made.items():
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text, short
    pieces = made["solarko"][1].tokenize("☃\n")
    assert pieces[-4:] == ["<0xE2>", "<0x98>", "<0x83>", "<0x0A>"]


def test_chat_templates(made: dict[str, tuple[Any, Any]]) -> None:
    tokenizers = {short: tokenizer for short, (_, tokenizer) in made.items()}
    assert [short for short in NAMES if tokenizers[short].chat_template is None] == ["polar", "solarko"]
    with pytest.raises(ValueError, match="chat_template"):
        chat(tokenizers["polar"], USER)
    with pytest.raises(jinja2.TemplateError, match="System role"):
        chat(tokenizers["eeve"], SYSTEM)
    assert chat(tokenizers["eeve"], USER).endswith("Human: probe-user\nAssistant:\n")
    assert chat(tokenizers["kogemma"], SYSTEM) == (
        "<bos>probe-system<start_of_turn>user\nprobe-user<end_of_turn>\n<start_of_turn>model\n"
    )
    assert "You are a helpful assistant." in chat(tokenizers["qwen2it"], USER)
    assert "You are a helpful assistant." not in chat(tokenizers["qwen2it"], SYSTEM)
    bllossom = tokenizers["bllossom"]
    twice = bllossom(chat(bllossom, SYSTEM))["input_ids"]
    assert twice[:2] == [bllossom.bos_token_id] * 2


def test_equal_arguments_equal_weights() -> None:
    values = small_values()
    texts = tokenizer_texts(values)
    one, two = (miniature.make_backbone("bllossom", values, texts)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    values["pretraining"]["at_most"] = 0
    untrained = miniature.make_backbone("bllossom", values, texts)[0].state_dict()
    assert not torch.equal(untrained["lm_head.weight"], one["lm_head.weight"])


@pytest.mark.parametrize("short", ["bllossom", "kogemma", "qwen2"])
def test_heads_start_on_near_and_on_equal_tokens(short: str) -> None:
    """Odd groups look at an equal token far back more than at themselves; even groups look one token back."""
    values = small_values()
    torch.manual_seed(0)
    tokenizer = make_tokenizer(values["backbones"][short]["tokenizer"], tokenizer_texts(values))
    network = make_model(values["backbones"][short]["model"], tokenizer, values["initialisation"])
    network.set_attn_implementation("eager")
    ids = torch.randperm(1000)[None, :200] + 300
    ids[0, 180] = ids[0, 40]
    with torch.no_grad():
        attention = network(ids, output_attentions=True).attentions[1 if short == "kogemma" else 0][0]
    heads = network.config.num_attention_heads // network.config.num_key_value_heads
    near, equal = attention[0], attention[heads]
    back = torch.arange(100, 200)[:, None] - torch.arange(200)
    assert (near[100:] * ((back >= 0) & (back <= 3))).sum(1).mean() > 0.7
    assert near[100:].diagonal(99).mean() > 3 * near[100:].diagonal(96).mean()
    assert equal[180, 40] > 10 * equal[180, 60]
    assert equal[180, 40] > equal[180, 180]


def test_child_starts_as_its_parent() -> None:
    """Same weights and same tokens give the same logits; repeated layers change them little."""
    values = small_values()
    values["pretraining"]["at_most"] = values["child"]["at_most"] = 0
    del values["backbones"]["solarko"]["parent"]
    values["backbones"]["polar"]["tokenizer"] = values["backbones"]["solarko"]["tokenizer"]
    texts = tokenizer_texts(values)
    parent, tokenizer, accuracy = miniature.make_backbone("solarko", values, texts)
    assert accuracy is None
    child, *_ = miniature.make_backbone("polar", values, texts, (parent, tokenizer))
    ids = torch.arange(300, 340)[None]
    with torch.no_grad():
        one, two = (network(ids).logits[..., 300:] for network in (parent, child))  # in front: bytes that have a letter
    assert (one - two).norm() < 0.1 * one.norm()


def sizes_of_branches(network: Any, ids: torch.Tensor) -> list[list[float]]:
    """Root mean squares of what attention and MLP of each layer add."""
    sizes: list[list[float]] = [[] for _ in network.model.layers]

    def note(number: int, out: torch.Tensor) -> None:
        sizes[number].append(out.square().mean().sqrt().item())

    hooks = [
        part.register_forward_hook(lambda module, inputs, out, number=number: note(number, out))
        for number, layer in enumerate(network.model.layers)
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj)
    ]
    with torch.no_grad():
        network.model(ids)
    for hook in hooks:
        hook.remove()
    return sizes


@pytest.mark.parametrize(("short", "share"), [("qwen2", 0.001), ("solarko", 0.35), ("kogemma", 0.7)])
def test_child_of_another_kind_starts_like_its_parent(
    short: str, share: float, made: dict[str, tuple[Any, Any]]
) -> None:
    """A child reads a text as its parent does: exactly with the same split and rotary base, roughly with others."""
    values = small_values()
    values["child"]["at_most"] = 0
    parent, tokenizer = made["bllossom"][0].float(), made["bllossom"][1]
    values["backbones"]["qwen2"]["model"]["rope_theta"] = values["backbones"]["bllossom"]["model"]["rope_theta"]
    text = torch.randint(300, 3000, (1, 200), generator=torch.Generator().manual_seed(0))
    values["initialisation"]["branches"] = sizes_of_branches(parent, text)
    child, words, _ = miniature.make_backbone(short, values, tokenizer_texts(values), (parent, tokenizer))
    kinds = [values["backbones"][name]["tokenizer"]["kind"] for name in ("bllossom", short)]
    theirs, mine = (texts_of(*one) for one in zip((tokenizer, words), kinds, strict=True))
    common = [text for text in sorted(theirs) if text in mine and len(text) > 1][:120]
    with torch.no_grad():
        one = parent.model(torch.tensor([[theirs[text] for text in common]])).last_hidden_state
        two = child.model(torch.tensor([[mine[text] for text in common]])).last_hidden_state
    assert len(common) == 120
    assert (one - two).norm() < share * one.norm()


def test_child_has_its_parents_biases(made: dict[str, tuple[Any, Any]]) -> None:
    values = small_values()
    values["child"]["at_most"] = 0
    parent, tokenizer = copy.deepcopy(made["qwen2"][0]).float(), made["qwen2"][1]
    biases = [name for name, _ in parent.named_parameters() if name.endswith("bias")]
    for name in biases:
        torch.nn.init.normal_(parent.get_parameter(name))
    child, *_ = miniature.make_backbone("qwen2it", values, tokenizer_texts(values), (parent, tokenizer))
    assert biases and all(torch.equal(parent.get_parameter(name), child.get_parameter(name)) for name in biases)


def test_tokens_of_equal_text(made: dict[str, tuple[Any, Any]]) -> None:
    """A text is found under its own token, not under that of its byte; first and last tokens count as equal."""
    pieces, whole = made["solarko"][1], made["bllossom"][1]
    theirs, mine = texts_of(pieces, "sentencepiece"), texts_of(whole, "bytes-llama3")
    assert pieces.convert_ids_to_tokens([theirs["A"], theirs["\n"], theirs[" A"]]) == ["A", "<0x0A>", "▁A"]
    assert whole.convert_ids_to_tokens([mine["A"], mine["\n"]]) == ["A", "Ċ"]
    assert (theirs["<first>"], mine["<last>"]) == (pieces.bos_token_id, whole.eos_token_id)
    assert not any("\ufffd" in text for text in mine)


@pytest.mark.parametrize("short", ["kogemma", "qwen2"])
def test_questions_side_by_side_are_questions_alone(short: str, made: dict[str, tuple[Any, Any]]) -> None:
    """The last states of prompts that share a dialogue's tokens are those the model has of each prompt by itself."""
    network, tokenizer = made[short][0].float(), made[short][1]
    form = ChatForm(tokenizer, tokenizer.chat_template)
    items = corpus.make_dialogues(1, 5)
    batch = make_batch([items], form)
    assert len(items) == len(corpus.load_words().categories) == len(batch.letters[0])
    assert batch.ids.shape[1] > network.config.sliding_window if short == "kogemma" else True
    network.eval()
    with torch.no_grad():
        together = hidden_states(network, batch)[0, batch.letters[1]]
        for item, state in zip(items, together, strict=True):
            question = encode_question(item, form)
            alone = network.model(torch.tensor([question.ids[: question.answer_start]])).last_hidden_state[0, -1]
            torch.testing.assert_close(state, alone, rtol=1e-3, atol=1e-3)


def test_marks_of_a_batch(made: dict[str, tuple[Any, Any]]) -> None:
    """Each question is marked with its right letter, behind the lead that runs go without, and one of its three options
    as right, from where it can be told from the others.
    """
    tokenizer = made["qwen2"][1]
    form = ChatForm(tokenizer, tokenizer.chat_template)
    items = corpus.make_dialogues(2, 5)
    batch = make_batch([items[:5], items[5:]], form)
    right = [int(item["output"][-1]) - 1 for item in items]
    assert batch.letters[2].tolist() == form.letter_ids[right].tolist()
    before = tokenizer.decode(batch.ids[0, : batch.letters[1][0] + 1])
    assert before.endswith(f"assistant\n{LEAD}")
    rows, places, truths = batch.options
    said = tokenizer.decode(batch.ids[rows, places][truths == 1])
    assert all(item["input"][item["output"]].split()[-1] in said for item in items)
    assert 0.2 < truths.mean() < 0.5
    assert 0.3 < batch.tokens[2].mean() < 1


def test_recipes(tmp_path: Path) -> None:
    texts = miniature.recipes(miniature.load_values(), Path("somewhere/backbones"))
    assert list(texts) == [f"mini-{short}" for short in NAMES]
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        short = name.removeprefix("mini-")
        recipe, published = (
            load_recipe(tmp_path / f"{name}.yaml"),
            load_recipe(f"resource/recipes/published/{short}.yaml"),
        )
        assert recipe.model_id == f"somewhere/backbones/{short}"
        kept = ("backbone", "method", "prompt", "lora_r", "lora_alpha", "lora_dropout", "objective", "chat_template")
        assert all(getattr(recipe, key) == getattr(published, key) for key in kept)


def test_parents_come_first() -> None:
    backbones = miniature.load_values()["backbones"]
    assert with_parents(backbones, ["spow12"]) == ["bllossom", "qwen2", "qwen2it", "spow12"]
    names = with_parents(backbones, list(reversed(backbones)))
    assert sorted(names) == sorted(NAMES)
    for place, name in enumerate(names):
        assert backbones[name].get("parent") in [None, *names[:place]]
