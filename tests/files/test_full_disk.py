"""What of an error that a write raises is the disk's, and what the user is told."""

import errno
from pathlib import Path

import pytest

from src.console.cli import UserError
from src.files.full_disk import told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"No space left on device \(it takes 2\.0 MB, and",
        ),
        (
            OSError(errno.EROFS, "Read-only file system"),
            r"Read-only file system\. Mend that, and start",
        ),
        (Exception("No space left on device (os error 28)"), r"os error 28\) \(it takes .*Make room"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            "unexpected pos .*Make room",
        ),
        (RuntimeError("basic_ios::clear: iostream error"), "iostream error .*Make room"),
    ],
)
def test_errors_of_the_disk_are_told(tmp_path: Path, error: Exception, words: str) -> None:
    begins = f"^checkpoint-4 cannot be written in {tmp_path}: "
    with pytest.raises(UserError, match=f"{begins}.*{words}"), told("checkpoint-4", tmp_path, 2e6):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert"), ValueError("ours"), UserError("told")]
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)) as caught, told("checkpoint-4", tmp_path):
        raise error
    assert caught.value is error
