"""Loads tokenizer, base model and adapter. Only this file knows in which form each method keeps its weights.

    full    all parameters are trained; `optimizer` decides their dtype
    lora    the base in the compute dtype, adapters in fp32
    qlora   the base in NF4 with double quantisation, adapters in fp32

The compute dtype is bf16 on a GPU and fp32 on a CPU, for quantised weights too: an fp16 compute dtype overflows in
Gemma2.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import cached_file

from src import task
from src.console.cli import UserError
from src.console.start import find
from src.files.paths import ADAPTER, MODEL, weights_folder
from src.model import hub, trust, weights
from src.model.adapters import patch_lora_forward
from src.model.backbones import backbones
from src.model.causal import attention_of
from src.model.disk import check_download
from src.model.recipes import Recipe
from src.model.weights import class_of

trust.never_ask()
if not sys.stderr.isatty():  # bars that last a second or two would fill a log
    transformers.utils.logging.disable_progress_bar()


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name`, else this process's GPU, else the CPU."""
    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise UserError(f"--device: found {name!r}, allowed: cpu, cuda, cuda:0 …")
    # With its number, since torch does not treat "cuda" and "cuda:0" as equal.
    device = torch.device("cpu") if name == "cpu" else torch.device("cuda", int(found[1] or 0))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: there is no GPU that torch {torch.__version__} can use here. "
            "Check `nvidia-smi` and that torch is a CUDA build, or leave --device out to run on the CPU."
        )
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs here, numbered from 0.")
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has no bf16; a GPU of the Ampere generation or later is needed."
        )
    return torch.bfloat16


def load_tokenizer(recipe: Recipe, folder: Path | None = None) -> Any:
    """The tokenizer that a run keeps in `folder`, else the recipe's."""
    source = str(folder) if folder else find(recipe.tokenizer or recipe.model_id)
    revision = None if folder else recipe.tokenizer_revision if recipe.tokenizer else recipe.revision
    try:
        with hub.messages(source, revision):
            arguments = _repository_arguments(source, revision)
            tokenizer = AutoTokenizer.from_pretrained(source, **arguments, **_code(recipe, source, arguments))
    except UserError:
        raise
    except Exception as error:  # the library in Rust raises nothing more special, and a class may be any that is named
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{source}: its tokenizer cannot be loaded ({reason}). "
            "Download or copy it again, or name another one: --tokenizer."
        ) from error
    # If the tokenizer's file is missing in a folder, transformers makes an empty tokenizer.
    letters = task.current().letters
    if len({tuple(tokenizer(letter, add_special_tokens=False)["input_ids"]) for letter in letters}) < len(letters):
        raise UserError(
            f"{source}: its tokenizer cannot tell the letters {', '.join(letters)} apart. "
            "Is tokenizer.json there, and whole? Download or copy it again, or name another one: --tokenizer."
        )
    return tokenizer


