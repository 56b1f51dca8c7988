"""What test_ranks.py looks at, on this rank: python -m tests.train.sharded_job FOLDER. Not a test."""

import json
import sys
from pathlib import Path
from typing import Any

from src.console.cli import UserError, run_main


def main() -> None:
    import torch

    from src.model import ranks
    from tests.train import sharded_cases as cases

    folder = Path(sys.argv[1])
    ranks.begin(torch.device("cpu"))
    torch.compiler.set_stance("force_eager")  # torchao compiles its optimizer, half a minute for nothing here
    found: dict[str, Any] = {name: cases.trained(name, folder) for name in cases.CASES}
    found["from 1 to 2"] = cases.trained(cases.FIRST, folder, "from 1 to 2")
    cases.interrupted(folder, "from 2")
    found["states"] = states()
    found["passes"] = passes(folder)
    found["compiled"] = compiled_gradients()
    try:
        cases.trained(cases.FIRST, folder, "refused", optimizer="fp32-8bit")
    except UserError as error:
        found["refused"] = str(error)
    ranks.meet()
    if ranks.is_first():
        (folder / "found.json").write_text(json.dumps(found))
    cases.trained(cases.FIRST, folder, "damaged", model_id=str(folder / "damaged base"))


def sharded(network: Any) -> Any:
    import torch

    from src.model.shards import shard

    return shard(network, torch.device("cpu"), torch.float32)


def states() -> dict[str, Any]:
    """AdamW8bit's states of sharded parameters, gathered, handed out again and gathered once more."""
    import torch

    from src.model import ranks
    from src.model.shards import full_state
    from src.train.adamw8bit import AdamW8bit, clip_gradient
    from src.train.sharded_states import full_states, load_states
    from tests import toys

    def step(network: Any, optimizer: Any) -> float:
        ids = torch.randint(0, 1000, (2, 1, 30), generator=torch.Generator().manual_seed(3))
        network(input_ids=ids[ranks.rank()]).logits.square().mean().backward()
        norm = clip_gradient(optimizer, network.parameters(), 0.1)
        optimizer.step()
        network.zero_grad()
        return float(norm)

    # 511 rows of 256: one rank has 256 of them, and the other 255.
    one = sharded(toys.network("qwen2", vocab_size=1472, hidden_size=256, intermediate_size=511))
    first = AdamW8bit(one.parameters(), lr=1e-2)
    norms = [step(one, first), step(one, first)]
    saved = full_states(first)
    path = Path(sys.argv[1]) / "states.pt"
    if ranks.is_first():
        torch.save(saved, path)
    ranks.meet()
    weights = ranks.decided(lambda: None) or full_state(one)
    other = toys.network("qwen2", vocab_size=1472, hidden_size=256, intermediate_size=511)
    (state,) = [found for found in ranks.gathered(weights) if found]
    other.load_state_dict(state)
    sharded(other)
    second = AdamW8bit(other.parameters(), lr=1e-2)
    load_states(second, path)
    again = full_states(second)
    norms_after = step(one, first), step(other, second)
    apart = [float((a - b).abs().max()) for a, b in zip(*map(_values, (saved, again)), strict=True)]
    kinds = sorted({type(value).__name__ for value in _tensors(saved)})
    return {"norms": norms, "after": norms_after, "apart": max(apart, default=0.0), "kinds": kinds}


def _tensors(states: Any) -> list[Any]:
    return [value for state in states["state"].values() for value in state.values()]


def _values(states: Any) -> list[Any]:
    return [value.dequantize() if hasattr(value, "codes") else value for value in _tensors(states)]


def passes(folder: Path) -> list[int]:
    """Passes of each rank that `in_step` is asked for: none on one, three on the other."""
    import torch

    from src.model import ranks
    from src.train.sharded import in_step
    from tests import toys

    network, count = sharded(toys.network("qwen2")), 3 * ranks.rank()

    def work() -> int:
        with torch.no_grad():
            for _ in range(count):
                network(input_ids=torch.arange(5)[None])
        return count

    return ranks.gathered(in_step(network, work))


def compiled_gradients() -> float:
    """The largest difference between gradients of sharded compiled layers, recomputed, and of whole standard ones, as a
    share of the largest gradient. The compiler is the one that changes nothing.
    """
    import pytest
    import torch

    from src.model.shards import whole
    from src.tree import compiled
    from src.tree.rows import Layout, Term, lay_out, logprobs_at
    from tests import toys

    sequence = list(range(5, 65))
    terms = [Term(0, place, sequence[place + 1]) for place in range(40, 59)]
    (row,) = lay_out([sequence], terms, Layout("padded", 10**6, 0))
    network, reference = sharded(toys.network("qwen2").train()), toys.network("qwen2").train()
    (2 * logprobs_at(reference, row).sum()).backward()  # by two ranks
    compile_it, seen = torch.compile, []
    with pytest.MonkeyPatch.context() as patch, torch.compiler.set_stance("default"):
        patch.setattr(compiled, "rows_on_gpu", lambda device: True)
        patch.setattr(compiled, "ATTENTION", "sdpa")  # flex attention would be compiled for half a minute
        patch.setattr(compiled, "is_ready", lambda model: bool(seen))
        patch.setattr(torch, "compile", lambda call, dynamic: seen.append(call) or compile_it(call, backend="eager"))
        assert compiled.make_ready(network, checkpointing=True)
        logprobs_at(network, row).sum().backward()
    theirs = dict(reference.named_parameters())
    shares = []
    for name, parameter in network.named_parameters():
        expected = theirs[name].grad
        shares.append(float((whole(parameter.grad) - expected).abs().max() / expected.abs().max()))
    assert len(seen) == 2
    return max(shares)


if __name__ == "__main__":
    sys.exit(run_main(main, ranks=True))
