from pathlib import Path

from src.records import write_json
from src.run_data import DATA, data_of, find_folder, own_data
from tests.made_runs import make_split


def test_a_record_knows_its_data(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        make_split(tmp_path / "data", split, 3)
    there = {split: str(tmp_path / "data" / f"data_{split}.json") for split in ("train", "dev", "test")}
    assert own_data({"data": {"dev": {"path": there["dev"]}}}, "dev") == Path(there["dev"])
    # A run keeps the paths of what it was trained with; test lies beside them.
    assert own_data({"data": {"train": {"path": there["train"]}}}, "test") == Path(there["test"])
    # A vote keeps that of each split.
    assert own_data({"splits": {"test": {"data": there["test"]}}}, "test") == Path(there["test"])
    assert own_data({"splits": {"dev": {"data": there["dev"]}}}, "test") == Path(there["test"])
    assert own_data({"data": {"dev": {"path": str(tmp_path / "gone.json")}}}, "dev") is None
    assert own_data({"data": {"dev": None}}, "dev") is None and own_data({}, "dev") is None


def test_the_first_run_that_knows_decides(tmp_path: Path) -> None:
    make_split(tmp_path / "data", "dev", 3)
    (tmp_path / "results" / "unfinished").mkdir(parents=True)
    path = tmp_path / "data" / "data_dev.json"
    write_json(tmp_path / "results" / "alpha" / "record.json", {"data": {"dev": {"path": path}}})
    assert data_of(["some.json", "unfinished", "alpha"], "dev", tmp_path / "results") == path
    assert data_of(["some.json", "nobody"], "dev", tmp_path / "results") == DATA
    assert find_folder("alpha", tmp_path / "results") == tmp_path / "results" / "alpha"
    assert find_folder(str(tmp_path / "data"), tmp_path / "results") == tmp_path / "data"
    assert find_folder("nobody", tmp_path / "results") == tmp_path / "results" / "nobody"
