import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# As where no package brings backends of its own, such as Jupyter's.
ALONE = "import importlib.metadata as m; m.entry_points = lambda **keys: []; "
DRAW = (
    "from pathlib import Path; from src.figures import plots, style\n"
    "plots.save_png(plots.growth([(1, 1.0), (2, 2.0)], 'h', 'l'), Path('growth.png'))\n"
    "point = plots.Point(0, 0.5, 0.1, 0.9, True)\n"
    "plots.save_png(plots.accuracy_by_step([point], [0.5]), Path('accuracy.png'))\n"
    "figure, _ = style.panels(['a'], 'b', 'c')\n"
    "Path('eda.png').write_bytes(style.to_png(figure, 'd', 'e'))\n"
)


def drawn(backend: str, folder: Path, code: str) -> None:
    environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        "module://matplotlib_inline.backend_inline",
        *(pytest.param(name, marks=pytest.mark.thorough) for name in ("nonsense", "module://nowhere", "")),
    ],
)
def test_no_backend_keeps_a_picture_from_its_file(backend: str, tmp_path: Path) -> None:
    drawn(backend, tmp_path, ALONE + DRAW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "eda.png", "growth.png"]


@pytest.mark.slow
def test_a_notebook_keeps_the_backend_that_it_has(tmp_path: Path) -> None:
    told = "import os, src.figures.canvas, matplotlib; "
    told += "assert os.environ['MPLBACKEND'] == '{0}' == matplotlib.get_backend()"
    drawn("svg", tmp_path, told.format("svg"))
    drawn(
        "svg",
        tmp_path,
        "import matplotlib as m; m.use('pdf'); from src.figures import canvas; assert m.get_backend() == 'pdf'",
    )


def test_matplotlib_is_taken_from_one_place() -> None:
    files = [path for folder in ("src", "run", "orpo") for path in Path(folder).rglob("*.py")]
    found = [p.name for p in files if re.search(r"^\s*(import|from) matplotlib", p.read_text("utf-8"), re.M)]
    assert found == ["canvas.py"]
