"""LoRA adapters that other tools left (TRL, LLaMA-Factory, axolotl, unsloth): a folder, or a repository of the hub,
with `adapter_config.json` and `adapter_model.safetensors`.

The config is read as data. Only settings that peft's own LoRA reads are taken from it, and they are checked before
anything is loaded. `auto_mapping` names a Python class, and is not looked at. Neither torch nor peft is needed here.
"""

import argparse
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.console.cli import UserError
from src.console.start import find
from src.files.kinds import fits
from src.files.reading import parse_json, read_text, shortened
from src.model import hub

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
WHOLE = ("model.safetensors", "model.safetensors.index.json")
"""Weights of a whole model: a folder that has them is no adapter's alone."""
PATTERNS = (
    *(CONFIG, WEIGHTS, "adapter_model.bin", "tokenizer*", TEMPLATE, "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt"),
)
"""Files of a repository that are downloaded."""
MOST_BYTES = 16 * 2**20
KINDS: Mapping[str, Any] = {
    "r": int,
    "lora_alpha": int | float,
    "lora_dropout": int | float,
    "target_modules": str | list[str],
    "exclude_modules": str | list[str],
    "modules_to_save": list[str],
    "target_parameters": list[str],
    "layers_to_transform": int | list[int],
    "layers_pattern": str | list[str],
    "rank_pattern": dict[str, int],
    "alpha_pattern": dict[str, int | float],
    "fan_in_fan_out": bool,
    "use_rslora": bool,
    "use_dora": bool,
}
"""Settings that are taken, and the kinds of their values."""
PATTERNED = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern")
"""Settings whose text, or whose keys, are regular expressions."""
LONGEST_PATTERN = 4096
NO_MATTER = (
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode"),
    *("peft_version", "megatron_core", "runtime_config", "qalora_group_size", "loftq_config", "eva_config"),
)
"""Settings that change nothing in how a finished adapter computes; the base and the types are looked at by themselves.
"""
DRAWN = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that drew the first weights and left the base as it was."""
QUANTISED = ("-bnb-4bit", "-4bit", "-awq", "-gptq")
MERGE = (
    "Merge it into its base where it was trained (peft: model.merge_and_unload().save_pretrained(FOLDER), and the "
    "tokenizer's save_pretrained), and score that folder."
)


@dataclass(frozen=True)
class ForeignAdapter:
    """An adapter of another tool.

    source         folder or hub id, as it was given
    folder         where its files lie on this machine
    commit         of a repository
    settings       of its config, as peft's `LoraConfig` takes them
    base           the base model that the config names, and the revision of it; None when it names none
    """

    source: str
    folder: Path
    commit: str | None
    settings: Mapping[str, Any]
    base: str | None
    base_revision: str | None = None

    @property
    def has_template(self) -> bool:
        """Whether a tokenizer with a chat template lies beside it."""
        if not any((self.folder / name).is_file() for name in TOKENIZER):
            return False
        return (self.folder / TEMPLATE).is_file() or bool(
            _object(self.folder / "tokenizer_config.json", "chat_template")
        )

    @property
    def name(self) -> str:
        """The last part of its source, with that of the training's folder for a checkpoint."""
        parts = [part for part in Path(self.source).resolve().parts if part != "/"] if self.commit is None else []
        parts = parts or self.source.split("/")
        return "-".join(parts[-2:] if parts[-1].startswith("checkpoint-") else parts[-1:])


def find_adapter(source: str | None, revision: str | None = None) -> ForeignAdapter | None:
    """The adapter at `source`, a folder or a hub id; None where there is none. UserError when it is none that can be
    scored.
    """
    if not source:
        return None
    place = Path(find(source))
    if place.is_dir():
        if not (place / CONFIG).is_file() or any((place / name).is_file() for name in WHOLE):
            return None
        return _read(source, place, None)
    if not hub.is_hub_id(source) or "/" not in source:
        return None
    commit = hub.find_commit(source, revision)
    folder = _downloaded(source, commit)
    return None if folder is None else _read(source, folder, commit)


