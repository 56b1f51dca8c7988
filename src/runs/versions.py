"""Versions of the packages, and the commit of this code, that a result was computed with."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "trl", "accelerate", "bitsandbytes", "numpy", "scipy")
"""Packages that can change a score; the rest of an environment cannot."""


def made_with() -> dict[str, Any]:
    """The software's entry in every record."""
    return {"versions": versions(), "commit": git_commit()}


def versions() -> dict[str, str]:
    """Versions of what computes a score, read without importing any of it. Packages that are not installed are left
    out.
    """
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this code, with "-dirty" when tracked files differ from it; None without git or a repository."""
    root = Path(__file__).resolve().parents[2]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            # Code unpacked from an archive inside another repository has no commit; git would give that repository's.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)},
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
