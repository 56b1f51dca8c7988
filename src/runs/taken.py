"""Taking an adapter of another tool: its weights become those of a run, which is scored and votes like any other.

The run keeps a copy, since the folder it came from may go on training. What peft reads of it later is written anew: the
config's settings that were checked, and none of its other words.
"""

import shutil
from pathlib import Path
from typing import Any

from peft import LoraConfig

from src.console.cli import UserError
from src.files import full_disk
from src.files.digests import Digest, digests
from src.files.locks import lock_folder
from src.files.paths import ADAPTER
from src.files.sealed import Broken, check_seal, seal
from src.model import load, weights
from src.model.foreign import CONFIG, MERGE, WEIGHTS, ForeignAdapter
from src.model.recipes import Recipe
from src.runs.facts import digests_json

EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
"""What architectures call their embeddings and heads, whose rows are the vocabulary."""


def adapter_facts(adapter: ForeignAdapter) -> dict[str, Any]:
    """The record's entry on where an adapter is from."""
    found = digests(adapter.folder, (CONFIG, WEIGHTS), f"check {adapter.name}")
    where = {"source": adapter.source, "revision": adapter.commit, "base": adapter.base}
    return {**where, "files": digests_json(found)}


def take_adapter(adapter: ForeignAdapter, facts: dict[str, Any], pinned: Recipe, folder: Path) -> Path:
    """The folder of the adapter's copy in the run `folder`, made where it is not there yet, with the tokenizer that
    goes with it. facts: as from `adapter_facts`. UserError when it does not fit the base model of `pinned`.
    """
    kept = folder / ADAPTER
    wanted = {"files": facts["files"], "tokenizer": pinned.tokenizer}
    with lock_folder(folder) as held:
        if kept.is_dir() and _made_of(kept) == wanted:
            return kept
        part = kept.with_name(f"{ADAPTER}.part")
        for path in (part, kept):
            shutil.rmtree(path, ignore_errors=True)
        try:
            with full_disk.told(f"the adapter {adapter.name}", folder):
                _copy(adapter, pinned, part)
                held.refuse_gone()
                seal(part, wanted)
                part.rename(kept)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return kept


def _made_of(kept: Path) -> Any:
    try:
        return check_seal(kept)
    except Broken:
        return None


def _copy(adapter: ForeignAdapter, pinned: Recipe, part: Path) -> None:
    part.mkdir(parents=True)
    shutil.copyfile(adapter.folder / WEIGHTS, part / WEIGHTS)
    try:
        LoraConfig(**adapter.settings, task_type="CAUSAL_LM").save_pretrained(str(part))
    except (TypeError, ValueError) as error:
        raise UserError(f"{adapter.source}: peft does not take its {CONFIG}: {error}") from error
    config, bare = load.check_base(pinned)
    _refuse_other_vocabulary(adapter, config, pinned.model_id)
    if bare is not None:
        weights.check_adapter(bare, part, adapter.source, "If its base is another model, give it: --base MODEL")
    own = adapter.has_template and not pinned.tokenizer
    asked = pinned.replace(tokenizer=str(adapter.folder), tokenizer_revision=None) if own else pinned
    tokenizer = load.load_tokenizer(asked)
    tokenizer.save_pretrained(part)
    whose = "--tokenizer" if pinned.tokenizer else "the adapter's folder" if own else "the base model"
    other = "" if pinned.tokenizer else f". Another: --tokenizer {pinned.model_id if own else 'MODEL'}"
    print(f"tokenizer and chat template of {whose}{other}")


def _refuse_other_vocabulary(adapter: ForeignAdapter, config: Any, base: str) -> None:
    """UserError when the adapter comes with embeddings of another size than those of its base."""
    rows = config.get_text_config().vocab_size
    for name, value in weights.read_headers([adapter.folder / WEIGHTS]).items():
        parts = name.split(".")
        if ".lora_" not in name and any(one in parts for one in EMBEDDINGS) and value.ndim == 2 and len(value) != rows:
            raise UserError(
                f"{adapter.source} was trained with a vocabulary of {len(value):,} tokens, and {base} has {rows:,}: "
                f"{name} does not fit. {MERGE}"
            )


def trained_in(kept: Path) -> int:
    """The number of weights that an adapter has trained."""
    return sum(value.numel() for value in weights.read_headers([kept / WEIGHTS]).values())


def same_adapter(there: Any, facts: dict[str, Any]) -> bool:
    """Whether a record's entry is of the same files as `facts`."""
    found = (there or {}).get("files") or {}
    return {name: Digest.parse(one, name) for name, one in found.items()} == {
        name: Digest.parse(one, name) for name, one in facts["files"].items()
    }
