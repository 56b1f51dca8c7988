"""Loading: tokenizer, base model, adapter; the one place that knows how a method keeps its weights.

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
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from src.console.cli import UserError
from src.console.start import find
from src.files.paths import ADAPTER, MODEL
from src.model import hub, weights
from src.model.adapters import quicken
from src.model.recipes import Recipe, backbones
from src.model.weights import class_of
from src.plan import estimates as plan
from src.prompt.prompts import LETTERS
from src.tree.rows import usual_attention

if not sys.stderr.isatty():  # bars of a second or two would fill a log
    transformers.utils.logging.disable_progress_bar()


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name`, else this process's GPU, else the CPU."""
    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise UserError(f"--device: found {name!r}, allowed: cpu, cuda, cuda:0 …")
    # With its number, since to torch cuda is not cuda:0.
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
    """The tokenizer kept in a run's `folder`, else the recipe's."""
    source = str(folder) if folder else find(recipe.tokenizer or recipe.model_id)
    revision = None if folder else recipe.tokenizer_revision if recipe.tokenizer else recipe.revision
    with hub.messages(source, revision):
        where = _where(source, revision)
        tokenizer = AutoTokenizer.from_pretrained(source, **where, trust_remote_code=recipe.trust_remote_code)
    # transformers makes an empty tokenizer of a folder that has lost the file.
    if len({tuple(tokenizer(letter, add_special_tokens=False)["input_ids"]) for letter in LETTERS}) < len(LETTERS):
        raise UserError(
            f"{source}: its tokenizer cannot tell the letters {', '.join(LETTERS)} apart. Is tokenizer.json there, and "
            "whole? Download or copy it again, or name another one: --tokenizer."
        )
    return tokenizer


def _where(source: str, revision: str | None) -> dict[str, Any]:
    """What every load of transformers is told of a repository; nothing of a folder."""
    if not hub.is_hub_id(source):
        return {}
    return {"revision": revision, "local_files_only": bool(hub.unreachable())}


def load_config(recipe: Recipe, folder: Path | None = None) -> Any:
    """The config of a run whose `folder` keeps a whole model, else the base model's, checked against what the table
    of backbones expects of it.
    """
    if folder is not None and (folder / "config.json").is_file():
        with hub.messages(str(folder)):
            return _padded_within(AutoConfig.from_pretrained(folder, trust_remote_code=recipe.trust_remote_code))
    source = find(recipe.model_id)
    with hub.messages(source, recipe.revision):
        where = _where(source, recipe.revision)
        config = AutoConfig.from_pretrained(source, **where, trust_remote_code=recipe.trust_remote_code)
    facts = backbones().get(recipe.backbone)
    if facts is not None and facts.model_id == recipe.model_id:
        wrong = {
            key: getattr(config, key, None)
            for key, value in facts.expect.items()
            if getattr(config, key, None) != value
        }
        if wrong:
            raise UserError(
                f"{recipe.model_id}: the config differs from what is known of this backbone: "
                + ", ".join(f"{key} is {found!r}, expected {facts.expect[key]!r}" for key, found in wrong.items())
                + ". Pin another `revision`, or correct `expect` in resource/backbones.yaml."
            )
    return _padded_within(config)


