"""What GPUs there are, how fast they are, and what is free on them; none needs to be there."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.model import devices
from src.model.devices import Gpu, free_bytes, gpus, peak_tflops, relative_speed

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A40", 150),
        ("NVIDIA A10", 125),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA H800", 989),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_are_found_by_name(device: str, peak: float | None) -> None:
    assert peak_tflops(device) == peak
    assert relative_speed(device, "NVIDIA H200") == (None if peak is None else peak / 989)
    assert relative_speed("NVIDIA H200", device) == (None if peak is None else 989 / peak)


FAKE_TORCH = """
import os, pathlib, types

def device_count():
    (pathlib.Path(__file__).parent / "asked_by").write_text(str(os.getpid()))
    return 2

cuda = types.SimpleNamespace(
    device_count=device_count,
    mem_get_info=lambda index: (index + 10, index + 20),  # free, total
    get_device_name=lambda index: f"NVIDIA L{index}",
)
"""


@pytest.fixture(params=["nvidia", "amd"])
def driver(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's library, or its device, is on this machine, whatever else is."""
    (tmp_path / "device").touch()
    here = {"nvidia": ("libc.so.6", str(tmp_path / "none")), "amd": ("none.so", str(tmp_path / "device"))}
    for name, value in zip(("NVIDIA_DRIVER", "AMD_DEVICE"), here[request.param], strict=True):
        monkeypatch.setattr(devices, name, value)


@pytest.mark.usefixtures("driver")
def test_gpus_are_asked_of_torch_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A started process looks for modules where this one does, and finds this torch first.
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.syspath_prepend(tmp_path)
    assert gpus() == [Gpu("NVIDIA L0", 20, 10), Gpu("NVIDIA L1", 21, 11)]
    assert int((tmp_path / "asked_by").read_text()) != os.getpid()


def test_without_a_driver_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", "none.so")
    monkeypatch.setattr(devices, "AMD_DEVICE", str(tmp_path / "none"))
    assert gpus() == [] and not (tmp_path / "asked_by").exists()


@pytest.mark.usefixtures("driver")
def test_a_machine_without_gpus_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH.replace("return 2", "return 0"))
    monkeypatch.syspath_prepend(tmp_path)
    assert gpus() == []


def test_free_memory_heeds_what_the_process_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu(fraction: float, free: int = 100) -> SimpleNamespace:
        return SimpleNamespace(
            mem_get_info=lambda device: (free, 140),
            memory_reserved=lambda device: 30,
            memory_allocated=lambda device: 20,
            get_per_process_memory_fraction=lambda device: fraction,
        )

    for fraction, free, expected in ((1.0, 100, 110), (0.5, 100, 50), (0.5, 10, 20)):
        monkeypatch.setattr(torch, "cuda", gpu(fraction, free))
        assert free_bytes(GPU) == expected
