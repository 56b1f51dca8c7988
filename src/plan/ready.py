"""Checks, before the first of several runs, that this machine can do them, so that no download is wasted."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from src.console.cli import UserError
from src.console.words import size_text
from src.model import hub
from src.model.devices import Gpu
from src.model.disk import bytes_kept, check_disk, existing_parent
from src.model.recipes import Recipe
from src.model.shapes import GIB
from src.plan.estimates import Estimate
from src.plan.known import known_base
from src.plan.shared import refused, sharing

CPU_PARAMETERS = 1.5e9
"""Parameters of the largest model trained without a GPU: at 0.3 TFLOP/s, an epoch of the official corpus takes 7 h."""


def obstacles(recipes: Sequence[Recipe], estimates: Sequence[Estimate], gpus: Sequence[Gpu]) -> dict[str, str]:
    """Why a run cannot be done here, by its name; equal reasons are equal texts. estimates: one for each recipe."""
    largest = max((gpu.total_bytes for gpu in gpus), default=0)
    found = refused(recipes, gpus)
    for recipe, one in zip(recipes, estimates, strict=True):
        parameters = known_base(recipe).parameters
        if recipe.name in found:
            continue
        if not gpus and parameters is not None and parameters > CPU_PARAMETERS:
            found[recipe.name] = (
                "there is no GPU that torch can use here, and models of billions of weights take days without"
            )
        elif gpus and one.training and one.training.memory.total > largest:
            why = sharing(recipe, gpus).why
            found[recipe.name] = (
                f"it takes {one.training.memory.total / GIB:.0f} GiB of GPU memory, "
                f"and the largest GPU here has {largest / GIB:.0f}{f'; {why}' if why else ''}"
            )
        elif one.download != 0 and hub.is_hub_id(recipe.model_id) and hub.unreachable():
            found[recipe.name] = f"its base model is not on this machine and {hub.unreachable()}"
    return found


def check_room(estimates: Sequence[Estimate], results: Path, cache: Path) -> None:
    """UserError when the disks have no room for what the runs download and keep, all together. What lies in a run's
    folder already counts as kept.
    """
    fetched = sum({one.model_id: one.download or 0 for one in estimates}.values())
    kept = sum(max(0, (one.disk or 0) - bytes_kept(results / one.run)) for one in estimates)
    what = f"{len(estimates)} run(s)" if len(estimates) != 1 else f"the run {estimates[0].run}"
    only = " Or do some of them: --only NAME …" if len(estimates) > 1 else ""
    same = _disk(results) == _disk(cache)
    needs = {results: (kept + fetched * same, f" and {size_text(fetched)} of downloads" * bool(same and fetched))}
    if not same:
        needs[cache] = (fetched, "")
    for path, (needed, more) in needs.items():
        name = f"keeping {what}{more}" if path == results else f"downloading the base models of {what}"
        try:
            check_disk(path, needed, name)
        except UserError as error:
            raise UserError(f"{error}{only}") from error


def refusal(found: Mapping[str, str]) -> str:
    """One sentence for each reason, with the names of the runs that it holds for."""
    return " ".join(f"{', '.join(names)}: {reason}." for reason, names in by_reason(found).items())


def by_reason(found: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by their reason; reasons stay in the order of their first names."""
    reasons: dict[str, list[str]] = {}
    for name, reason in found.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def _disk(path: Path) -> int:
    """The number of the file system that `path` is on, or will be."""
    return existing_parent(path).stat().st_dev
