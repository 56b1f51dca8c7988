"""A folder whose files are known to be whole: a seal is written into it last, with the digest of each file.

The seal also says what the folder was made for, and has a digest of itself. Files and names reach the disk before the
seal does, so that after a power cut a folder with a seal is whole, and one without was cut off.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.files.digests import Digest, differences, digests, files_in
from src.files.writing import sync_file, sync_folder, write_json

SEAL = "whole.json"
MOST_BYTES = 16 * 2**20


class Broken(ValueError):
    """The message says in what a folder is not whole."""


def seal(folder: Path, made: Mapping[str, Any]) -> dict[str, Digest]:
    """Has all files of `folder` reach the disk and seals them. Returns their digests. made: what the folder is of, as
    JSON. OSError or UserError when the disk does not take it.
    """
    (folder / SEAL).unlink(missing_ok=True)
    names = files_in(folder)
    as_readable = folder.stat().st_mode & 0o666
    for name in names:
        with contextlib.suppress(OSError):  # safetensors writes files that nobody else may read
            (folder / name).chmod(as_readable)
        sync_file(folder / name)
    for inner in {(folder / name).parent for name in names}:
        sync_folder(inner)
    found = digests(folder, names)
    value = {"made": made, "files": {name: digest.as_json() for name, digest in found.items()}}
    write_json(folder / SEAL, {**value, "sha256": canonical_sha256(value)})
    sync_folder(folder.parent)
    return found


def read_seal(folder: Path) -> tuple[dict[str, Any], dict[str, Digest]]:
    """(what the folder was made for, digests of its files). Only the seal is read. `Broken` without a whole one."""
    path = folder / SEAL
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Broken(f"{SEAL} has more than {MOST_BYTES:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        value = {key: found[key] for key in ("made", "files")}
        if not isinstance(value["made"], dict) or not isinstance(value["files"], dict):
            raise ValueError("other values")
        if found["sha256"] != canonical_sha256(value):
            raise ValueError("another sha256")
        return value["made"], {name: Digest.parse(one, name) for name, one in value["files"].items()}
    except FileNotFoundError:
        raise Broken(
            f"it has no {SEAL}, so it was cut off while it was written, or an older version of this repository wrote it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Broken(error if isinstance(error, Broken) else f"{SEAL} is damaged") from error


def check_seal(folder: Path, words: str = "") -> dict[str, Any]:
    """What the folder was made for. `Broken`, with each file that differs, when it is not whole. words: as in
    `digests`.
    """
    made, noted = read_seal(folder)
    try:
        found = differences(folder, noted, words)
    except OSError as error:
        raise Broken(f"{error.filename} cannot be read: {error.strerror}") from error
    if found:
        raise Broken("; ".join(found))
    return made


def canonical_sha256(value: Any) -> str:
    """A digest of a JSON value that does not depend on how it is written."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