def _repository_arguments(source: str, revision: str | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a repository of the hub; none for a folder."""
    if not hub.is_hub_id(source):
        return {}
    return {"revision": revision, "local_files_only": bool(hub.unreachable())}


def _adapter_arguments(repository: dict[str, Any]) -> dict[str, Any]:
    """More arguments for a model: transformers looks for an adapter beside it, and asks the hub where we do not."""
    return {"adapter_kwargs": {"local_files_only": True}} if repository.get("local_files_only") else {}


def _code(recipe: Recipe, source: str, arguments: dict[str, Any]) -> dict[str, bool]:
    """The argument of `from_pretrained` that lets Python code of `source` run, which is announced; False else."""
    if not trust.remote_code(recipe):
        return {trust.NAME: False}
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = [cached_file(source, name, **missing, **arguments) for name in trust.CONFIGS]
    trust.announce(source, [Path(path) for path in found if path])
    return {trust.NAME: True}


def load_config(recipe: Recipe, folder: Path | None = None) -> Any:
    """The config of the whole model that a run keeps in `folder`; else the base model's, checked against the table of
    backbones.
    """
    if folder is not None and (folder / "config.json").is_file():
        with hub.messages(str(folder)):
            return _with_valid_padding(AutoConfig.from_pretrained(folder, **_code(recipe, str(folder), {})))
    source = find(recipe.model_id)
    with hub.messages(source, recipe.revision):
        arguments = _repository_arguments(source, recipe.revision)
        config = AutoConfig.from_pretrained(source, **arguments, **_code(recipe, source, arguments))
    _check_expected(recipe, config)
    return _with_valid_padding(config)


def _check_expected(recipe: Recipe, config: Any) -> None:
    """UserError when the config is not the one that the table of backbones describes."""
    facts = backbones().get(recipe.backbone)
    if facts is None or facts.model_id != recipe.model_id:
        return
    found = {key: (getattr(config, key, None), value) for key, value in facts.expected_config.items()}
    wrong = [f"{key} is {is_now!r}, expected {value!r}" for key, (is_now, value) in found.items() if is_now != value]
    if wrong:
        raise UserError(
            f"{recipe.model_id}: the config differs from what is known of this backbone: {', '.join(wrong)}. "
            "Pin another `revision`, or correct its entry in resource/backbones.yaml."
        )


def _with_valid_padding(config: Any) -> Any:
    """`config` without a padding id that lies outside the vocabulary: torch makes no embedding with such an id."""
    text = config.get_text_config()
    pad, vocabulary = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if pad is not None and vocabulary is not None and pad >= vocabulary:
        text.pad_token_id = None
    return config


def load_base(
    recipe: Recipe,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    folder: Path | None = None,
    dequantised: bool = False,
) -> Any:
    """The base model on `device`, or the fully trained one in `folder`; quantised when the method is qlora.

    dtype: of the weights; the compute dtype by default. dequantised: NF4 weights are converted back to that dtype once.
    The numbers are the same, and no pass has to unpack them.
    """
    dtype = dtype or compute_dtype(device)
    config, _ = check_base(recipe, folder)
    arguments: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": attention_of(class_of(config)),
        "device_map": {"": device},
        "use_safetensors": True,
        "trust_remote_code": trust.remote_code(recipe),
    }
    # A model that is quantised on the disk stays as it is.
    if recipe.method == "qlora" and folder is None and not weights.quantisation_of(config):
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    source = str(folder or find(recipe.model_id))
    if folder is None:
        repository = _repository_arguments(source, recipe.revision)
        arguments |= {**repository, **_adapter_arguments(repository)}
    try:
        with hub.messages(source, recipe.revision if folder is None else None), weights.quietly(bars=True):
            arguments |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
            loaded: Any = AutoModelForCausalLM.from_pretrained(source, **arguments)
    except ImportError as error:  # the package that the file's quantisation needs
        raise UserError(f"{source} cannot be loaded: {' '.join(str(error).split())}") from error
    model, found = loaded
    weights.refuse_incomplete(model, found, source)
    if dequantised:
        model = model.dequantize(dtype)
    if device.type == "cpu":
        # On some CPUs bitsandbytes would repack the weights at the first evaluation and compute in bf16 from then on.
        for module in model.modules():
            if "support_avx512bf16_for_cpu" in vars(module):
                vars(module)["support_avx512bf16_for_cpu"] = False
    model.config.use_cache = False
    return model


def check_base(recipe: Recipe, folder: Path | None = None) -> tuple[Any, Any]:
    """(config, model on the meta device) of the base, or of the fully trained model in `folder`.

    Checks that the weight files are whole, and downloads those that are not on this machine. The model is None where
    only loading the weights can tell.
    """
    config = load_config(recipe, folder)
    if folder is None:
        check_download(recipe)
    source = str(folder or find(recipe.model_id))
    arguments = {} if folder else _repository_arguments(source, recipe.revision)
    weights.refuse_adapter(source, arguments)
    return config, weights.check_weights(config, source, arguments)


def kept_in(recipe: Recipe) -> set[torch.dtype]:
    """The dtypes of the tensors in the base model's files."""
    source = find(recipe.model_id)
    files = weights.weight_files(load_config(recipe), source, _repository_arguments(source, recipe.revision))
    return {value.dtype for value in weights.read_headers(files).values()}


def check_trainable(recipe: Recipe) -> None:
    """UserError when the base cannot be trained with the recipe's method, or when its weights on this machine are not
    whole. Weights that are yet to be downloaded are checked when they are loaded.
    """
    config = load_config(recipe)
    how = weights.quantisation_of(config)
    if how and recipe.method == "full":
        raise UserError(
            f"{recipe.model_id} is kept quantised ({how}), and full training needs whole weights. "
            "Train adapters instead (--method qlora), or give the model that it was made from."
        )
    if recipe.method != "full" and (bare := weights.bare_model(config, recipe.model_id)) is not None:
        add_adapter(bare, recipe, on_meta=True)
    if not hub.is_hub_id(recipe.model_id) or hub.is_cached(recipe.model_id, recipe.revision):
        check_base(recipe)


def add_adapter(model: Any, recipe: Recipe, on_meta: bool = False) -> Any:
    """`model` frozen, with fresh LoRA adapters of the recipe's shape. UserError when its layers cannot have them.

    on_meta: the adapters are on the meta device, as the model is.
    """
    targets: str | list[str] = recipe.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in recipe.lora_targets.split(",")]
        if "lm_head" in targets and model.config.tie_word_embeddings:
            raise UserError(
                f"{recipe.name}: lm_head shares its weights with the embeddings in this backbone; "
                "leave it out of lora_targets."
            )
    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(model, config, low_cpu_mem_usage=on_meta)
    except ValueError as error:
        if "lora_dropout" in str(error):
            raise UserError(
                f"{recipe.name}: this model's experts are adapted as whole parameters, "
                "which peft does without dropout only: add --lora_dropout 0, or name other layers in --lora_targets."
            ) from error
        raise UserError(f"{recipe.name}: lora_targets {recipe.lora_targets!r}: {error}") from error
    assert count_parameters(model)[0] > 0, "no trainable weights"
    patch_lora_forward(model)
    return model


