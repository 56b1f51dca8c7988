"""The answer to one question about a corpus."""

from typing import NamedTuple

from src.figures.canvas import Figure


class Finding(NamedTuple):
    """The answer to one question. `slug` names the picture's file; `says` what it shows, `so` what follows."""

    slug: str
    figure: Figure | None
    says: str
    so: str


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
