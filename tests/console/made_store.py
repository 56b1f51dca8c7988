"""Where ranks meet in tests: torch's store takes longer to load than all else."""

import time
from pathlib import Path
from typing import Any


class Files:
    """The part of torch's stores that a lifeline uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / f"store {key.replace('/', ' ')}"

    def set(self, key: str, value: str) -> None:
        fresh = self._path(f"{key} fresh")
        fresh.write_text(value)
        fresh.rename(self._path(key))

    def wait(self, keys: list[str], *given: Any) -> None:
        while not all(self._path(key).is_file() for key in keys):
            time.sleep(0.01)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._path(key).read_bytes()
