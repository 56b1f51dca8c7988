"""matplotlib for pictures in files, independent of any notebook or screen.

`MPLBACKEND` names what shows a picture on a screen. Jupyter sets it for every program that is started from it, and
importing matplotlib fails if matplotlib does not know the name. A picture in a file needs no backend: a `Figure` draws
itself. So all of src/ and run/ take matplotlib from here.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

VARIABLE = "MPLBACKEND"


@contextlib.contextmanager
def without_backend() -> Iterator[None]:
    """Within, matplotlib is imported without seeing the variable. Afterwards it uses the backend if it knows it."""
    first = "matplotlib" not in sys.modules
    wanted = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if wanted is not None:
            os.environ[VARIABLE] = wanted
        if wanted and first:
            with contextlib.suppress(ValueError):  # an unknown backend
                rcParams["backend"] = wanted


with without_backend():
    from matplotlib import font_manager, rcParams
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

__all__ = ["Axes", "Figure", "LinearSegmentedColormap", "MaxNLocator", "font_manager", "rcParams"]
