"""Which GPUs a job gets, of those of one machine: as many as it needs, all different, and no two jobs in one place."""

import os
import threading
from collections import Counter
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Slots:
    """`at_once` places on `gpus` GPUs (0: a machine without), and at least one on each. A job needs one or several; one
    that needs several has them alone.

    Jobs are served in the order in which they ask; one that does not fit yet lets smaller ones pass.
    """

    def __init__(self, at_once: int, gpus: int) -> None:
        self._free = [slot % gpus if gpus else slot for slot in range(max(at_once, gpus))]
        self._places = Counter(self._free)
        self._waiting: list[int] = []
        self._changed = threading.Condition()

    def take(self, needed: int) -> Sequence[int]:
        """The numbers of as many GPUs as are `needed`, at most all; those with the fewest jobs. One that has several
        places is named for each that the job takes. Waits until there are so many.
        """
        needed = min(needed, len(self._places))
        with self._changed:
            self._waiting.append(needed)
            self._changed.wait_for(lambda: self._fits(needed) and not self._earlier_fits(needed))
            self._waiting.remove(needed)
            chosen = sorted(self._able(needed), key=lambda one: (-self._free.count(one), one))[:needed]
            taken = chosen if needed == 1 else [one for one in self._free if one in chosen]
            for one in taken:
                self._free.remove(one)
            self._changed.notify_all()
        return taken

    def give_back(self, taken: Sequence[int]) -> None:
        with self._changed:
            self._free += taken
            self._changed.notify_all()

    def _able(self, needed: int) -> set[int]:
        """The GPUs that a job may get now."""
        return {one for one in self._free if needed == 1 or self._free.count(one) == self._places[one]}

    def _fits(self, needed: int) -> bool:
        return len(self._able(needed)) >= needed

    def _earlier_fits(self, needed: int) -> bool:
        """Whether one that came earlier, and needs more, could have its place now."""
        return any(self._fits(one) for one in self._waiting[: self._waiting.index(needed)])


def visible(taken: Sequence[int], gpus: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES for the GPUs with these numbers, of the `gpus` that this process sees."""
    names = [name for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return ",".join(names[one] if len(names) == gpus else str(one) for one in dict.fromkeys(taken))
