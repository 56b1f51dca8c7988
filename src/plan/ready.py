"""Can this machine do these runs? Asked once before the first of them, so that nothing is fetched in vain."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from src.console.cli import UserError
from src.model import hub
from src.model.disk import GB, check_disk, existing_parent
from src.model.recipes import Recipe
from src.model.shapes import GIB
from src.plan import estimates as plan
from src.plan.estimates import Gpu, PlanRow

CPU_PARAMETERS = 1.5e9
"""Of the largest model that is trained without a GPU: at 0.3 TFLOP/s an epoch of the official corpus takes 7 hours."""


def obstacles(recipes: Sequence[Recipe], rows: Sequence[PlanRow], gpus: Sequence[Gpu]) -> dict[str, str]:
    """Why a run cannot be done here, by its name; equal reasons are equal texts. rows: the plan's, one a recipe."""
    found: dict[str, str] = {}
    for recipe, row in zip(recipes, rows, strict=True):
        parameters = plan.parameters(recipe)
        if not gpus and parameters is not None and parameters > CPU_PARAMETERS:
            found[recipe.name] = (
                "there is no GPU that torch can use here, and models of billions of weights take days without"
            )
        elif gpus and row.settled and row.settled.memory.total > max(gpu.total_bytes for gpu in gpus):
            found[recipe.name] = (
                f"it takes {row.settled.memory.total / GIB:.0f} GiB of GPU memory, and the largest GPU here has "
                f"{max(gpu.total_bytes for gpu in gpus) / GIB:.0f}"
            )
        elif _is_to_be_fetched(recipe, row) and hub.unreachable():
            found[recipe.name] = f"its base model is not on this machine and {hub.unreachable()}"
    return found


def _is_to_be_fetched(recipe: Recipe, row: PlanRow) -> bool:
    return row.download != 0 and hub.is_hub_id(recipe.model_id)


def check_room(rows: Sequence[PlanRow], results: Path, cache: Path) -> None:
    """UserError when the disks have no room for what the runs of `rows` fetch and keep, all together. What lies in a
    run's folder already counts as kept.
    """
    fetched = sum({row.model_id: row.download or 0 for row in rows}.values())
    kept = sum(max(0, (row.disk or 0) - _bytes_in(results / row.run)) for row in rows)
    what = f"{len(rows)} run(s)" if len(rows) != 1 else f"the run {rows[0].run}"
    only = " Or do some of them: --only NAME …" if len(rows) > 1 else ""
    same = _disk(results) == _disk(cache)
    needs = {results: (kept + fetched * same, f" and {fetched / GB:.1f} GB of downloads" * bool(same and fetched))}
    if not same:
        needs[cache] = (fetched, "")
    for path, (needed, more) in needs.items():
        name = f"keeping {what}{more}" if path == results else f"downloading the base models of {what}"
        try:
            check_disk(path, needed, name)
        except UserError as error:
            raise UserError(f"{error}{only}") from error


def refusal(found: Mapping[str, str]) -> str:
    """One sentence for each reason, with the runs that it is one for."""
    return " ".join(f"{', '.join(names)}: {reason}." for reason, names in by_reason(found).items())


def by_reason(found: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by their reason, in the order in which reasons come first."""
    reasons: dict[str, list[str]] = {}
    for name, reason in found.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def _disk(path: Path) -> int:
    return existing_parent(path).stat().st_dev


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