def refuse_adapter(source: str) -> None:
    """UserError for the folder of an adapter, where a run or a whole model is needed."""
    place = Path(find(source))
    if (place / CONFIG).is_file() and not any((place / name).is_file() for name in (*WHOLE, "config.json")):
        raise UserError(
            f"{source} is an adapter of another tool, which run.test makes a run of: "
            f"python -m run.test --model_id {shlex.quote(source)} --split dev. It says the run's name: give that here."
        )


def _downloaded(source: str, commit: str | None) -> Path | None:
    """The folder in the hub's cache with the adapter's files; None for a repository that has no adapter, or a whole
    model.
    """
    if hub.cached_file(source, "config.json", commit) and not hub.cached_file(source, CONFIG, commit):
        return None
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    here = {"revision": commit, "local_files_only": bool(hub.unreachable())}
    try:
        with hub.messages(source, commit):
            hf_hub_download(source, CONFIG, **here)  # type: ignore[arg-type]
    except UserError as error:
        if isinstance(error.__cause__, errors.EntryNotFoundError):  # also where the cache lacks it
            return None
        raise
    if any(hub.cached_file(source, name, commit) for name in WHOLE):
        return None
    with hub.messages(source, commit):
        return Path(snapshot_download(source, allow_patterns=list(PATTERNS), **here))  # type: ignore[arg-type]


def _object(path: Path, key: str = "") -> Any:
    """The JSON object in `path`, or its value of `key`; None when the file is missing or holds something else."""
    try:
        found = parse_json(read_text(path, MOST_BYTES))
    except (ValueError, OSError, UserError):
        return None
    return (found.get(key) if key else found) if isinstance(found, dict) else None


def _read(source: str, folder: Path, commit: str | None) -> ForeignAdapter:
    raw = _object(folder / CONFIG)
    if raw is None:
        raise UserError(f"{source}: {CONFIG} is damaged: it is no JSON object. Download or copy it again.")
    settings = lora_settings(raw, source)
    if not (folder / WEIGHTS).is_file():
        pickle = (
            " adapter_model.bin is a pickle, which can run code, and is not read."
            * (folder / "adapter_model.bin").is_file()
        )
        raise UserError(
            f"{source} holds no complete adapter: there is no {WEIGHTS}.{pickle} "
            "Save it again where it was trained: model.save_pretrained(FOLDER) writes it."
        )
    base, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    if not fits(base, str | None) or not fits(revision, str | None):
        raise UserError(f"{source}: {CONFIG} names its base by {shortened(repr((base, revision)), 200)}, no name.")
    return ForeignAdapter(source, folder, commit, settings, base or None, revision or None)


