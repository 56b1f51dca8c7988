import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.backends.debugging import aot_eager

from src.console.cli import UserError
from src.prompt.encode import Encoder, Example
from src.prompt.prompts import parse_prompt
from src.score import letters as room
from src.score.letters import Comparison, HowRead, LetterHead, LetterScorer, Scored, letters_only
from src.tree import branches, compiler, layouts
from src.tree import prefix as tree
from src.tree.rows import Layout
from tests import toys
from tests.conftest import OFFICIAL, ORDERS
from tests.made_task import working_on

SHORT = parse_prompt(toys.SHORT, "short")
ITEMS = toys.items(7)
KINDS = ("polar", "qwen2", "kogemma")


def encoder(short: str) -> Encoder:
    return toys.encoder(short, SHORT)


@pytest.fixture(scope="module", params=KINDS)
def short(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(short: str) -> Any:
    return toys.network(short)


def scorer(network: Any, short: str, **keys: Any) -> LetterScorer:
    one = encoder(short)
    one.for_scoring(ITEMS)
    return LetterScorer(network, one.letter_ids or (), **{"pad_id": one.pad_id, **keys})


def scored(network: Any, short: str, orders: tuple[str, ...] = ORDERS[:1], **keys: Any) -> Scored:
    """By a scorer of its own; `share` and `pad_id` are the scorer's."""
    own = {name: keys.pop(name) for name in ("share", "pad_id") if name in keys}
    return scorer(network, short, **own).score(encoder(short).for_scoring(ITEMS, orders), **keys)


def values(found: Scored) -> torch.Tensor:
    return torch.tensor([one.logits for one in found.items])


def test_the_logits_are_the_models_own(short: str, network: Any) -> None:
    one = encoder(short)
    found = scored(network, short)
    assert [scores.id for scores in found.items] == [item.id for item in ITEMS]
    for scores, example in zip(found.items, one.for_scoring(ITEMS), strict=True):
        with torch.no_grad():
            own = network(input_ids=torch.tensor([example.ids])).logits[0, -1, list(one.letter_ids or ())]
        assert scores.orders == ("012",)
        torch.testing.assert_close(torch.tensor(scores.logits[0]), own, atol=1e-4, rtol=0)
    assert values(found).std() > 0.1, "a model that says the same of everything shows nothing"


def test_the_soft_cap_behind_the_head_still_counts() -> None:
    network = toys.network("kogemma", final_logit_softcapping=0.5)
    capped = values(scored(network, "kogemma"))
    assert capped.abs().max() < 0.5
    network.config.final_logit_softcapping = None
    torch.testing.assert_close(capped, 0.5 * torch.tanh(values(scored(network, "kogemma")) / 0.5), atol=1e-4, rtol=0)


def test_scores_do_not_depend_on_the_batch(short: str, network: Any) -> None:
    alone = values(scored(network, short, batch_tokens=1))
    for batch_tokens in (250, 10**6):
        together = values(scored(network, short, batch_tokens=batch_tokens))
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    # Nor on what the rows are filled with, be it a token that the text holds.
    eos = encoder(short).tokenizer.eos_token_id
    torch.testing.assert_close(values(scored(network, short, pad_id=eos)), alone, atol=1e-4, rtol=0)


def test_batches_are_no_larger_than_asked_and_the_longest_comes_first() -> None:
    class Spy(torch.nn.Module):
        device = torch.device("cpu")
        config = SimpleNamespace(_attn_implementation="sdpa")

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(2, 10)
            self.seen: list[tuple[int, int]] = []

        def get_output_embeddings(self) -> Any:
            return self.head

        def set_output_embeddings(self, head: Any) -> None:
            self.head = head

        def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **keys: Any) -> Any:
            self.seen.append(tuple(input_ids.shape))
            # The first token names the example: its logits must come back to it.
            self.logits = input_ids[:, :1].float() * torch.ones(3)
            assert logits_to_keep.sum() == len(input_ids)
            return self

    lengths = [5, 9, 3, 9, 1, 7, 2]
    examples = [Example(f"i{n}", "012", (n,) * length, length, 0) for n, length in enumerate(lengths)]
    spy, done = Spy(), []
    found = LetterScorer(spy, (1, 2, 3), 0).score(examples, batch_tokens=20, update=done.append)
    assert spy.seen == [(2, 9), (2, 7), (3, 3)] and done == [2, 4, 7]
    assert [scores.id for scores in found.items] == [f"i{n}" for n in range(7)]
    assert [scores.logits for scores in found.items] == [((n, n, n),) for n in range(7)]
    assert found.how == HowRead("padded")


