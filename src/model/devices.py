"""GPUs: which there are, how fast each kind is, and how much memory is free.

Only the functions that query torch import it.
"""

import ctypes
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from src.model.shapes import GIB

if TYPE_CHECKING:
    import torch

PEAKS = {
    "B200": 2250,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H200": 989,
    "GH200": 989,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "A40": 150,
    "A30": 165,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 6000 Ada": 364,
    "RTX A6000": 155,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Dense bf16 TFLOP/s from the makers' data sheets. The first name found in the device's name counts."""


NVIDIA_DRIVER, AMD_DEVICE = "libcuda.so.1", "/dev/kfd"
"""What comes with the drivers: the library that CUDA calls, and the device that ROCm opens."""


@dataclass(frozen=True)
class Gpu:
    name: str
    total_bytes: int
    free_bytes: int


REFERENCE = Gpu("NVIDIA H200", 141 * GIB, 141 * GIB)


def gpus() -> list[Gpu]:
    """The GPUs that this process may use; none on a CPU machine.

    Runs in a child process: querying CUDA holds memory on every GPU until the process exits, and a GPU in exclusive
    mode would then be taken when the runs start. Without a GPU's driver there is no child, which takes seconds to
    import torch.
    """
    if not _has_driver():
        return []
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_ask_torch).result()


def _has_driver() -> bool:
    """Whether NVIDIA's or AMD's driver is on this machine; torch finds no GPU without it."""
    if Path(AMD_DEVICE).exists():
        return True
    try:
        ctypes.CDLL(NVIDIA_DRIVER)
    except OSError:
        return False
    return True


def _ask_torch() -> list[Gpu]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Gpu(torch.cuda.get_device_name(index), total, free))
    return found


def peak_tflops(device: str) -> float | None:
    """Dense bf16 peak of the GPU called `device`, None for one that is not in the table."""
    for name, peak in PEAKS.items():
        if re.search(rf"\b{re.escape(name)}\b", device, re.IGNORECASE):
            return peak
    return None


def relative_speed(device: str, other: str) -> float | None:
    """The bf16 peak of the GPU called `device` relative to that of the `other` one; None where one is unknown."""
    peak, reference = peak_tflops(device), peak_tflops(other)
    return None if peak is None or reference is None else peak / reference


def free_bytes(device: "torch.device") -> int:
    """GPU memory that this process may still take, within the limit of `set_per_process_memory_fraction`."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(free + held, allowed) - torch.cuda.memory_allocated(device)
