"""Environment variables: none of them may change what is trained or scored.

The libraries that we use read some hundred variables, many of which change numbers: another precision, other kernels,
another order of summation. A result may depend only on recipe, flags, data and versions, so whole families of names are
removed before torch is imported (`clear`). The variables that stay decide paths, logging, memory management, and the
number of threads (which the record notes).
"""

import os
import re
from collections.abc import MutableMapping

FAMILIES = (
    # accelerate and its plugins
    "ACCELERATE_",
    "FSDP_",
    "MEGATRON_LM_",
    "PARALLELISM_CONFIG_",
    "XLA_",
    # transformers
    "TRANSFORMERS_",
    "FLASH_ATTENTION_",
    # torch and its compilers
    "AOT_",
    "AOTINDUCTOR_",
    "ATEN_",
    "INDUCTOR_",
    "PYTORCH_",
    "TORCH_",
    "TORCHAO_",
    "TORCHDYNAMO_",
    "TORCHELASTIC_",
    "TORCHINDUCTOR_",
    "TRITON_",
    # the libraries for linear algebra
    "CUBLAS_",
    "CUBLASLT_",
    "CUDNN_",
    "DNNL_",
    "MKL_",
    "ONEDNN_",
)
"""Names with these beginnings are removed, except those that match `KEPT`."""
SINGLE = (
    "CUTLASS_EPILOGUE_FUSION",
    "DISABLE_ADDMM_CUDA_LT",
    "DISABLE_LLVM_OPT",
    "DISABLE_PTXAS_OPT",
    "ENABLE_PERSISTENT_TMA_MATMUL",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "PJRT_DEVICE",
    "PTXAS_OPTIONS",
    "PT_HPU_LAZY_MODE",
    "SM_FRAMEWORK_PARAMS",
    "SM_HP_MP_PARAMETERS",
    "TENSORIFY_PYTHON_SCALARS",
    "USE_HUB_KERNELS",
    "USE_TORCH_XLA",
)
"""Other names that are removed."""
KEPT = re.compile(
    # Where things are and which versions
    r"\w+_(VERSION|HOME|PATH|DIR|CACHE|ROOT|OFFLINE|ARCH_LIST)"
    # What is logged
    r"|\w*_(LOGS?|TRACE|TRACEBACKS|STACKTRACES|VERBOSE|VERBOSITY|WARNINGS|PRINT_AUTOTUNING)(_\w+)?"
    r"|\w+_LOG_LEVEL|TORCH_DISABLE_ADDR2LINE|ACCELERATE_ENABLE_RICH"
    # How memory is managed, how a GPU is found, how many threads compile
    r"|PYTORCH_(CUDA_)?ALLOC_CONF|PYTORCH_NO_CUDA_MEMORY_CACHING|PYTORCH_NVML_BASED_CUDA_CHECK"
    r"|TORCH_(DEVICE_BACKEND_AUTOLOAD|USE_RTLD_GLOBAL|NCCL_\w+|DISTRIBUTED_DEBUG)|TORCHAO_FORCE_SKIP_LOADING_SO_FILES"
    r"|TORCHINDUCTOR_COMPILE_THREADS"
    # The number of threads is in the record; the library cannot be loaded without the others
    r"|MKL_(NUM_THREADS|THREADING_LAYER|SERVICE_FORCE_INTEL)"
)
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHED = (
    *SIZES,
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
"""Set by launchers of several processes. In a single process they would make torch wait for others."""
SHOWN = 8
CACHE = "TORCHINDUCTOR_CACHE_DIR"


def processes(environment: MutableMapping[str, str] = os.environ) -> int:
    """How many processes of this command a launcher (torchrun, mpirun, srun) started; 1 without a launcher."""
    return max(int(value) if (value := environment.get(name, "")).isdigit() else 1 for name in SIZES)


def clear(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Removes variables that could change a result, before torch is imported. Returns their names, sorted.

    Variables of a launcher that started several processes stay; `launch.take` has read and removed them before.
    """
    names = [name for name in environment if _matters(name)]
    if processes(environment) == 1:
        names += [name for name in LAUNCHED if name in environment]
    for name in names:
        del environment[name]
    return sorted(names)


def _matters(name: str) -> bool:
    return name in SINGLE or (name.startswith(FAMILIES) and not KEPT.fullmatch(name))


def drop_lost_cache(environment: MutableMapping[str, str] = os.environ) -> str:
    """Removes the variable that names a folder for compiled code if that folder cannot be made: torch would fail while
    it is imported. Returns the line that says so, or "". torch then uses its default folder.
    """
    folder = environment.get(CACHE)
    if not folder:
        return ""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        del environment[CACHE]
        return f"{CACHE} is {folder}, which cannot be made ({error.strerror}): compiled code lies in the usual place"
    return ""


def ignored(names: list[str]) -> str:
    """The line that says which variables were removed."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"ignored from the environment: {', '.join(names[:SHOWN])}{more}. "
        "Only recipe and flags decide what is trained and scored."
    )
