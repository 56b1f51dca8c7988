"""matplotlib for pictures that go to files, whatever windows or notebooks are set up around it.

`MPLBACKEND` names what shows a picture on a screen. Jupyter sets it for everything that is started from it, and where
matplotlib does not know the name, importing matplotlib fails. A file needs no such thing: a `Figure` draws itself. So
all of src/ and run/ take matplotlib from here.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

VARIABLE = "MPLBACKEND"


@contextlib.contextmanager
def without_backend() -> Iterator[None]:
    """matplotlib may be imported within: the variable is out of its sight. One that it knows holds afterwards."""
    first = "matplotlib" not in sys.modules
    wanted = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if wanted is not None:
            os.environ[VARIABLE] = wanted
        if wanted and first:
            with contextlib.suppress(ValueError):  # an unknown one
                rcParams["backend"] = wanted


with without_backend():
    from matplotlib import font_manager, rcParams
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

__all__ = ["Axes", "Figure", "LinearSegmentedColormap", "MaxNLocator", "font_manager", "rcParams"]