def test_six_orders_are_gathered_by_item(short: str, network: Any) -> None:
    found = scored(network, short, ORDERS)
    assert [(scores.id, scores.orders) for scores in found.items] == [(item.id, ORDERS) for item in ITEMS]
    for order in (0, 4):
        alone = values(scored(network, short, (ORDERS[order],)))
        torch.testing.assert_close(values(found)[:, order : order + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("four_options")
@pytest.mark.parametrize("kind", ["padded", "tree"])
def test_four_letters(kind: str, network: Any, short: str) -> None:
    letter_ids, examples = (40, 31, 52, 60), []
    with working_on(OFFICIAL):  # of a task with three options, so that the order's digits can follow as tokens
        three = encoder(short).for_scoring(ITEMS[:3])
    for example in three:
        for order in ("0123", "3120"):
            examples.append(dataclasses.replace(example, order=order, ids=(*example.ids, *map(int, order))))
    found = LetterScorer(network, letter_ids, 0).score(examples, kind=kind)
    assert [(scores.id, scores.orders) for scores in found.items] == [(item.id, ("0123", "3120")) for item in ITEMS[:3]]
    assert found.how.kind == kind
    with torch.no_grad():
        own = [network(input_ids=torch.tensor([one.ids])).logits[0, -1, list(letter_ids)] for one in examples]
    torch.testing.assert_close(values(found).flatten(0, 1), torch.stack(own), atol=1e-4, rtol=0)


# Rows that share prefixes


@pytest.mark.parametrize("kind", ["tree", "single"])
def test_rows_say_what_batches_say(kind: str, short: str, network: Any) -> None:
    alone = values(scored(network, short, ORDERS, batch_tokens=1, kind="padded"))
    for batch_tokens in (None, 300):
        done: list[int] = []
        found = scored(network, short, ORDERS, batch_tokens=batch_tokens, kind=kind, update=done.append)
        torch.testing.assert_close(values(found), alone, atol=1e-4, rtol=0)
        assert done == sorted(done) and done[-1] == len(ITEMS) * len(ORDERS)
        assert (len(done) == len(ITEMS) * len(ORDERS)) == (kind == "single")


def test_a_large_model_reads_trees_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    whole = room.lay_out
    monkeypatch.setattr(
        room, "lay_out", lambda prompts, terms, layout: asked.append(layout) or whole(prompts, terms, layout)
    )
    network = toys.network("qwen2")
    monkeypatch.setattr(layouts, "CPU_SURE", 10.0)  # as where a tree saves little
    usual = values(scored(network, "qwen2", ORDERS))
    assert [layout.kind for layout in asked] == ["padded"]
    monkeypatch.setattr(layouts, "CPU_SURE", 0.01)
    monkeypatch.setattr(layouts, "CPU_TREES", (layouts.CPU_TREE,))
    asked.clear()
    found = scored(network, "qwen2", ORDERS)
    # First one row, held against four of its prompts one by one.
    kinds = [("tree", None), ("padded", 1), ("padded", 1), ("tree", None)]
    assert [(layout.kind, layout.sequences) for layout in asked] == kinds
    guard = found.how.guard
    assert found.how.kind == "tree" and guard is not None and guard.agree and guard.letter_logits_gap < 1e-4
    torch.testing.assert_close(values(found), usual, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("share", "kind"), [("auto", "padded"), ("on", "tree"), ("off", "padded")])
def test_a_recipe_decides_whether_prompts_share(share: str, kind: str) -> None:
    how = scored(toys.network("qwen2"), "qwen2", share=share).how
    assert how.kind == kind and (how.guard is None) == (kind == "padded")


def test_a_record_keeps_how_prompts_were_read() -> None:
    assert HowRead("padded").as_record() == {"kind": "padded", "guard": None}
    assert HowRead("padded", obstacle="no").as_record() == {"kind": "padded", "guard": None, "obstacle": "no"}
    compared = {"letter_logits_gap": 0.5, "letter_logits_allowed": 1.0, "agree": True}
    found = HowRead("tree", Comparison(0.5, 1.0, True)).as_record()
    assert found == {"kind": "tree", "guard": compared} and list(found["guard"]) == list(compared)


def test_nothing_hangs_on_the_model() -> None:
    network = toys.network("qwen2")
    before = set(vars(network))
    scored(network, "qwen2", share="on")
    assert set(vars(network)) == before


def test_a_model_that_cannot_branch_reads_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = toys.network("qwen2")
    right = values(scored(network, "qwen2"))
    monkeypatch.setattr(type(network), "_is_stateful", True)
    one = scorer(network, "qwen2", share="on")
    for _ in range(2):
        found = one.score(encoder("qwen2").for_scoring(ITEMS))
        torch.testing.assert_close(values(found), right)
        assert found.how == HowRead("padded", None, "qwen2 carries a state along the sequence, which cannot branch")
    assert capsys.readouterr().out.count("no prefixes are shared: qwen2 carries a state") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "late",
    [pytest.param(False, id="at once", marks=pytest.mark.thorough), pytest.param(True, id="after the comparison")],
)
def test_compiling_that_fails_while_prompts_are_read(
    late: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "_reasons", [])
    network, done = toys.network("qwen2"), list[int]()
    right = values(scored(network, "qwen2", ORDERS))
    failing, trees, lay_out = [False], list[Layout](), room.lay_out

    def backend(graph: Any, inputs: Any) -> Any:
        if failing[0]:
            raise OSError("Read-only file system")
        return aot_eager(graph, inputs)

    def compile_layer(layer: Any, **keys: Any) -> None:
        layer._compiled_call_impl = torch.compile(layer._call_impl, backend=backend, **keys)

    def noted(prompts: Any, terms: Any, layout: Layout) -> Any:
        if layout.kind == "tree":
            trees.append(layout)
            if len(trees) == 1 + late:  # the first is compared
                torch._dynamo.reset()
                failing[0] = True
        return lay_out(prompts, terms, layout)

    monkeypatch.setattr(room, "lay_out", noted)
    with toys.compiled_on_a_cpu(monkeypatch) as patch:
        patch.setattr(torch.nn.Module, "compile", compile_layer)
        found = scored(network, "qwen2", ORDERS, update=done.append)
        assert network.config._attn_implementation == "sdpa"
        assert not any(layer._compiled_call_impl for layer in network.model.layers)
    assert failing == [True]
    torch.testing.assert_close(values(found), right, atol=1e-4, rtol=0)
    why = "compiling failed (OSError: Read-only file system)"
    assert found.how == HowRead("padded", None, why)
    assert done[-1] == len(ITEMS) * len(ORDERS)
    assert capsys.readouterr().out.count(f"nothing is compiled and no prefixes are shared: {why}. It goes on") == 1


def test_a_machine_that_cannot_compile_reads_side_by_side_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "_reasons", [])
    network = toys.network("qwen2")
    right = values(scored(network, "qwen2"))
    monkeypatch.setattr(compiler, "obstacle", lambda device: "there is no C compiler")
    with torch.compiler.set_stance("default"):
        room.announce([encoder("qwen2").for_scoring(ITEMS)], network.device)
        said = capsys.readouterr().out
        assert "there is no C compiler. It goes on with the standard layers, about " in said and said.count("\n") == 1
        found = scored(network, "qwen2", share="on")
    torch.testing.assert_close(values(found), right)
    assert found.how == HowRead("padded", None, "there is no C compiler")
    assert capsys.readouterr().out == ""


