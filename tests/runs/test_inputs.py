import subprocess
import sys
from dataclasses import asdict
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any

import pytest

from src import task
from src.console.cli import UserError
from src.data import load_items, sha256, split_path
from src.files.digests import Digest
from src.files.locks import lock_folder
from src.files.paths import record_path
from src.files.writing import write_json, write_text
from src.model.recipes import make_recipe
from src.runs import inputs
from src.runs.inputs import (
    began_with,
    changed_note,
    check_models,
    gather,
    load_own,
    named_data,
    named_model,
    read_run,
    refuse_bare_name,
    sample_items,
)
from src.train.checkpoints import STATES, Place, settle
from src.vote.ballots import read_sources
from tests.made_runs import make_run, make_split, name_data, stored

SCORABLE = {
    "recipe": {"backbone": "polar", "method": "lora"},
    "prompt": {"name": "korean", "text": "…", "sha256": digest("…".encode()).hexdigest()},
    "template": {"sha256": "0"},
    "training": None,
    "splits": {},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`data/` of 6 train, 5 dev and 4 test items, `results/alpha`, and no corpus where it lies by default."""
    for split, count in (("train", 6), ("dev", 5), ("test", 4)):
        make_split(tmp_path / "data", split, count, labelled=split != "test")
    run = make_run(tmp_path / "results" / "alpha", tmp_path / "data", "dev", [0] * 5, dev_accuracy=0.5)
    write_json(record_path(run), stored(run) | SCORABLE | {"splits": stored(run)["splits"]})
    monkeypatch.setattr("src.data.DATA", tmp_path / "default")
    monkeypatch.setattr("src.files.paths.RESULTS", tmp_path / "results")
    return tmp_path


# Of a training


def test_all_that_a_training_starts_from(place: Path) -> None:
    recipe = make_recipe({"backbone": "polar", "method": "lora"}, "here")
    found = gather(recipe, place / "new", place / "data", ["test"], 3)
    assert [len(found.train), len(found.dev), len(found.splits["test"].items)] == [3, 3, 3]
    assert found.hashes == {
        "train": [sha256(place / "data" / "data_train.json"), 3],
        "dev": [sha256(place / "data" / "data_dev.json"), 3],
        "prompt": found.prompt.sha256,
        "task": {"name": task.current().name, "sha256": task.current().sha256},
    }
    assert not (place / "new").exists()
    one = gather(recipe.replace(only_category="전제"), place / "new", place / "data", [], None)
    assert {item.category for item in [*one.train, *one.dev]} == {"전제"}


def test_a_limit_takes_the_same_items(place: Path) -> None:
    items = load_items(place / "data" / "data_train.json")
    assert sample_items(items, 3, 7) == sample_items(items, 3, 7) and len(sample_items(items, 99, 7)) == 6
    with pytest.raises(UserError, match="--limit: found 0"):
        sample_items([], 0, 7)


POLAR = ("--recipe", "polar", "--save_dir", "{place}/new")
REFUSED = (
    ("run.train", (*POLAR, "--data", "{place}/nowhere"), "data_train.json: no such file"),
    ("run.train", (*POLAR, "--data", "{place}/swapped"), "were the two swapped?"),
    ("run.train", (*POLAR, "--data", "{place}/data", "--prompt", "koraen"), "Did you mean 'korean'?"),
    ("run.train", ("--recipe", "polar", "--data", "{place}/data", "--save_dir", "{run}"), "is a finished run"),
    (
        "run.train",
        ("--recipe", "polar", "--data", "{place}/data", "--save_dir", "{place}/busy"),
        "in use by process ",
    ),
    ("run.train", (*POLAR, "--data", "{place}/data", "--limit", "0"), "--limit: found 0"),
    ("run.train", ("--model_id", "polarr", "--data", "{place}/data"), "polarr is neither a folder nor a model"),
    ("orpo.orpo_train", ("--recipe", "qwen2", "--data", "{place}/nowhere"), "data_train.json: no such file"),
    ("run.test", ("--model_id", "alhpa"), "There is no run alhpa either"),
    ("run.test", ("--model_id", "{run}", "--data", "{place}/nowhere"), "data_test.json: no such file"),
    ("run.test", ("--model_id", "{run}", "--other_prompt", "nope"), "there is no prompt 'nope'"),
    ("run.test", ("--model_id", "a/b", "--prompt", "nope"), "there is no prompt 'nope'"),
    ("run.test", ("--model_id", "a/b", "--limit", "0"), "--limit: found 0"),
    ("run.prompts", ("--compare", "korean", "--runs", "nobody", "--data", "{place}/data"), "There is no run nobody"),
)


def test_what_is_wrong_is_said_before_torch_is_imported(place: Path) -> None:
    (place / "swapped").mkdir()
    write_text(place / "swapped" / "data_train.json", (place / "data" / "data_test.json").read_text(encoding="utf-8"))
    write_text(place / "swapped" / "data_dev.json", (place / "data" / "data_dev.json").read_text(encoding="utf-8"))
    words = {"place": place, "run": place / "results" / "alpha"}
    calls = [(module, [one.format(**words) for one in flags]) for module, flags, _ in REFUSED]
    code = (
        "import importlib, sys\nfrom src.console.cli import run_main\n"
        f"for module, flags in {calls!r}:\n"
        "    print(run_main(lambda: importlib.import_module(module).main(flags)), 'torch' in sys.modules, flush=True)\n"
    )
    with lock_folder(place / "busy"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["2 False"] * len(REFUSED), done.stderr
    said = done.stderr.split("error: ")[1:]
    assert [words in one for one, (_, _, words) in zip(said, REFUSED, strict=True)] == [True] * len(REFUSED), said
    assert not (place / "busy").exists()


# Models and runs


def test_a_name_without_an_owner_is_a_run_or_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no run alhpa either; runs here: alpha\. Did you mean 'alpha'\?"):
        refuse_bare_name("alhpa")
    refuse_bare_name("Qwen/Qwen2-7B")
    refuse_bare_name(str(place))
    monkeypatch.setattr(inputs.hub, "is_cached", lambda name: True)
    refuse_bare_name("gpt2")


def test_models_are_runs_recipes_backbones_or_ids(place: Path) -> None:
    run = str(place / "results" / "alpha")
    check_models([run, "polar", "a/b", "resource/recipes/published/polar.yaml"])
    with pytest.raises(UserError, match=r"there is no recipe nowhere\.yaml"):
        check_models([run, "nowhere.yaml"])
    (place / "results" / "alpha" / "record.json").unlink()
    with pytest.raises(UserError, match="alpha is not finished"):
        check_models([run])


# Own data


def test_where_a_run_has_its_items_from(place: Path) -> None:
    run = place / "results" / "alpha"
    assert named_data(run, "dev") is None and named_data(place / "nobody", "dev") is None
    name_data(run, train=place / "data" / "data_train.json")
    path, digest = named_data(run, "dev") or (None, None)
    assert (path, digest) == (place / "data" / "data_dev.json", sha256(place / "data" / "data_dev.json"))
    assert named_data(run, "test") == (place / "data" / "data_test.json", None)  # beside the training items
    assert load_own(None, "test", [run])[1] == place / "data" / "data_test.json"
    # What it was last scored on goes first.
    record = {"splits": {"dev": {"data": str(place / "mine.json"), "data_sha256": "1"}}, "data": {}}
    write_json(run / "record.json", record)
    assert named_data(run, "dev") == (place / "mine.json", "1")
    for text in ("{", "[]", '{"splits": 1}'):
        write_text(run / "record.json", text)
        assert named_data(run, "dev") is None


def test_what_is_given_goes_first(place: Path) -> None:
    name_data(place / "results" / "alpha", dev=place / "data" / "data_dev.json")
    make_split(place / "other", "dev", 3)
    items, path, notes = load_own(place / "other", "dev", [place / "results" / "alpha"])
    assert (len(items), path, notes) == (3, place / "other" / "data_dev.json", [])


def test_a_relative_path_of_a_record_is_found_from_anywhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place / "results" / "alpha"
    write_json(
        run / "record.json", {"splits": {}, "data": {"dev": {"path": "resource/data/sample.json", "sha256": "0"}}}
    )
    monkeypatch.chdir(tmp_path)
    found = named_data(run, "dev")
    assert found is not None and found[0].is_file() and found[0].is_absolute()


def test_files_that_changed_are_named(place: Path) -> None:
    run, path = place / "results" / "alpha", split_path(place / "data", "dev")
    name_data(run, dev=path)
    assert changed_note(run, "dev", path) == ""
    path.write_bytes(path.read_bytes() + b"\n")
    assert f"{path} has changed since alpha was made: sha256 " in changed_note(run, "dev", path)
    assert changed_note(run, "dev", place / "data" / "data_test.json") == ""


def test_a_run_that_can_be_scored(tmp_path: Path) -> None:
    write_json(record_path(tmp_path), SCORABLE)
    record = read_run(tmp_path)
    assert record.as_json() == SCORABLE | {"run": tmp_path.name}
    assert (record.recipe.backbone, record.recipe.epoch, record.training) == ("polar", 3, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": {"backbone": "polar", "lr": "high"}}, "record.json is damaged: recipe: lr"),
        ({"prompt": {"name": "korean"}}, "it lacks prompt.text, prompt.sha256"),
    ],
)
def test_a_record_that_cannot_be_scored_by_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_json(record_path(tmp_path), SCORABLE | change)
    with pytest.raises(UserError, match=words):
        read_run(tmp_path)


def test_a_vote_has_no_model(tmp_path: Path) -> None:
    write_json(record_path(tmp_path), {"run": "vote", "splits": {}})
    for read in (read_run, lambda folder: check_models([str(folder)])):
        with pytest.raises(UserError, match=r"is a vote, .*there is no model to use in it"):
            read(tmp_path)


def begun(folder: Path, step: int, **inputs: Any) -> Path:
    """A whole checkpoint of a run in `folder` that was begun with `inputs`; its states are never read here."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    log = {"global_step": step, "log_history": [{"step": step, "eval_accuracy": 0.5}]}
    write_json(checkpoint / "trainer_state.json", log)
    for name in STATES:
        write_text(checkpoint / name, "made")
    place = Place.at(folder, {"recipe": asdict(RECIPE), "inputs": inputs})
    return settle(place, {"step": step, "best": step, "optimizer": "fp32", "weights": "adapter"})


RECIPE = make_recipe({"backbone": "polar", "method": "lora"}, "here")


def test_an_unfinished_run_goes_on_with_what_it_began_with(place: Path) -> None:
    folder = place / "results" / "begun"
    hashes = gather(RECIPE, folder, place / "data", [], None).hashes
    begun(folder, 4, **hashes, base_revision="c" * 40)
    # The files for people may be damaged or gone.
    write_text(folder / "inputs.json", "[")
    write_text(folder / "recipe.yaml", "a: [")
    assert gather(RECIPE, folder, place / "data", [], None).hashes == hashes
    found = began_with(folder)
    assert found is not None and found.commits == {"base_revision": "c" * 40, "tokenizer_revision": None}
    with pytest.raises(UserError, match=r"begun holds an unfinished run with other settings: lr was 2e-05, now 0\.1"):
        gather(RECIPE.replace(lr=0.1), folder, place / "data", [], None)
    with pytest.raises(UserError, match=r"begun holds an unfinished run on other inputs: train had 6 items, now 3"):
        gather(RECIPE, folder, place / "data", [], 3)
    begun(folder, 8, **{**hashes, "dev": ["0", "5"]})
    with pytest.raises(UserError, match=r"checkpoint-8 does not say what it began with \(dev is .*Delete .*begun"):
        gather(RECIPE, folder, place / "data", [], None)


def test_an_unfinished_run_of_an_older_version_is_left_alone(place: Path) -> None:
    folder = place / "results" / "begun"
    hashes = gather(RECIPE, folder, place / "data", [], None).hashes
    write_text(folder / "recipe.yaml", RECIPE.dump())
    checkpoint = begun(folder, 4, **hashes)
    (checkpoint / "whole.json").unlink()
    write_text(checkpoint / "training_args.bin", "pickled")
    with pytest.raises(
        UserError, match=r"unfinished run of an older version .*checkpoint-4, .*delete .*checkpoints to"
    ):
        gather(RECIPE, folder, place / "data", [], None)


def test_a_run_without_a_whole_checkpoint_begins_from_the_start(place: Path) -> None:
    folder = place / "results" / "begun"
    hashes = gather(RECIPE, folder, place / "data", [], None).hashes
    write_text(folder / "recipe.yaml", RECIPE.dump())
    (begun(folder, 4, **hashes) / "optimizer.pt").write_text("mad", encoding="utf-8")
    assert began_with(folder) is None
    assert gather(RECIPE.replace(lr=0.1), folder, place / "data", [], None).hashes == hashes
    (folder / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="begun is no run and holds checkpoints, which training would overwrite"):
        gather(RECIPE, folder, place / "data", [], None)


def test_a_prompt_that_changed_in_the_record_is_named(tmp_path: Path) -> None:
    write_json(record_path(tmp_path), SCORABLE | {"prompt": {**SCORABLE["prompt"], "text": "another"}})
    with pytest.raises(UserError, match="the prompt's text does not have the sha256 beside it"):
        read_run(tmp_path)


def test_answers_that_are_not_those_of_the_record_are_refused(place: Path) -> None:
    run = place / "results" / "alpha"
    scores = run / "scores_dev.jsonl"
    record = stored(run)
    record["splits"]["dev"]["files"] = {scores.name: Digest.of_text(scores.read_text(encoding="utf-8")).as_json()}
    write_json(record_path(run), record)
    items = load_items(place / "data" / "data_dev.json")
    asked = (["alpha"], items, place / "data" / "data_dev.json", "dev", place / "results")
    assert len(read_sources(*asked)) == 1
    scores.write_bytes(scores.read_bytes() + b"\n")
    told = r"alpha holds other answers for dev .*scores_dev\.jsonl has .* instead.*run\.test --model_id .* --split dev"
    with pytest.raises(UserError, match=told):
        read_sources(*asked)
    scores.unlink()
    with pytest.raises(UserError, match=r"scores_dev\.jsonl is gone"):
        read_sources(*asked)


def test_where_a_run_is_needed_an_adapter_is_told_how_to_become_one(tmp_path: Path) -> None:
    folder = tmp_path / "its adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    for act in (named_model, lambda name: check_models([name])):
        with pytest.raises(UserError, match=r"is an adapter of another tool.*run\.test --model_id '.*its adapter'"):
            act(str(folder))
    (folder / "model.safetensors").touch()
    check_models([str(folder)])
