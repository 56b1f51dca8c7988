"""What a record notes of a base model from the hub, and the command that makes lost answers again."""

import shlex
from pathlib import Path

import pytest
from huggingface_hub import constants

from src.console.cli import UserError
from src.files.digests import digests
from src.files.paths import record_path
from src.files.writing import write_json, write_text
from src.model.recipes import make_recipe
from src.runs.facts import digests_json
from src.runs.noted import base_noted, refuse_other_results, refuse_other_weights, remedy
from src.runs.record import Record

COMMIT = "a" * 40


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base model `owner/base` in the hub's cache, and `run`, whose record notes its files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--owner--base" / "snapshots" / COMMIT
    for name in ("config.json", "model.safetensors"):
        write_text(snapshot / name, name)
    noted = digests_json(digests(snapshot, ("config.json", "model.safetensors")))
    recipe = {"model_id": "owner/base", "method": "lora"}
    write_json(
        record_path(tmp_path / "run"), {"run": "run", "recipe": recipe, "base_revision": COMMIT, "base_files": noted}
    )
    return snapshot


def test_what_the_cache_lacks_is_downloaded_and_no_difference(snapshot: Path, tmp_path: Path) -> None:
    (snapshot / "model.safetensors").unlink()  # only the config has been fetched on this machine so far
    refuse_other_weights(tmp_path / "run", Record.load(tmp_path / "run"))


def test_a_changed_file_of_the_cache_is_named(snapshot: Path, tmp_path: Path) -> None:
    write_text(snapshot / "model.safetensors", "model.safetensorz")
    with pytest.raises(UserError, match=r"model\.safetensors has sha256"):
        refuse_other_weights(tmp_path / "run", Record.load(tmp_path / "run"))


def test_the_command_for_a_vote_names_its_runs_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.files.paths.RESULTS", tmp_path / "results")
    folders = tmp_path / "results" / "near", tmp_path / "other disk" / "far", tmp_path / "moved [1]" / "went"
    for folder in folders:
        write_json(record_path(folder), {"run": folder.name})
    vote = tmp_path / "moved [1]" / "vote"
    files = [str(folder / "scores_test.jsonl") for folder in folders[:2]]
    voters: list[dict[str, object]] = [{"run": "experts-polar", "file": files[0], "experts": files}]
    voters += [{"run": "went", "file": "/gone/went/scores_test.jsonl"}, {"run": "; rm x", "file": 3}]
    write_json(record_path(vote), {"run": "vote", "splits": {"test": {"voters": voters}}})
    for split in ("test", "dev"):
        told = shlex.split(remedy(vote, Record.load(vote), split))
        assert told[3:7] == ["near", str(folders[1]), str(folders[2]), "; rm x"]
        assert told[7:] == ["--split", split, "--out", str(vote)]


def test_chains_may_be_deleted_and_what_makes_them_again_samples_as_before(tmp_path: Path) -> None:
    run = tmp_path / "reasons"
    names = ("scores_dev.jsonl", "reasoning_dev.jsonl")
    for name in names:
        write_text(run / name, name)
    how = {"samples": 8, "temperature": 0.7, "top_p": 1.0, "max_new_tokens": 64, "seed": 3, "chains": 16}
    result = {"files": digests_json(digests(run, names)), "reasoning": how}
    write_json(record_path(run), {"run": "reasons", "recipe": {}, "splits": {"dev": result}})
    record = Record.load(run)
    (run / names[1]).unlink()
    refuse_other_results(run, record, "dev")
    (run / names[0]).unlink()
    with pytest.raises(UserError, match=r"scores_dev\.jsonl is gone"):
        refuse_other_results(run, record, "dev")
    flags = "--sampling_seed 3 --samples 8 --temperature 0.7 --top_p 1.0 --max_new_tokens 64"
    assert remedy(run, record, "dev") == f"python -m run.test --model_id {run} --split dev {flags}"


def test_notes_beside_a_base_model_are_not_of_it(tmp_path: Path) -> None:
    for name in ("config.json", "vocab.txt", "notes.txt", "README.md"):
        write_text(tmp_path / name, name)
    recipe = make_recipe({"model_id": str(tmp_path), "method": "lora"}, "here")
    assert list(base_noted(recipe)) == ["config.json", "vocab.txt"]