def test_rows_without_numbers_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    network, whole = toys.network("qwen2"), room.logits_at
    right = values(scored(network, "qwen2"))
    monkeypatch.setattr(room, "logits_at", lambda model, row: whole(model, row) * (torch.nan if "end" in row else 1))
    found = scored(network, "qwen2", kind="tree")
    torch.testing.assert_close(values(found), right, atol=1e-4, rtol=0)
    assert found.how.kind == "padded" and found.how.guard is not None and not found.how.guard.agree


def test_a_scorer_compares_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, lay_out = list[list[Any]](), room.lay_out

    def noted(prompts: Any, terms: Any, layout: Layout) -> Any:
        if layout.sequences == 1:  # prompts one by one
            compared.append(list(prompts))
        return lay_out(prompts, terms, layout)

    monkeypatch.setattr(room, "lay_out", noted)
    one, examples = scorer(toys.network("qwen2"), "qwen2"), encoder("qwen2").for_scoring(ITEMS)
    first, second = (one.score(examples, kind="tree", batch_tokens=1024).how for _ in range(2))
    assert first == second and first.guard is not None
    # As they are, and with rounding. Two of each of two dialogues.
    prompts, again = compared
    assert prompts == again and len(prompts) == len(set(prompts)) == 4
    dialogues = [example.dialogue for prompt in prompts for example in examples if example.ids == prompt]
    assert sorted(map(dialogues.count, set(dialogues))) == [2, 2]
    scored(toys.network("qwen2"), "qwen2", kind="single")
    assert len(compared) == 4


