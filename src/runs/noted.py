"""What a record notes of files, compared with the files: weights before they are loaded, scores before they are used.

Records of older versions note nothing; then nothing is compared.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src import task
from src.console.cli import UserError
from src.console.start import find
from src.files import paths
from src.files.digests import Digest, differences, digests
from src.files.locks import at_work
from src.files.paths import MODEL, record_path, weights_folder
from src.files.sealed import Broken, read_seal
from src.model import hub
from src.model.recipes import Recipe
from src.runs.facts import JOINED, Result
from src.runs.record import Record

OF_A_MODEL = (".json", ".safetensors", ".model", ".jinja", "vocab.txt", "merges.txt")
"""Endings of the files that loading a model and its tokenizer reads. Other texts are notes and licences."""


def weights_noted(folder: Path) -> dict[str, Digest]:
    """Name, relative to the run's folder → digest of the weights and tokenizer files that a training has just left."""
    kept = weights_folder(folder)
    assert kept is not None, folder
    try:
        _, noted = read_seal(kept)
    except Broken as error:
        raise UserError(f"{kept} cannot be used: {error}. Start the same command again.") from error
    return {f"{kept.name}/{name}": digest for name, digest in noted.items() if name.endswith(OF_A_MODEL)}


def base_noted(recipe: Recipe) -> dict[str, Digest]:
    """Name → digest of the base model's files; {} when they are not on this machine yet."""
    folder = base_folder(recipe)
    if folder is None:
        return {}
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(OF_A_MODEL) and path.is_file())
    return digests(folder, names, f"check {recipe.backbone}")


def base_folder(recipe: Recipe) -> Path | None:
    """Where this machine has the base model: its folder, or the snapshot in the hub's cache."""
    source = find(recipe.model_id)
    if Path(source).is_dir():
        return Path(source)
    config = hub.cached_file(source, "config.json", recipe.revision)
    return config.parent if config else None


def refuse_other_weights(folder: Path, record: Record) -> None:
    """UserError when weights or tokenizer files of a run, or those of its base model, are not what they were."""
    run = record.weights_in(folder)
    if found := differences(run, record.noted_files, f"check {run.name}"):
        raise UserError(
            f"{run} does not hold the weights that {record_path(folder)} speaks of: {'; '.join(found)}. "
            f"They were damaged or changed, or the record is another run's. "
            f"Put the files back from a copy, or delete {run} and train it again."
        )
    base = base_folder(record.pinned_recipe)
    if any(name.startswith(MODEL + "/") for name in record.noted_files) or base is None:
        return
    noted = record.noted_base
    if hub.is_hub_id(record.recipe.model_id):  # What the cache lacks is downloaded, of the commit of the record.
        noted = {name: digest for name, digest in noted.items() if (base / name).is_file()}
    if found := differences(base, noted, f"check {record.recipe.backbone}"):
        raise UserError(
            f"{base} is not the base model that {record_path(folder)} speaks of: {'; '.join(found)}. "
            "Put the files back or download them again, or delete the run and make it anew."
        )


def differing_results(folder: Path, result: Result) -> list[str]:
    """How the files of a scored split or a vote differ from what the record notes of them. The chains of reasoning,
    which are large and on which no answer rests, may be deleted.
    """
    noted = {
        name: digest
        for name, digest in result.noted_files.items()
        if not name.startswith("reasoning_") or (folder / name).is_file()
    }
    return differences(folder, noted)


def refuse_other_results(folder: Path, record: Record, split: str, orders: int = 1) -> None:
    """UserError when scores or predictions of a run or vote are not those that its record speaks of."""
    result = record.results(orders).get(split)
    if result is None or not (found := differing_results(folder, result)):
        return
    raise UserError(
        f"{folder} holds other answers for {split} than {record_path(folder).name} speaks of: {'; '.join(found)}. "
        f"{f'The folder {busy}. ' if (busy := at_work(folder)) else ''}"
        "The command that wrote them was interrupted, or they were damaged or edited. "
        f"Make them again: {remedy(folder, record, split, orders)}"
    )


def remedy(folder: Path, record: Record, split: str, orders: int = 1) -> str:
    """The command that makes the answers of a run or vote again."""
    where = shlex.quote(str(folder))
    many = f" --orders {orders}" if orders > 1 else ""
    if record.is_vote:
        of_splits = record.results(orders)
        result = of_splits.get(split) or next(iter(of_splits.values()), None)  # who voted on another split
        if getattr(result, "rule", None) in JOINED.values():
            return "the command python -m run.reproduce --folds … that made them"
        voters = [_voter(folder, one) for voter in getattr(result, "voters", ()) for one in _experts(voter)]
        rule = (getattr(result, "fitted", None) or {}).get("rule")
        many += f" --rule {shlex.quote(rule)}" if isinstance(rule, str) else ""
        return f"{' '.join(['python -m run.vote', *voters])} --split {split} --out {where}{many}{task.flag()}"
    return f"python -m run.test --model_id {where} --split {split}{many}{_sampling(record, split, orders)}{task.flag()}"


def _sampling(record: Record, split: str, orders: int) -> str:
    """The flags of the chains of reasoning that the answers of a run come from."""
    result = record.results(orders).get(split)
    how = (result.reasoning if result else None) or {}
    flags = {"seed": "sampling_seed", **{name: name for name in ("samples", "temperature", "top_p", "max_new_tokens")}}
    return "".join(f" --{flag} {how[key]}" for key, flag in flags.items() if isinstance(how.get(key), int | float))


def _experts(voter: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs that a voter was joined from, each as a voter; else the voter."""
    files = voter.get("experts")
    found = [Path(str(file)) for file in files] if isinstance(files, list) else []
    return [{"run": file.parent.name, "file": file} for file in found] or [voter]


def _voter(folder: Path, voter: Mapping[str, Any]) -> str:
    """How `run.vote` is told of a voter again: a run by its name or its folder, wherever it lies now, else its file."""
    name, place = str(voter.get("run")), Path(str(voter.get("file"))).parent
    known = {**{path: str(path) for path in (place, folder.parent / name)}, paths.RESULTS / name: name}
    there = [words for path, words in known.items() if path.name == name and record_path(path).is_file()]
    return shlex.quote(next(iter(there), name))
