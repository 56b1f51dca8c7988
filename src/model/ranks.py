"""The ranks of a command: processes that share the work of one run, each on a GPU of its own.

What they tell each other goes two ways. Python objects, counts and verdicts go from host to host (gloo), so that no
rank has to wait for its GPU. Gradients go from GPU to GPU (nccl; on CPUs gloo, too). Alone, every function here returns
what it is given. transformers and accelerate know nothing of it (src/console/launch.py).

All ranks have to call these functions in the same order. Whatever can fail on one rank alone is to be caught before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from src.console import launch, lifeline
from src.console.cli import UserError
from src.files.locks import Held, lock_folder
from src.files.signs import signs_of_life
from src.model.recipes import Recipe

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
ALL = -1
"""In place of a rank's number, for what is the same on all."""
TIMEOUT = timedelta(hours=6)
"""How long ranks wait for each other: one may download or write. Those that are gone are noticed otherwise."""


def rank() -> int:
    return launch.current().rank


def world() -> int:
    return launch.current().world


def several() -> bool:
    return launch.current().several


def is_first() -> bool:
    """Whether this process is the one that writes and speaks: rank 0, or the only one."""
    return rank() == 0


def refuse_small_steps(recipe: Recipe) -> None:
    """UserError when an optimizer step has fewer items than there are ranks."""
    items = recipe.batch_size * recipe.gradient_accumulation_steps
    if items < world():
        raise UserError(
            f"{recipe.name}: an optimizer step has {items} item{'s' if items > 1 else ''} "
            f"(batch_size × gradient_accumulation_steps), and {world()} processes are to share it; "
            f"allowed: at least {world()} items. --batch_size {world()} makes larger steps, which changes what is "
            "learned (fewer updates; the learning rate may want to be higher). "
            "Several GPUs can also train several models at a time: python -m run.reproduce"
        )


def begin(device: "torch.device") -> None:
    """Connects the ranks, whose devices have to be of one kind. Alone, and a second time, it does nothing."""
    from torch import distributed, zeros

    if not several() or distributed.is_initialized():
        return
    here = launch.current()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = distributed.PrefixStore("ranks", lifeline.current().store)
    kinds = distributed.PrefixStore("kinds", store)
    kinds.set(str(here.rank), device.type)
    found = {number: kinds.get(str(number)).decode() for number in range(here.world)}
    if len(set(found.values())) > 1:
        told = ", ".join(f"rank {number} has {kind}" for number, kind in found.items())
        raise UserError(
            f"{here.world} processes were started, but not all of them have a GPU: {told}. "
            "Start one for each GPU (--nproc_per_node), or all with --device cpu."
        )
    # It would warn of a group that it does not use.
    getLogger("transformers.training_args").addFilter(lambda record: "parallel_mode" not in record.getMessage())
    distributed.init_process_group(backend, store=store, rank=here.rank, world_size=here.world, timeout=TIMEOUT)
    if device.type == "cuda":  # what nccl takes for itself counts as taken when memory is planned
        distributed.all_reduce(zeros(1, device=device))


def gathered(value: T) -> list[T]:
    """The value of each rank, in their order."""
    if not several():
        return [value]
    from torch import distributed

    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, value)
    return found


def decided(choose: Callable[[], T]) -> T:
    """What rank 0 chooses, for all."""
    if not several():
        return choose()
    from torch import distributed

    found = [choose() if is_first() else None]
    distributed.broadcast_object_list(found, src=0)
    value: Any = found[0]
    return value


def any_text(text: str) -> str:
    """The first rank's text that is not empty; "" where all are. Fast where all are."""
    if not several():
        return text
    from torch import distributed, tensor

    failed = tensor([float(bool(text))])
    distributed.all_reduce(failed)
    if not failed.item():
        return ""
    return next(filter(None, gathered(text)))


def meet() -> None:
    """Returns once all ranks have come here."""
    any_text("")


def all_true(value: bool) -> bool:
    return not any_text("" if value else "no")


def least(size: int, value: T) -> T:
    """The value of the rank that has the least `size`; of equals, the first one's."""
    return min(gathered((size, value)), key=lambda one: one[0])[1]


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Rank 0 is through the block before the others enter it: it finds mistakes, downloads, and makes folders."""
    if not is_first():
        lifeline.current().wait("first")
    yield
    if is_first() and several():
        lifeline.current().signal("first")


@contextmanager
def at_work(folder: Path) -> Iterator[Held]:
    """Within, this command alone works in `folder`, which has signs of its life. Rank 0 sees to it for all."""
    if not is_first():
        yield Held.of(folder)
        return
    with lock_folder(folder) as held, signs_of_life(folder):
        yield held


def added(values: Sequence[float]) -> list[float]:
    """The sum over ranks of each number."""
    return [sum(found) for found in zip(*gathered(list(values)), strict=True)]
