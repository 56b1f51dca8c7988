"""Where runs lie, and what the folders in a run's folder are called."""

from pathlib import Path

from src.console.start import ours

RESULTS = ours("resource/results")
MODEL, ADAPTER = "model", "adapter"
"""The folder of a run's best weights: all of them, or the adapter's."""
CHECKPOINTS = "checkpoints"


def weights_folder(run: Path) -> Path | None:
    """Where a run keeps what it trained; None for an untrained one."""
    return next((run / name for name in (MODEL, ADAPTER) if (run / name).is_dir()), None)
