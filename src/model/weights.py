"""Checks that weight files hold what a config asks for, by their headers alone, before the weights are loaded.

transformers fills in what a file lacks with random values, and only warns. Here transformers' own loading runs over
tensors on the meta device. So it also matches names that it translates (experts that it joins, older names). Surplus
tensors that do no harm, such as the vision tower of a model used for text, are accepted.
"""

import contextlib
import copy
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers.utils import cached_file

from src.console.cli import UserError
from src.files.reading import read_json
from src.model import hub

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_SETTINGS = (
    *("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_version"),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern"),
    *("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "use_rslora", "use_dora"),
)
"""What may differ from peft's defaults in the config of an adapter that a run keeps: the last two lines in those of
other tools (src/model/foreign.py). Other settings name Python modules, caches and files.
"""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
EMBEDDINGS = re.compile(r"\.(embed_tokens|lm_head)(\.base_layer)?\.weight$")
SHOWN = 6
"""Most names that a message lists."""

Headers = dict[str, torch.Tensor]
"""The tensors of files by name, on the meta device: shapes and dtypes without values."""


def class_of(config: Any) -> Any:
    """The class of a config's model; None when its code comes with the weights."""
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


def quantisation_of(config: Any) -> str | None:
    """How the weights of a config are quantised on the disk, as in `bitsandbytes, 4 bits`; None when they are not."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    values = found if isinstance(found, Mapping) else found.to_dict()
    method = values.get("quant_method") or "bitsandbytes"
    method = str(getattr(method, "value", method)).lower()  # a loaded model has an enum's member
    bits = 4 if values.get("load_in_4bit") else 8 if values.get("load_in_8bit") else values.get("bits")
    return f"{method}, {bits} bits" if bits else method


def check_weights(config: Any, source: str, repository: Mapping[str, Any]) -> Any:
    """The model of `config` on the meta device, when the weight files of `source` (a folder or a hub id) hold all of
    it. UserError names the tensors that are missing or of another shape.

    None when only loading can tell: for a model with its own code, or with another quantisation than bitsandbytes' 4
    bits. repository: `revision` and `local_files_only` of a hub id, whose files are downloaded when they are not here
    yet.
    """
    with hub.messages(source, repository.get("revision")):
        files = weight_files(config, source, repository)
        headers = read_headers(files)
    how = quantisation_of(config)
    if class_of(config) is None or how not in (None, "bitsandbytes, 4 bits"):
        return None
    if how:
        headers = _dequantised(headers, files)
    bare_model(config, source)
    try:
        with quietly():
            model, found = class_of(config).from_pretrained(
                None,
                config=_unquantised(config),
                state_dict=headers,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except RuntimeError:  # tensors that transformers would join do not fit together
        refuse_holes(headers, source)
        return None
    refuse_incomplete(model, found, source)
    return model


def bare_model(config: Any, source: str) -> Any:
    """The model of `config` on the meta device, unquantised; None for a model with its own code. UserError when the
    config's values make no model.
    """
    if class_of(config) is None:
        return None
    try:
        with quietly(), torch.device("meta"):
            return class_of(config)(_unquantised(config))
    except Exception as error:  # invalid values raise errors of any kind
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source}: no model can be made of its config.json: {text}. Download or copy it again."
        ) from error


def _unquantised(config: Any) -> Any:
    """A copy of `config` without its quantisation."""
    whole = copy.deepcopy(config)
    if hasattr(whole, "quantization_config"):
        del whole.quantization_config
    return whole


def weight_files(config: Any, source: str, repository: Mapping[str, Any]) -> list[Path]:
    """The safetensors files of `source`, found as transformers finds them: a single file, else those of an index.
    UserError when there are none.
    """

    def find(name: str) -> Path | None:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **repository)
        return Path(found) if found else None

    single = find(getattr(config, "transformers_weights", None) or SINGLE)
    if single:
        return [single]
    index = find(INDEX)
    if index is None:
        there = [path.name for path in sorted(Path(source).iterdir())] if Path(source).is_dir() else []
        raise UserError(hub.no_safetensors(source, there))
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise ValueError("a name of another folder")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{source} holds no complete model: {INDEX} is damaged. Download or copy it again.") from error
    if not Path(source).is_dir():
        from transformers.utils.hub import get_checkpoint_shard_files

        shards, _ = get_checkpoint_shard_files(source, str(index), **repository)  # downloads several at a time
        return [Path(path) for path in shards]
    paths = [Path(source) / name for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UserError(
            f"{source} holds no complete model: {INDEX} names {_some(missing)}, "
            f"which {'is' if len(missing) == 1 else 'are'} not there. Download or copy it again."
        )
    return paths


def read_headers(files: Iterable[Path]) -> Headers:
    """The tensors of safetensors files, without values. UserError for a file that is cut off or damaged."""
    found: Headers = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # the file is no dictionary
                    part = file.get_slice(name)
                    dtype = DTYPES.get(part.get_dtype(), torch.uint8)
                    found[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
        except OSError:
            raise
        except Exception as error:
            raise UserError(
                f"{path.parent} holds no complete model: {path.name} is damaged or was not copied whole "
                f"({str(error).splitlines()[0]}). Download or copy it again."
            ) from error
    return found


def _dequantised(headers: Headers, files: Sequence[Path]) -> Headers:
    """`headers` of a file with bitsandbytes' 4-bit tensors as if they had not been quantised.

    Each such tensor comes with its scales and a small JSON with its shape. A tensor that lacks its scales is left out.
    """
    found = {name: value for name, value in headers.items() if not _is_scale(name, headers)}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                weight, _, state = name.partition(".quant_state.bitsandbytes__")
                if not state or weight not in found:
                    continue
                needed = ["absmax", "quant_map"]
                values = json.loads(bytes(file.get_tensor(name).tolist()))
                needed += ["nested_absmax", "nested_quant_map"] if "nested_blocksize" in values else []
                if all(f"{weight}.{part}" in headers for part in needed):
                    found[weight] = torch.empty(values["shape"], dtype=torch.float32, device="meta")
                else:
                    del found[weight]
    return found


def _is_scale(name: str, headers: Headers) -> bool:
    """Whether a tensor is a scale of a 4-bit one."""
    owner, between, _ = name.partition(".weight.")
    return bool(between) and f"{owner}.weight" in headers


def refuse_incomplete(model: Any, found: Mapping[str, Any], source: str) -> None:
    """UserError when the files lack tensors of `model`, or hold tensors of another model.

    found: what transformers found while loading (`output_loading_info`).
    """
    missing, shapes = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    again = "Download or copy it again, or give the model's own config.json."
    if missing:
        tied = (
            ' If the head is the embeddings, config.json has to say "tie_word_embeddings": true.'
            if missing == ["lm_head.weight"]
            else ""
        )
        raise UserError(
            f"{source} lacks {len(missing)} of the tensors that its config asks for: {_some(missing)}. "
            f"They would be random. {again}{tied}"
        )
    if shapes:
        words = [f"{name} is {_size(there)}, by the config {_size(asked)}" for name, there, asked in shapes]
        raise UserError(f"{source}: the weights are not those of its config: {_some(words, '; ')}. {again}")
    if left := sorted(name for name in found["unexpected_keys"] if _matters(name, model)):
        raise UserError(
            f"{source} holds {len(left)} tensors that its config does not ask for: {_some(left)}. "
            f"Without them it is another model. {again}"
        )


def _matters(name: str, model: Any) -> bool:
    """Whether a surplus tensor changes what the model computes: the bias of a layer that has none by the config, or a
    tensor of a layer after the last one.
    """
    owner, _, leaf = name.rpartition(".")
    modules = dict(model.named_modules())
    if owner in modules:
        return leaf in ("weight", "bias") and bool(list(modules[owner].parameters(recurse=False)))
    expected = model.state_dict()
    return any(
        f"{name[: number.start()]}0{name[number.end() :]}" in expected and name[: number.start() - 1] in modules
        for number in re.finditer(r"(?<=\.)\d+(?=\.)", name)
    )


def refuse_holes(headers: Iterable[str], source: str) -> None:
    """UserError when a numbered tensor is missing among others of its kind, such as one expert of many."""
    kinds: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name in headers:
        kinds[re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)].add(tuple(re.findall(r"(?<=\.)(\d+)(?=\.)", name)))
    numbers: dict[tuple[str, int], list[set[str]]] = {}
    for kind, there in kinds.items():
        key = kind.split("{}")[0], len(next(iter(there)))
        known = numbers.setdefault(key, [set() for _ in range(key[1])])
        for index in there:
            for place, number in zip(known, index, strict=True):
                place.add(number)
    holes = [
        kind.format(*index)
        for kind, there in kinds.items()
        for index in product(*numbers[kind.split("{}")[0], len(next(iter(there)))])
        if index not in there
    ]
    if holes:
        raise UserError(f"{source} lacks tensors: {_some(sorted(holes))}. Download or copy it again.")


# Adapters


def refuse_adapter(source: str, repository: Mapping[str, Any]) -> None:
    """UserError when a base model comes with an adapter, or is one: transformers would load it too, and from
    elsewhere the base that it names.
    """
    with hub.messages(source, repository.get("revision")):
        found = cached_file(source, ADAPTER_CONFIG, _raise_exceptions_for_missing_entries=False, **repository)
    if found:
        raise UserError(
            f"{source} holds an adapter ({ADAPTER_CONFIG}), where a whole model is needed. "
            "Merge the adapter into its base first, or give the base alone."
        )


def check_adapter(model: Any, folder: Path, source: str = "", again: str = "Train it again.") -> None:
    """UserError when the adapter in `folder` does not fit `model`: tensors are missing, surplus or of another shape.

    model: a base on the meta device, or one with the adapter loaded on it. source: what messages call the adapter, by
    default its folder; again: how they end.
    """
    source = source or str(folder)
    with hub.messages(str(folder)):
        if not isinstance(model, PeftModel):
            config = adapter_config(folder)
            try:
                model = PeftModel(model, config, low_cpu_mem_usage=True)
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{source} is no adapter for its base model: {str(error).splitlines()[0]}. {again}"
                ) from error
        path = folder / ADAPTER_WEIGHTS
        if not path.is_file():
            raise UserError(f"{folder} holds no complete model: there is no {ADAPTER_WEIGHTS}. Train the run again.")
        there = {name: tuple(value.shape) for name, value in read_headers([path]).items()}
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    asked = {name: tuple(value.shape) for name, value in state.items()}
    # peft saves embeddings and head beside an adapter that targets them, and loads them again.
    beside = {name for name in there.keys() - asked.keys() if EMBEDDINGS.search(name)}
    asked |= {name: tuple(value.shape) for name, value in model.state_dict().items() if name in beside}
    problems = []
    if missing := sorted(asked.keys() - there.keys()):
        problems.append(f"it lacks {_some(missing)}")
    if surplus := sorted(there.keys() - asked.keys()):
        problems.append(f"it holds {_some(surplus)}, for which the base has no place")
    if other := sorted(name for name in asked.keys() & there.keys() if asked[name] != there[name]):
        sizes = [f"{name} is {_size(there[name])}, expected {_size(asked[name])}" for name in other]
        problems.append(_some(sizes, "; "))
    if problems:
        raise UserError(f"{source} is not whole, or not of this base model: {'; '.join(problems)}. {again}")


def adapter_config(folder: Path) -> LoraConfig:
    """The config of a run's adapter. UserError when it is damaged, or has settings that we never write."""
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}/{ADAPTER_CONFIG} is damaged: {error}. Train the run again.") from error
    if not isinstance(config, LoraConfig):
        raise UserError(f"{folder}/{ADAPTER_CONFIG}: found {type(config).__name__}, allowed: LoraConfig.")
    usual = LoraConfig().to_dict()
    found = config.to_dict().items()
    odd = [key for key, value in found if key not in ADAPTER_SETTINGS and (value or None) != (usual.get(key) or None)]
    if odd:
        raise UserError(
            f"{folder}/{ADAPTER_CONFIG} sets {', '.join(odd)}, which no adapter of ours does. Train the run again."
        )
    return config


@contextlib.contextmanager
def quietly(bars: bool = False) -> Iterator[None]:
    """Within, transformers logs nothing, since we report what it finds. bars: its progress bars are still shown."""
    logging = transformers.utils.logging
    level, hidden = logging.get_verbosity(), logging.is_progress_bar_enabled() and not bars
    logging.set_verbosity(logging.CRITICAL)
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if hidden:
            logging.enable_progress_bar()


def _some(words: Sequence[str], between: str = ", ") -> str:
    """The first few of `words`, and how many more there are."""
    more = f"{between}and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return between.join(words[:SHOWN]) + more


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
