"""Where runs lie, and what the folders in a run's folder are called."""

from src.console.start import ours

RESULTS = ours("resource/results")
MODEL, ADAPTER = "model", "adapter"
"""The folder of a run's best weights: all of them, or the adapter's."""
CHECKPOINTS = "checkpoints"
