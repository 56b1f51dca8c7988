"""What makes a folder whole, and how damage is named."""

import json
import os
from pathlib import Path

import pytest

from src.files import digests
from src.files.digests import Digest, differences, files_in
from src.files.sealed import SEAL, Broken, check_seal, read_seal, seal
from src.files.writing import write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    (path / "inner").mkdir(parents=True)
    (path / "weights").write_bytes(bytes(1000))
    (path / "inner" / "state").write_bytes(b"state")
    seal(path, {"step": 4})
    return path


def test_a_sealed_folder_is_as_readable_as_any_other(folder: Path) -> None:
    (folder / "weights").chmod(0o600)
    seal(folder, {})
    assert (folder / "weights").stat().st_mode == (folder / SEAL).stat().st_mode


def test_a_sealed_folder_is_whole(folder: Path) -> None:
    assert check_seal(folder) == {"step": 4}
    assert set(read_seal(folder)[1]) == {"weights", "inner/state"}
    (folder / "more").write_text("x")  # what is not in the seal does not matter
    assert check_seal(folder) == {"step": 4}
    seal(folder, {"step": 8})
    assert check_seal(folder) == {"step": 8} and set(read_seal(folder)[1]) == {"weights", "inner/state", "more"}


@pytest.mark.parametrize("name", ["weights", "inner/state", SEAL])
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "zeroed", "deleted"])
def test_every_damage_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(
            {"flipped": flipped, "cut": content[:middle], "emptied": b"", "zeroed": b"0" * len(content)}[damage]
        )
    with pytest.raises(Broken, match=name):
        check_seal(folder)


@pytest.mark.parametrize("value", ["[]", "{}", '{"made": {}, "files": []}', "[" * 10**5, "\x00", '{"made": 1'])
def test_a_seal_of_something_else(folder: Path, value: str) -> None:
    (folder / SEAL).write_text(value)
    with pytest.raises(Broken, match=r"whole\.json is damaged"):
        read_seal(folder)


def test_differences_say_what_and_how(folder: Path) -> None:
    noted = read_seal(folder)[1]
    (folder / "weights").write_bytes(bytes(999))
    (folder / "inner" / "state").write_bytes(b"State")
    assert differences(folder, {**noted, "gone": Digest(1, "0")}) == [
        "gone is gone",
        "weights has 999 bytes instead of 1,000",
        f"inner/state has sha256 {Digest.of_text('State').sha256[:12]}… instead of {noted['inner/state'].sha256[:12]}…",
    ]
    assert files_in(folder, leave_out=[SEAL]) == ["inner/state", "weights"]


def test_large_files_are_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "LARGE", 100)
    monkeypatch.setattr("src.files.paths.RESULTS", tmp_path / "results")
    noted = read_seal(folder)[1]
    assert differences(folder, noted) == []
    memory = tmp_path / "results" / ".digests.json"
    assert list(json.loads(memory.read_text())) == [str(folder / "weights")]
    read: list[Path] = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode, **keys: read.append(path) or opened(path, *mode, **keys))
    assert differences(folder, noted) == []
    assert [path for path in read if path.parent != memory.parent] == [folder / "inner" / "state"]
    # Another content with the size and the time of the old one is read again.
    times = (folder / "weights").stat()
    (folder / "weights").write_bytes(b"1" * 1000)
    os.utime(folder / "weights", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(differences(folder, noted)) == 1
    write_json(memory, ["of another kind"])
    assert len(differences(folder, noted)) == 1


@pytest.mark.parametrize("name", ["/dev/null", "/etc/hostname", "../weights", "inner/../../weights"])
def test_a_name_outside_the_folder_is_not_looked_at(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights").write_text("x")
    noted = {name: Digest(1, "0")}
    assert differences(tmp_path / "run", noted) == [f"{name} is outside the folder"]
