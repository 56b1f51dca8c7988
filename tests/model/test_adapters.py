"""Our LoRA arithmetic against peft's own."""

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch._dynamo.backends.debugging import aot_eager
from torch.utils.checkpoint import checkpoint

from src.model import adapters
from src.model.adapters import patch_lora_forward
from src.model.dropout import replace_dropout
from tests import toys  # one thread

INPUTS, OUTPUTS = 64, 48


class Small(torch.nn.Module):
    """One linear layer with a bias and one without, and what should stay as it is."""

    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        kind: Any = Linear4bit if packed else torch.nn.Linear
        more = {"quant_type": "nf4", "compute_dtype": torch.float32} if packed else {}
        self.first = kind(INPUTS, OUTPUTS, bias=True, **more)
        self.second = kind(OUTPUTS, INPUTS, bias=False, **more)
        self.head = torch.nn.Linear(INPUTS, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Block(torch.nn.Module):
    """Two groups of linear layers with one input each, as in a decoder layer, and layers with inputs of their own."""

    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        kind: Any = Linear4bit if packed else torch.nn.Linear
        more = {"quant_type": "nf4", "compute_dtype": torch.float32} if packed else {}
        widths = {"q_proj": 48, "k_proj": 16, "v_proj": 16, "gate_proj": 32, "up_proj": 32}
        for name, width in widths.items():
            setattr(self, name, kind(INPUTS, width, bias=name == "k_proj", **more))
        self.first, self.second = kind(48, INPUTS, bias=False, **more), kind(32, INPUTS, bias=False, **more)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        x = x + self.first(torch.tanh(q) * torch.cat([k, v, k - v], -1))
        return x + self.second(torch.tanh(self.gate_proj(x)) * self.up_proj(x))


def adapted(packed: bool = False, dtype: torch.dtype = torch.float32, kind: Any = Small, **values: Any) -> Any:
    """`kind` with adapters that are not zero, in fp32 whatever the base is; peft's forward passes."""
    torch.manual_seed(0)
    base = kind(packed).to(dtype)
    if packed:
        base = base.to("cpu")  # which packs
        base.is_loaded_in_4bit = True  # as transformers tells peft
        for layer in base.modules():
            if isinstance(layer, Linear4bit):
                vars(layer)["support_avx512bf16_for_cpu"] = False
    targets = ["first", "second", *itertools.chain(*adapters.TOGETHER)]
    settings = {"r": 6, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": targets, **values}
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.3
    return model


def pair(**values: Any) -> tuple[Any, Any]:
    """(peft's, ours), equal but for the forward passes."""
    theirs, ours = adapted(**values), adapted(**values)
    patch_lora_forward(ours)
    assert len(changed(ours)) == (7 if values.get("kind") is Block else 2) and not changed(theirs)
    return theirs, ours


def changed(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, INPUTS, generator=torch.Generator().manual_seed(7)).to(dtype)


def gradients(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the adapters and of the input, under a loss that weighs the outputs differently."""
    x = x.clone().requires_grad_()
    out = model(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {**found, "input": x.grad}


def assert_equal(theirs: Any, ours: Any, x: torch.Tensor, rtol: float = 1e-5, seed: int = 3) -> None:
    """Outputs and gradients, to `rtol` of the largest."""
    found = []
    for model in (theirs, ours):
        torch.manual_seed(seed)
        found.append({"output": model(x).detach(), **gradients(model, x)})
    assert found[0].keys() == found[1].keys()
    assert (
        sum("lora_A" in name for name in found[0]) == sum("lora_B" in name for name in found[0]) == len(changed(ours))
    )
    for name, expected in found[0].items():
        value = found[1][name]
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape), name
        assert expected.abs().max() > 0.01, f"{name}: zeros show nothing"
        assert (value - expected).abs().max() <= rtol * expected.abs().max(), name


@pytest.fixture(params=["sum of results", "added as computed"])
def summed(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether products are added as on a GPU."""
    if request.param == "added as computed":
        monkeypatch.setattr(adapters, "SUMMED_ON", ("cpu",))
        return True
    return False


@pytest.mark.usefixtures("summed")
@pytest.mark.parametrize("packed", [False, True], ids=["fp32", "nf4"])
@pytest.mark.parametrize("r", [1, 6, 8])
def test_the_same_function_and_gradients(packed: bool, r: int) -> None:
    theirs, ours = pair(packed=packed, r=r)
    if packed:
        assert isinstance(ours.base_model.model.first, lora.Linear4bit)
        assert ours.base_model.model.first.get_base_layer().weight.dtype == torch.uint8
    assert_equal(theirs, ours, inputs())
    with torch.no_grad(), theirs.disable_adapter():
        assert (theirs(inputs()) - ours(inputs())).abs().max() > 0.1, "adapters that say nothing show nothing"


@pytest.mark.usefixtures("summed")
def test_dropout_draws_what_pefts_draws() -> None:
    theirs, ours = pair(lora_dropout=0.4)
    replace_dropout([module for module in theirs.modules() if hasattr(module, "lora_dropout")])
    assert_equal(theirs.train(), ours.train(), inputs())
    torch.manual_seed(3)
    one = ours(inputs())
    torch.manual_seed(4)
    assert (ours(inputs()) - one).abs().max() > 0.1
    assert_equal(theirs.eval(), ours.eval(), inputs())
    assert torch.equal(ours(inputs()), ours(inputs()))


@pytest.mark.usefixtures("summed")
def test_fp32_adapters_on_a_bf16_base_need_no_autocast() -> None:
    theirs, ours = pair(dtype=torch.bfloat16)
    assert {one.dtype for name, one in ours.named_parameters() if "lora_" in name} == {torch.float32}
    exact, _ = pair(dtype=torch.bfloat16)
    exact = exact.to(torch.float32)  # the same numbers
    x = inputs(torch.bfloat16)
    with torch.no_grad():
        expected = exact(x.float())
        scale = expected.abs().max()
        out = ours(x)
        assert out.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            cast = theirs(x)
        assert (out - expected).abs().max() <= 0.02 * scale and (cast - expected).abs().max() <= 0.02 * scale
    with torch.autocast("cpu", torch.bfloat16):
        wanted = gradients(theirs, x)
    found, true = gradients(ours, x), gradients(exact, x.float())
    assert found.keys() == wanted.keys() == true.keys()
    for name, value in found.items():
        assert value.dtype == (torch.bfloat16 if name == "input" else torch.float32)
        for other in (wanted[name], true[name]):
            assert (value - other).norm() <= 0.03 * other.norm(), name


def test_in_bf16_only_the_adapters_product_is_added() -> None:
    # Against rounding the update away: a scale that is no power of two, folded into B in fp32.
    _, ours = pair(dtype=torch.bfloat16, lora_alpha=7)
    x = inputs(torch.bfloat16)
    layer = ours.base_model.model.first
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        base, out = layer.get_base_layer()(x), layer(x)
        expected = base + (x @ down.bfloat16().T) @ (up * (7 / 6)).bfloat16().T
    torch.testing.assert_close(out, expected, atol=0, rtol=0)


@pytest.fixture
def aligned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The rank is filled up as on a GPU; notes the shapes of what the adapters are multiplied by."""
    shapes: list[tuple[int, ...]] = []
    linear = torch.nn.functional.linear

    def noted(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(tuple(weight.shape))
        return linear(x, weight, *rest)

    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    yield shapes


@pytest.mark.parametrize(("r", "padded"), [(1, 8), (6, 8), (8, 8), (9, 16)])
def test_an_aligned_rank_changes_nothing(r: int, padded: int, aligned: list[tuple[int, ...]]) -> None:
    theirs, ours = pair(r=r)
    with torch.no_grad():
        aligned.clear()
        ours.base_model.model.first(inputs())
    assert aligned == [(padded, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS, padded)]
    assert_equal(theirs, ours, inputs())
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            assert r in parameter.shape and (parameter.grad is None or parameter.grad.shape == parameter.shape)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Notes how many adapters are multiplied by an input at a time."""
    counts: list[int] = []
    linear = torch.nn.functional.linear

    def noted(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        if x.shape[-1] in (INPUTS, 48, 32) and len(weight) in (6, 12, 18):
            counts.append(len(weight) // 6)
        return linear(x, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    yield counts


@pytest.mark.parametrize("packed", [False, True], ids=["fp32", "nf4"])
@pytest.mark.usefixtures("summed")
def test_layers_with_one_input_share_a_product(packed: bool, products: list[int]) -> None:
    theirs, ours = pair(packed=packed, kind=Block)
    products.clear()
    with torch.no_grad():
        ours(inputs())
    assert products == [3, 1, 2, 1]
    assert_equal(theirs, ours, inputs(), rtol=1e-4)
    assert all(group.x is None and not group.parts for group in groups(ours)), "nothing is kept"


@pytest.mark.parametrize("packed", [False, True], ids=["fp32", "nf4"])
def test_only_weights_that_are_not_packed_are_added_as_computed(
    packed: bool, summed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = pair(packed=packed, kind=Block)
    called: list[int] = []
    operator = adapters.adapted

    def noted(x: torch.Tensor, weights: list[torch.Tensor], *rest: Any) -> list[torch.Tensor]:
        called.append(len(weights))
        return operator(x, weights, *rest)

    monkeypatch.setattr(adapters, "adapted", noted)
    ours(inputs())
    assert called == ([3, 1, 2, 1] if summed and not packed else [])


@pytest.mark.parametrize("several", [False, True])
def test_the_operators_keep_torchs_contracts(several: bool) -> None:
    made = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    outputs, ranks = ([4, 3], [2, 3]) if several else ([4], [2])
    weights = [drawn(out, 6) for out in outputs]
    ups = [drawn(*shape).requires_grad_() for shape in zip(outputs, ranks, strict=True)]
    x, downs = drawn(2, 5, 6).requires_grad_(), drawn(sum(ranks), 6).requires_grad_()
    for biases in ([], [drawn(out) for out in outputs]):
        torch.library.opcheck(adapters.adapted, (x, weights, downs, ups, biases))
    product = drawn(2, 5, ranks[0]).requires_grad_()
    torch.library.opcheck(adapters.product_sum, (x, weights[0], product, ups[0], drawn(4)))
    gradients = [drawn(2, 5, out) for out in outputs]
    torch.library.opcheck(adapters.input_gradient, (gradients, weights, drawn(2, 5, sum(ranks)), drawn(sum(ranks), 6)))


def groups(model: Any) -> list[adapters.Group]:
    owners = [vars(module)["forward"].__self__ for module in model.modules() if "forward" in vars(module)]
    return [owner.group for owner in owners if isinstance(owner, adapters.Member)]


@pytest.mark.usefixtures("summed")
def test_each_adapter_has_its_own_dropout(products: list[int]) -> None:
    theirs, ours = pair(kind=Block, lora_dropout=0.4)
    replace_dropout([module for module in theirs.modules() if hasattr(module, "lora_dropout")])
    assert_equal(theirs.train(), ours.train(), inputs())
    products.clear()
    ours(inputs())
    assert products == [1] * 7
    assert_equal(theirs.eval(), ours.eval(), inputs())
    products.clear()
    ours(inputs())
    assert products == [3, 1, 2, 1]


@pytest.mark.usefixtures("aligned", "summed")
def test_joined_products_on_the_grid() -> None:
    theirs, ours = pair(kind=Block)
    assert_equal(theirs, ours, inputs(), rtol=3e-5)


def test_a_copy_of_a_group_has_its_own_layers() -> None:
    theirs, ours = pair(kind=Block)
    copied = copy.deepcopy(ours)
    for parameter in ours.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(copied(inputs()), theirs(inputs()), atol=1e-4, rtol=1e-4)


def test_a_group_whose_layers_have_different_inputs_after_all() -> None:
    theirs, ours = pair(kind=Block)
    one, other = inputs(), inputs() + 1
    for model in (theirs, ours):
        block = model.base_model.model
        block.forward = lambda x, block=block: block.q_proj(x).sum() + block.k_proj(x + 1).sum() + block.v_proj(x).sum()
    with torch.no_grad():
        for x in (one, other):
            torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("what", ["disable_adapter", "merged"])
def test_a_group_without_its_adapters(what: str) -> None:
    theirs, ours = pair(kind=Block)
    with torch.no_grad():
        if what == "merged":
            for model in (theirs, ours):
                model.base_model.model.k_proj.merge()
            torch.testing.assert_close(ours(inputs()), theirs(inputs()), atol=3e-5, rtol=1e-5)
        else:
            with theirs.disable_adapter(), ours.disable_adapter():
                torch.testing.assert_close(ours(inputs()), theirs(inputs()), atol=0, rtol=0)


@pytest.mark.parametrize(
    "short",
    [pytest.param("polar", marks=pytest.mark.thorough), pytest.param("qwen2", marks=pytest.mark.thorough), "kogemma"],
)
def test_layers_with_groups_are_compiled_once(short: str) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def noted(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, example)

    settings = LoraConfig(r=6, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(toys.network(short), settings).train()
    patch_lora_forward(model)
    ids = torch.arange(40)[None]

    def learn() -> dict[str, torch.Tensor]:
        model.zero_grad()
        hidden = model.get_input_embeddings()(ids).requires_grad_()
        model(inputs_embeds=hidden, use_cache=False).logits.logsumexp(-1).sum().backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    expected = learn()
    for layer in model.base_model.model.model.layers:
        call = torch.compile(layer._call_impl, backend=noted, fullgraph=True, dynamic=False)
        layer._compiled_call_impl = functools.partial(checkpoint, call, use_reentrant=False)
    found = learn()
    assert len(graphs) == 1
    assert all(group.x is None for group in groups(model)) and len(groups(model)) == 10
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max() + 1e-7, name


def test_disabled_and_merged_adapters() -> None:
    theirs, ours = pair(lora_dropout=0.4)
    theirs.eval(), ours.eval()
    x = inputs()
    with torch.no_grad():
        expected = theirs(x)
        bare = theirs.base_model.model
        with ours.disable_adapter(), theirs.disable_adapter():
            torch.testing.assert_close(ours(x), bare(x), atol=0, rtol=0)
            assert (ours(x) - expected).abs().max() > 0.1
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
        for model in (theirs, ours):
            model.merge_adapter()
        torch.testing.assert_close(ours(x), theirs(x), atol=0, rtol=0)
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
        with ours.disable_adapter():  # which takes the merging back
            assert (ours(x) - expected).abs().max() > 0.1
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["fp32", "nf4"])
def test_after_merging_for_good_nothing_of_ours_is_left(packed: bool) -> None:
    theirs, ours = pair(packed=packed)
    expected = ours(inputs()).detach()
    plain = ours.merge_and_unload()
    assert changed(plain) == [] and not any("lora" in name for name, _ in plain.named_modules())
    torch.testing.assert_close(plain(inputs()), theirs.merge_and_unload()(inputs()), atol=0, rtol=0)
    if not packed:  # NF4 rounds the sum
        torch.testing.assert_close(plain(inputs()), expected, atol=1e-5, rtol=1e-5)


def test_what_is_saved_is_pefts(tmp_path: Path) -> None:
    theirs, ours = pair()
    for name, model in (("theirs", theirs), ("ours", ours)):
        model.save_pretrained(tmp_path / name)
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name != "README.md"}
        for name in ("theirs", "ours")
    )
    assert one == other and "adapter_model.safetensors" in one
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Small(), str(tmp_path / "ours"))
    assert changed(loaded) == []
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs()), ours(inputs()), atol=1e-5, rtol=1e-5)
        patch_lora_forward(loaded)
        assert len(changed(loaded)) == 2
        torch.testing.assert_close(loaded(inputs()), ours(inputs()), atol=0, rtol=0)


def test_a_copy_computes_with_its_own_weights() -> None:
    _, ours = pair()
    copied = copy.deepcopy(ours)
    with torch.no_grad():
        expected = ours(inputs())
        for name, parameter in copied.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        torch.testing.assert_close(ours(inputs()), expected, atol=0, rtol=0)
        with ours.disable_adapter():
            torch.testing.assert_close(copied(inputs()), ours(inputs()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: adapted(use_dora=True),
        lambda: get_peft_model(
            toys.network("qwen2"), LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
        ),
    ],
    ids=["dora", "embeddings"],
)
def test_other_adapters_stay_pefts(make: Callable[[], Any]) -> None:
    model = make()
    patch_lora_forward(model)
    assert changed(model) == []


def test_several_adapters_stay_pefts() -> None:
    model = adapted()
    model.add_adapter("more", LoraConfig(r=4, target_modules=["first"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "more"])
    patch_lora_forward(model)
    assert "base_model.model.first" not in changed(model)


def test_a_backbone_with_adapters_says_what_it_said() -> None:
    for short in ("qwen2", "kogemma"):
        model = get_peft_model(
            toys.network(short),
            LoraConfig(r=6, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
        ).eval()
        ids = torch.arange(40)[None]
        with torch.no_grad():
            expected = model(input_ids=ids).logits
            patch_lora_forward(model)
            assert len(changed(model)) == 14
            torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-5)


def test_the_grid_is_a_gpus() -> None:
    assert adapters.GRID * 2 == 16, "bytes of a row of bf16"
