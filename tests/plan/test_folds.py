"""The folds of a corpus, their files, and the runs on them."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.console.cli import UserError
from src.data import dump_items, load_split, split_path
from src.files.writing import write_text
from src.model.recipe_files import load_recipes
from src.plan import folds as cross
from src.plan.estimates import estimate_runs
from src.plan.work import Place, command_left
from tests.conftest import make_item

RAW = {"train": [make_item(number) for number in range(30)], "dev": [make_item(number) for number in range(30, 42)]}
TEST = [make_item(number, output="") for number in range(42, 48)]


def write(data: Path, **splits: Sequence[dict[str, Any]]) -> Path:
    for split, raw in {**RAW, "test": TEST, **splits}.items():
        write_text(split_path(data, split), dump_items(list(raw)))
    return data


def gather(data: Path, count: int = 3, drop_shared: bool = False) -> cross.Folds:
    splits = {split: load_split(data, split, labelled=split != "test") for split in ("train", "dev", "test")}
    return cross.gather_folds(splits, data, count, drop_shared)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data")


def test_each_fold_is_trained_on_all_others_and_each_item_is_held_out_once(data: Path, tmp_path: Path) -> None:
    folds = gather(data)
    cross.write_folds(tmp_path / "folds", folds)
    every = {item["id"] for split in RAW.values() for item in split}
    held: Counter[str] = Counter()
    for number in (1, 2, 3):
        train, dev, test = (load_split(tmp_path / "folds" / f"f{number}", split) for split in ("train", "dev", "test"))
        ids = [item.id for item in dev]
        held.update(ids)
        assert {item.id for item in train} == every - set(ids)
        assert not {item.dialogue_key for item in train} & {item.dialogue_key for item in dev}
        assert [item.source for item in test] == TEST
    assert held == dict.fromkeys(every, 1)
    assert {item.id for item in load_split(tmp_path / "folds", "dev")} == every
    note = json.loads((tmp_path / "folds" / "folds.json").read_text(encoding="utf-8"))
    assert [sorted(one["ids"]) for one in note["of_each"]] == [
        sorted(item.id for item in folds.fold(number)) for number in (1, 2, 3)
    ]
    assert (note["items"], note["dialogues"], note["shared_dialogues"]) == (42, 14, {})


def test_the_files_do_not_depend_on_the_order_of_the_items(data: Path, tmp_path: Path) -> None:
    before = gather(data).texts(tmp_path)
    every = [item for split in RAW.values() for item in split]
    random.Random(3).shuffle(every)
    write(data, train=every[:20], dev=every[20:])
    assert gather(data).texts(tmp_path) == before


def test_a_dialogue_of_both_splits_is_told_and_can_be_left_out(data: Path) -> None:
    # Items 0 to 2 are of one dialogue; dev has another question about it.
    more = make_item(0, id="another", category="전제")
    write(data, dev=[*RAW["dev"], more])
    folds = gather(data)
    (key,) = folds.shared
    assert folds.shared == {key: {"train": 3, "dev": 1}} and len(folds.items) == 43
    assert len({place for item, place in zip(folds.items, folds.places, strict=True) if item.dialogue_key == key}) == 1
    assert "train and dev share 1 dialogue (3 items of train, 1 of dev): in one fold each" in folds.lines()[1]
    dropped = gather(data, drop_shared=True)
    assert len(dropped.items) == 39 and key not in {item.dialogue_key for item in dropped.items}
    assert dropped.lines()[1].endswith("(3 items of train, 1 of dev): left out")
    assert len(gather(data, count=2).lines()) == 2 and len(gather(write(data)).lines()) == 1


def test_an_item_of_both_splits_counts_once_and_an_id_of_two_items_is_refused(data: Path) -> None:
    write(data, dev=[*RAW["dev"], RAW["train"][0]])
    assert len(gather(data).items) == 42
    write(data, dev=[*RAW["dev"], make_item(3, id="made-0000")])
    with pytest.raises(UserError, match=r"two items have the id made-0000, one of .*data_train\.json .*Rename one\."):
        gather(data)


def test_labelled_dialogues_of_test_are_told(data: Path) -> None:
    write(data, test=[*TEST, make_item(1, id="known", output="")])
    assert gather(data).lines()[1].startswith("1 item of test are of labelled dialogues")


def test_dropping_all_that_there_is(data: Path) -> None:
    write(data, dev=[{**item, "id": f"again {item['id']}"} for item in RAW["train"]])
    with pytest.raises(UserError, match="every dialogue is in train and dev, so no item is left"):
        gather(data, drop_shared=True)


def test_a_folder_of_other_folds_is_not_taken(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folds"
    folds = gather(data)
    cross.refuse_other_folds(folder, folds)
    cross.write_folds(folder, folds)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    (folder / "f2" / "data_dev.json").write_text("[]", encoding="utf-8")
    (folder / "f1" / "data_test.json").unlink()
    cross.refuse_other_folds(folder, folds)
    cross.write_folds(folder, folds)
    changed = {path.relative_to(folder) for path in times if path.stat().st_mtime_ns != times[path]}
    assert changed == {Path("f2/data_dev.json"), Path("f1/data_test.json")}
    assert {item.id for item in load_split(folder / "f2", "dev")} == {item.id for item in folds.fold(2)}

    for other, told in (
        (gather(data, count=4), "folds was 3, now 4"),
        (gather(data, drop_shared=True), "drop_shared was False, now True"),
        (gather(write(data, train=RAW["train"][:-3])), "train is another file"),
    ):
        with pytest.raises(UserError, match=rf"holds other folds: {told}\. .*give another --name"):
            cross.refuse_other_folds(folder, other)
    places = [1 + place % 3 for place in folds.places]
    with pytest.raises(UserError, match=r"scikit-learn .* divided them otherwise"):
        cross.refuse_other_folds(folder, replace(folds, places=places))
    (folder / "folds.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"folds\.json is damaged"):
        cross.refuse_other_folds(folder, folds)


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    write_text(folder / "eeve.yaml", "backbone: eeve\nmethod: lora\nseed: 7\n")
    write_text(folder / "qwen2.yaml", "backbone: qwen2\nmethod: orpo\n")
    return folder


def test_fold_runs_are_ordinary_runs(recipes: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "results", tmp_path / "data", test=True, task=("--task", "mine.yaml"))
    wanted, joints = cross.fold_runs(load_recipes(recipes), 2, 2, place, tmp_path / "folds")
    names = ["eeve-f1of2", "eeve-f2of2", "eeve-s2-f1of2", "eeve-s2-f2of2"]
    assert [one.name for one in wanted][:4] == names and len(wanted) == 8
    assert [(one.recipe.seed, one.recipe.keep) for one in wanted[:4]] == [(7, "last")] * 2 + [(8, "last")] * 2
    assert [joint.name for joint in joints] == ["eeve-oof2", "eeve-s2-oof2", "qwen2-oof2", "qwen2-s2-oof2"]
    assert [(joint.recipe, joint.parts) for joint in joints[:2]] == [("eeve", names[:2]), ("eeve", names[2:])]
    assert command_left(wanted[3])[2:] == [
        *("run.train", "--recipe", str(recipes / "eeve.yaml"), "--name", "eeve-s2-f2of2", "--seed", "8"),
        *("--keep", "last", "--data", str(tmp_path / "folds" / "f2"), "--score", "test", "--task", "mine.yaml"),
    ]
    assert command_left(wanted[4])[2] == "orpo.orpo_train"


def test_recipes_whose_fold_would_choose_or_be_answered_in_part_are_refused(recipes: Path) -> None:
    cross.refuse_recipes(list(load_recipes(recipes).values()))
    for setting, told in (("early_stopping_patience: 2", "stops early"), ("only_category: 원인", "one category alone")):
        write_text(recipes / "eeve.yaml", f"backbone: eeve\n{setting}\n")
        with pytest.raises(UserError, match=rf"--folds: the recipe eeve .*{told}.*--only NAME"):
            cross.refuse_recipes(list(load_recipes(recipes).values()))


def test_two_recipes_that_make_the_same_fold_run_are_refused(recipes: Path, tmp_path: Path) -> None:
    write_text(recipes / "eeve-s2.yaml", "backbone: eeve\n")
    place = Place(tmp_path, tmp_path, test=False)
    cross.fold_runs(load_recipes(recipes), 2, 1, place, tmp_path)
    with pytest.raises(UserError, match=r"two recipes make the same runs: eeve-s2-f1of2, eeve-s2-f2of2"):
        cross.fold_runs(load_recipes(recipes), 2, 2, place, tmp_path)


def test_a_plan_of_many_runs_takes_as_many_times_the_hours(recipes: Path) -> None:
    sizes = cross.fold_sizes({"train": 758, "dev": 151, "test": 605}, 5)
    assert sizes == {"train": 727, "dev": 182, "test": 605}
    (one, _) = estimate_runs(list(load_recipes(recipes).values()), sizes)
    many = cross.of_many(one, 10)
    assert one.seconds and one.disk and one.kept and one.elsewhere
    # Finished ones have no checkpoints any more.
    assert (many.run, many.seconds, many.disk) == ("eeve x 10", one.seconds * 10, one.disk + 9 * one.kept)
    assert cross.of_many(one, 10, at_once=4).disk == 4 * one.disk + 6 * one.kept
    assert cross.of_many(one, 2, at_once=4).disk == 2 * one.disk
    assert many.elsewhere == {card: seconds * 10 for card, seconds in one.elsewhere.items()}
    assert many.download == one.download