def test_rows_that_read_something_else_are_not_used(
    short: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = toys.network(short)
    right = values(scored(network, short, ORDERS))
    assert "WARNING" not in capsys.readouterr().out
    visible = tree.visible

    def one_key_too_many(depth: torch.Tensor, end: torch.Tensor, window: int | None = None) -> torch.Tensor:
        return visible(depth, end, window) | torch.eye(len(end), dtype=torch.bool).roll(1, 0).tril()

    with monkeypatch.context() as patch:
        patch.setattr(branches, "prepare", lambda model: False)  # blocks leave out more than a mask hides
        patch.setattr(tree, "visible", one_key_too_many)
        one, examples = scorer(network, short), encoder(short).for_scoring(ITEMS, ORDERS)
        for _ in range(2):  # and is not trusted the next time
            done: list[int] = []
            found = one.score(examples, kind="tree", update=done.append)
            torch.testing.assert_close(values(found), right, atol=1e-4, rtol=0)
            assert found.how.kind == "padded" and found.how.guard is not None and not found.how.guard.agree
            said = capsys.readouterr().out
            assert "WARNING: prompts that share their beginnings are read differently here, letter logits by " in said
            assert "reading all one by one" in said
            assert done[-1] == len(ITEMS) * len(ORDERS)
    torch.testing.assert_close(values(one.score(examples, kind="tree")), right, atol=1e-4, rtol=0)
    assert capsys.readouterr().out == ""


def test_the_read_out_is_in_fp32() -> None:
    head = torch.nn.Linear(64, 10, bias=True).bfloat16()
    read = LetterHead(head, (4, 7, 2))
    hidden = torch.randn(5, 64).bfloat16()
    assert read(hidden).dtype == read.weight.dtype == torch.float32
    expected = hidden.double() @ head.weight.double().T + head.bias.double()
    torch.testing.assert_close(read(hidden).double(), expected[:, [4, 7, 2]], atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(read(hidden).double(), expected[:, [4, 7, 2]], atol=1e-5, rtol=0)


def test_the_head_and_the_mode_come_back(network: Any, short: str) -> None:
    head = network.get_output_embeddings()
    network.train()
    scored(network, short)
    assert network.get_output_embeddings() is head and network.training
    with pytest.raises(RuntimeError, match="on purpose"), letters_only(network, (1, 2, 3)):
        raise RuntimeError("on purpose")
    assert network.get_output_embeddings() is head
    with pytest.raises(IndexError):
        scored(network, short, update=lambda done: [][0])
    assert network.get_output_embeddings() is head and network.training
    network.eval()


def test_an_adapter_is_scored_on_its_base(short: str) -> None:
    network = toys.network(short)
    bare = values(scored(network, short))
    adapted = get_peft_model(network, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with_adapter = values(scored(adapted, short))
    assert (with_adapter - bare).abs().max() > 0.01
    with adapted.disable_adapter():
        torch.testing.assert_close(values(scored(adapted, short)), bare)
    merged = values(scored(copy.deepcopy(adapted).merge_and_unload(), short))
    torch.testing.assert_close(merged, with_adapter, atol=1e-4, rtol=0)


def test_an_adapter_on_the_head_counts() -> None:
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    adapted = get_peft_model(toys.network("polar"), config).eval()
    one = encoder("polar")
    (example, *_) = one.for_scoring(ITEMS)
    with torch.no_grad():
        own = adapted(input_ids=torch.tensor([example.ids])).logits[0, -1, list(one.letter_ids or ())]
    torch.testing.assert_close(values(scored(adapted, "polar"))[0, 0], own, atol=1e-4, rtol=0)


def test_logits_that_are_no_numbers() -> None:
    network = toys.network("qwen2")
    with torch.no_grad():
        network.model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"made-0000: .*3 finite numbers .*diverged"):
        scored(network, "qwen2")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_scores_on_a_gpu_do_not_depend_on_the_batch(short: str) -> None:
    network = toys.network(short).to("cuda", torch.bfloat16)
    alone = values(scored(network, short, ORDERS, batch_tokens=1))
    together = values(scored(network, short, ORDERS))
    # bf16 activations: a last bit here and there, against logits that differ by tenths.
    torch.testing.assert_close(together, alone, atol=0.05, rtol=0)
    torch.testing.assert_close(values(scored(network, short, ORDERS)), together, atol=0, rtol=0)
    assert len(set(alone.flatten().tolist())) > 0.9 * alone.numel(), "logits in bf16 would coincide"