def load_run(folder: Path, recipe: Recipe, device: torch.device, trained: bool = True) -> Any:
    """The model of a run: its own weights, or its adapter on the base it was trained on. trained: False for the base
    alone.
    """
    if not trained:
        return load_base(recipe, device).eval()
    kept = weights_folder(folder)
    if kept is None:
        raise UserError(f"{folder} has lost its weights: there is neither {MODEL}/ nor {ADAPTER}/. Train it again.")
    if kept.name == MODEL:
        return load_base(recipe, device, folder=kept).eval()
    _, bare = check_base(recipe)
    if bare is not None:
        weights.check_adapter(bare, kept)
    model = load_base(recipe, device)
    with hub.messages(str(kept)):
        model = PeftModel.from_pretrained(model, str(kept), config=weights.adapter_config(kept)).eval()
    if bare is None:
        weights.check_adapter(model, kept)
    patch_lora_forward(model)
    return model


def merged(model: PeftModel) -> Any:
    """The base model with the adapter's update added to its weights: a plain model that computes the same.

    Quantised weights are dequantised first, since the adapter was trained on those numbers.
    """
    base = model.get_base_model()
    if getattr(base, "is_quantized", False):
        adapters = {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}
        config = model.peft_config["default"]
        plain = model.unload()
        try:
            with weights.quietly():
                plain = plain.dequantize().to(base.dtype)
        except NotImplementedError as error:
            how = weights.quantisation_of(base.config) or "quantised"
            raise UserError(f"weights kept in {how} cannot be made whole again, so nothing is merged.") from error
        # Loading unpacked the file's weights. They stay whole from here on and are saved whole.
        conversions = getattr(plain, "_weight_conversions", None) or ()
        plain._weight_conversions = [one for one in conversions if _can_be_undone(one)]
        model = get_peft_model(plain, config)
        missing = model.load_state_dict(adapters, strict=False).unexpected_keys
        assert not missing, missing
    return model.merge_and_unload(safe_merge=True).eval()


def _can_be_undone(conversion: Any) -> bool:
    """Whether transformers can reverse a conversion of loaded weights, as it does with each of them when it saves."""
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable weights, all weights); NF4 packs two into a byte."""
    trainable = total = 0
    for parameter in model.parameters():
        packed = type(parameter).__name__ == "Params4bit" and parameter.dtype == torch.uint8
        count = parameter.numel() * (2 if packed else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def context_length(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)