def _padded_within(config: Any) -> Any:
    """`config` without a padding id that has no row in the embedding, which no embedding can be made with."""
    text = config.get_text_config()
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if pad is not None and rows is not None and pad >= rows:
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

    dtype: of the weights; the compute dtype by default. dequantised: NF4 weights become that dtype again, once; they
    are the same numbers, and need not be unpacked in every pass.
    """
    dtype = dtype or compute_dtype(device)
    config, _ = check_base(recipe, folder)
    arguments: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": usual_attention(class_of(config)),
        "device_map": {"": device},
        "use_safetensors": True,
        "trust_remote_code": recipe.trust_remote_code,
    }
    if recipe.method == "qlora" and folder is None and not weights.kept_in(config):  # else it stays as it is kept
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    source = str(folder or find(recipe.model_id))
    if folder is None:
        arguments |= _where(source, recipe.revision)
    try:
        with hub.messages(source, recipe.revision if folder is None else None), weights.quietly(bars=True):
            arguments |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
            loaded: Any = AutoModelForCausalLM.from_pretrained(source, **arguments)
    except ImportError as error:  # the package of a quantisation
        raise UserError(f"{source} cannot be loaded: {' '.join(str(error).split())}") from error
    model, found = loaded
    weights.refuse(model, found, source)
    if dequantised:
        model = model.dequantize(dtype)
    if device.type == "cpu":
        # On some CPUs bitsandbytes repacks the weights at the first evaluation, and computes in bf16 from then on.
        for module in model.modules():
            if "support_avx512bf16_for_cpu" in vars(module):
                vars(module)["support_avx512bf16_for_cpu"] = False
    model.config.use_cache = False
    return model


def check_base(recipe: Recipe, folder: Path | None = None) -> tuple[Any, Any]:
    """(config, model without values) of the base, or of the fully trained model in `folder`, once its weight files are
    known to be whole; fetches them where they are not here yet. The model is None where only loading can tell.
    """
    config = load_config(recipe, folder)
    if folder is None:
        check_download(recipe)
    source = str(folder or recipe.model_id)
    where = {} if folder else _where(source, recipe.revision)
    return config, weights.check_weights(config, source, where)


def check_trainable(recipe: Recipe) -> None:
    """Before a training: that the base can be trained with the recipe's method, and that its weights are whole where
    they are on this machine. Those that are yet to be fetched are checked as they are loaded.
    """
    config = load_config(recipe)
    how = weights.kept_in(config)
    if how and recipe.method == "full":
        raise UserError(
            f"{recipe.model_id} is kept quantised ({how}), and full training needs whole weights. Train adapters "
            "instead (--method qlora), or give the model that it was made from."
        )
    if recipe.method != "full" and (bare := weights.bare_model(config, recipe.model_id)) is not None:
        add_adapter(bare, recipe, empty=True)
    if not hub.is_hub_id(recipe.model_id) or hub.is_cached(recipe.model_id, recipe.revision):
        check_base(recipe)


def add_adapter(model: Any, recipe: Recipe, empty: bool = False) -> Any:
    """`model` frozen, with fresh LoRA adapters of the recipe's shape; refuses one without trainable weights.

    empty: the adapters have no values, as those of a model without any.
    """
    targets: str | list[str] = recipe.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in recipe.lora_targets.split(",")]
        if "lm_head" in targets and model.config.tie_word_embeddings:
            raise UserError(
                f"{recipe.name}: lm_head shares its weights with the embeddings in this backbone; leave it out "
                f"of lora_targets."
            )
    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(model, config, low_cpu_mem_usage=empty)
    except ValueError as error:
        if "lora_dropout" in str(error):
            raise UserError(
                f"{recipe.name}: this model's experts are adapted as whole parameters, which peft does without dropout "
                "only: add --lora_dropout 0, or name other layers in --lora_targets."
            ) from error
        raise UserError(f"{recipe.name}: lora_targets {recipe.lora_targets!r}: {error}") from error
    assert count_parameters(model)[0] > 0, "no trainable weights"
    quicken(model)
    return model


def weights_folder(folder: Path) -> Path | None:
    """Where a run keeps what it trained; None for an untrained one."""
    return next((folder / name for name in (MODEL, ADAPTER) if (folder / name).is_dir()), None)


def load_run(folder: Path, recipe: Recipe, device: torch.device, trained: bool = True) -> Any:
    """The model of a run: its full weights, or its adapter on the base it was trained on, or, not `trained`, the
    bare base.
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
        model = PeftModel.from_pretrained(model, str(kept)).eval()
    if bare is None:
        weights.check_adapter(model, kept)
    quicken(model)
    return model


def merged(model: PeftModel) -> Any:
    """The adapter's update added to the weights it was trained on (quantised ones are dequantised first): no other
    base function.
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
            how = weights.kept_in(base.config) or "quantised"
            raise UserError(f"weights kept in {how} cannot be made whole again, so nothing is merged.") from error
        # What unpacked the file's weights as they were loaded; they are whole from here on, and saved whole.
        plain._weight_conversions = [
            one for one in getattr(plain, "_weight_conversions", None) or () if _has_a_way_back(one)
        ]
        model = get_peft_model(plain, config)
        missing = model.load_state_dict(adapters, strict=False).unexpected_keys
        assert not missing, missing
    return model.merge_and_unload(safe_merge=True).eval()


def _has_a_way_back(conversion: Any) -> bool:
    """Whether transformers can undo what it did to the names or values of loaded weights, as it does when it saves."""
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) weights; NF4 packs two into a byte."""
    trainable = total = 0
    for parameter in model.parameters():
        packed = type(parameter).__name__ == "Params4bit" and parameter.dtype == torch.uint8
        count = parameter.numel() * (2 if packed else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def context_length(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_download(recipe: Recipe) -> None:
    """Refuses a download that does not fit on the disk."""
    facts = backbones().get(recipe.backbone)
    if facts is None or facts.model_id != recipe.model_id or Path(recipe.model_id).is_dir() or constants.HF_HUB_OFFLINE:
        return
    if not plan.is_cached(recipe.model_id, recipe.revision):
        cache = Path(constants.HF_HUB_CACHE)
        plan.check_disk(cache, facts.download_bytes, f"the download of {recipe.model_id}")