def lora_settings(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The settings in an adapter's config that peft's LoRA is made with. UserError for another kind of adapter, and for
    settings that change how it computes and are not read here.
    """
    where = f"{source}: {CONFIG}"
    if (kind := raw.get("peft_type")) != "LORA":
        raise UserError(f"{where}: peft_type: found {shortened(repr(kind), 80)}, allowed: 'LORA'. {MERGE}")
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{where}: task_type: found {shortened(repr(raw['task_type']), 80)}, allowed: 'CAUSAL_LM'; "
            "the letters are read from a language model's head."
        )
    drawn = raw.get("init_lora_weights")
    if not any(drawn is one or (isinstance(one, str) and drawn == one) for one in DRAWN):
        raise UserError(
            f"{where}: init_lora_weights: found {shortened(repr(drawn), 80)}, which changed the base's own weights. "
            f"{MERGE}"
        )
    known = {*KINDS, *NO_MATTER, "init_lora_weights", "bias"}
    odd = {key: value for key, value in raw.items() if key not in known and value}
    if raw.get("bias", "none") != "none":
        odd["bias"] = raw["bias"]
    if odd:
        shown = ", ".join(f"{key}: {value!r}" for key, value in odd.items())
        raise UserError(f"{where} sets {shortened(shown, 200)}, which is no LoRA that is read here. {MERGE}")
    settings = {key: raw[key] for key in KINDS if raw.get(key) is not None}
    wrong = [key for key, value in settings.items() if not fits(value, KINDS[key])]
    if wrong or not 0 < settings.get("r", 8) < 2**16:
        words = ", ".join(f"{key}: {settings[key]!r}" for key in wrong or ["r"])
        raise UserError(f"{where} is damaged: {shortened(words, 200)}. Download or copy it again.")
    if problem := _pattern_problem(settings):
        raise UserError(f"{where} is damaged: {problem}. Download or copy it again.")
    targets = settings.get("target_modules", [])
    if settings.get("use_dora") and "lm_head" in (targets if isinstance(targets, list) else [targets]):
        raise UserError(f"{where}: DoRA on lm_head, of which only the letters' rows are read. {MERGE}")
    return settings


def _pattern_problem(settings: Mapping[str, Any]) -> str:
    """What is wrong with the first regular expression among the settings that peft would match names of modules with;
    empty when nothing is.
    """
    for key in PATTERNED:
        value = settings.get(key, ())
        for one in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
            try:
                if len(one) > LONGEST_PATTERN:
                    return f"a pattern of {key} has {len(one):,} characters; allowed: {LONGEST_PATTERN:,}"
                re.compile(one)
            except (re.error, RecursionError, OverflowError) as error:
                return f"{key}: {shortened(repr(one), 80)} is no regular expression ({shortened(str(error), 80)})"
    return ""


def with_base(arguments: argparse.Namespace, adapter: ForeignAdapter) -> argparse.Namespace:
    """`arguments` as if the adapter's base had been named: its recipe is that of the base with the adapter's shape.

    UserError when the base is not known, or is named by the file alone and its Python code would run.
    """
    base = arguments.base or adapter.base
    if base is None:
        raise UserError(f"{adapter.source}: {CONFIG} names no base model. Give it: --base MODEL")
    if arguments.base is None and arguments.trust_remote_code:
        raise UserError(
            f"--trust_remote_code: {adapter.source} names {base} as its base, and a file's word does not suffice to "
            f"run code. Read it; if you trust it, name it yourself: --base {base}"
        )
    if not Path(find(base)).is_dir() and (not hub.is_hub_id(base) or base.count("/") != 1):
        raise UserError(
            f"{adapter.source}: its base {base} is not on this machine. "
            "Give the folder or hub id of the same model: --base MODEL"
        )
    shape: dict[str, Any] = {"lora_r": adapter.settings.get("r", 8)}
    if float(alpha := adapter.settings.get("lora_alpha", 8)).is_integer() and alpha > 0:
        shape["lora_alpha"] = int(alpha)
    if 0 <= (dropout := adapter.settings.get("lora_dropout", 0.0)) < 1:
        shape["lora_dropout"] = dropout
    targets = adapter.settings.get("target_modules")
    shape |= {"lora_targets": ",".join(sorted(targets))} if isinstance(targets, list) and targets else {}
    revision = adapter.base_revision if arguments.base is None else None
    named = {"model_id": base, "revision": revision, "name": arguments.name or adapter.name}
    return argparse.Namespace(**{**vars(arguments), **named, **shape})


def base_words(adapter: ForeignAdapter, base: str) -> list[str]:
    """What to know of the base, a line each."""
    named = f"{adapter.source}: a LoRA adapter of rank {adapter.settings.get('r', 8)} on {base}"
    lines = [named + ("" if base == adapter.base else f" (--base; its config names {adapter.base})")]
    if base == adapter.base and base.lower().endswith(QUANTISED):
        whole = base
        for end in QUANTISED:
            whole = whole[: -len(end)] if whole.lower().endswith(end) else whole
        whole = whole.removesuffix("-unsloth")
        lines.append(
            f"{base} is kept quantised, as it was trained on. Where it cannot be loaded, or to score the adapter on "
            f"the whole weights (other numbers): --base {whole}, or with --method qlora in 4 bits again"
        )
    return lines
