"""Loading: tokenizer, base model, adapter; the one place that knows how a method keeps its weights.

    full    all parameters are trained; `optimizer` decides their dtype
    lora    the base in the compute dtype, adapters in fp32
    qlora   the base in NF4 with double quantisation, adapters in fp32

The compute dtype is bf16 on a GPU and fp32 on a CPU, for quantised weights too: an fp16 compute dtype overflows in
Gemma2.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, errors
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from src import plan
from src.adapters import quicken
from src.cli import UserError, nearest
from src.recipes import Recipe, backbones
from src.records import ADAPTER, MODEL, RESULTS
from src.rows import usual_attention
from src.start import find

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
    revision = None if folder or recipe.tokenizer else recipe.revision
    with _hub_messages(source):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=recipe.trust_remote_code)


def load_config(recipe: Recipe, folder: Path | None = None) -> Any:
    """The config of a run whose `folder` keeps a whole model, else the base model's, checked against what the table
    of backbones expects of it.
    """
    if folder is not None and (folder / "config.json").is_file():
        with _hub_messages(str(folder)):
            return AutoConfig.from_pretrained(folder, trust_remote_code=recipe.trust_remote_code)
    with _hub_messages(recipe.model_id):
        config = AutoConfig.from_pretrained(
            find(recipe.model_id), revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
        )
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
    return config


def class_of(config: Any) -> Any:
    """The class that a config's model is loaded as; None when its code comes with the weights."""
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


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
    config = load_config(recipe, folder)
    if folder is None:
        check_download(recipe)
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": usual_attention(class_of(config)),
        "device_map": {"": device},
        "use_safetensors": True,
        "trust_remote_code": recipe.trust_remote_code,
    }
    if recipe.method == "qlora" and folder is None:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    if folder is None:
        arguments["revision"] = recipe.revision
    source = str(folder or find(recipe.model_id))
    with _hub_messages(source):
        model = AutoModelForCausalLM.from_pretrained(source, **arguments)
    if dequantised:
        model = model.dequantize(dtype)
    if device.type == "cpu":
        # On some CPUs bitsandbytes repacks the weights at the first evaluation, and computes in bf16 from then on.
        for module in model.modules():
            if "support_avx512bf16_for_cpu" in vars(module):
                vars(module)["support_avx512bf16_for_cpu"] = False
    model.config.use_cache = False
    return model


def add_adapter(model: Any, recipe: Recipe) -> Any:
    """`model` frozen, with fresh LoRA adapters of the recipe's shape; refuses one without trainable weights."""
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
        model = get_peft_model(model, config)
    except ValueError as error:
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
    model = load_base(recipe, device)
    with _hub_messages(str(kept)):
        model = PeftModel.from_pretrained(model, str(kept)).eval()
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
        plain = model.unload().dequantize()
        model = get_peft_model(plain, config)
        missing = model.load_state_dict(adapters, strict=False).unexpected_keys
        assert not missing, missing
    return model.merge_and_unload(safe_merge=True).eval()


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


@contextlib.contextmanager
def _hub_messages(source: str) -> Iterator[None]:
    """Turns the hub's exceptions into one message that names the page to visit; tokens are never printed."""
    page = f"https://huggingface.co/{source}"
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        chain: list[BaseException] = [error]
        while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
            chain.append(below)
        kinds = tuple(type(one) for one in chain)
        if "trust_remote_code" in str(error):
            message = f"{source} needs Python code of its own. Read it; if you trust it, add --trust_remote_code."
        elif Path(source).is_dir():
            message = f"{source} holds no complete model: {str(error).splitlines()[0]}"
        elif source.startswith(("/", "./", "../", "~")):
            message = f"there is no folder {source}."
        elif errors.GatedRepoError in kinds:
            message = f"{source} is gated: accept its terms at {page}, then log in with `hf auth login`."
        elif any(issubclass(kind, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) for kind in kinds):
            message = (
                f"{source} is not on this machine and the hub cannot be reached. Where there is a network run "
                f"`hf download {source}` "
                "and copy the cache, or give a local folder as --model_id." + _runs_like(source)
            )
        elif errors.RepositoryNotFoundError in kinds or errors.HFValidationError in kinds:
            message = (
                f"{source} is neither a local folder nor a model that you can see on the hub ({page})."
                + _runs_like(source)
            )
        elif errors.RevisionNotFoundError in kinds:
            message = f"{source} has no such revision; see {page}/commits/main."
        elif isinstance(error, OSError | SafetensorError):
            message = f"{source} cannot be loaded: {str(error).splitlines()[0]}"
        else:
            raise
        raise UserError(message) from error


def _runs_like(name: str) -> str:
    """Which trained runs there are, for a name that may have been meant as one's."""
    runs = sorted(path.parent.name for path in RESULTS.glob("*/recipe.yaml")) if "/" not in name else []
    return f" There is no run {name} either; runs here: {', '.join(runs)}.{nearest(name, runs)}" if runs else ""
