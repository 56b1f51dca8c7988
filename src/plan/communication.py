"""How long the GPUs of one training talk to each other in a step, by bytes and bandwidths alone.

Nothing here is measured: it is the time of the bytes at the makers' bandwidths, which real transfers do not reach, and
without what overlaps with computing. Formulas:

    a gathered or scattered tensor of s bytes on n cards      s · (n - 1) / n bytes leave and reach each card
    a sum of s bytes that all cards get                       twice that: scattered, then gathered
        (ring algorithms; Thakur, Rabenseifner and Gropp 2005, Optimization of Collective Communication Operations in
        MPICH, doi 10.1177/1094342005051521)
    sharded parameters, each row                              gathered in bf16 for the forward and again for the
                                                              backward pass, gradients scattered in fp32
        (Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 7: three times the parameters)
    adapters                                                  their fp32 gradients are summed once a step
"""

from collections.abc import Mapping

from src.model.shapes import Shape

LINKS: Mapping[str, float] = {"NVLink": 450e9, "PCIe": 64e9}
"""Bytes a second that leave a card and at once reach it: half of what data sheets give for both directions together.
NVLink of the H100 and the H200 900 GB/s, PCIe 5.0 x16 128 GB/s (NVIDIA H100 Tensor Core GPU Architecture, 2022).
"""
COUNTS = (2, 4, 8)
"""Numbers of cards that are told of."""


def sharded_row_bytes(shape: Shape, cards: int) -> float:
    """Bytes that leave each card while a row is trained with all parameters sharded."""
    return (2 + 2 + 4) * shape.parameters * (cards - 1) / cards


def summed_bytes(parameters: int, cards: int) -> float:
    """Bytes that leave each card while fp32 gradients of so many parameters are summed."""
    return 2 * 4 * parameters * (cards - 1) / cards


def step_seconds(shape: Shape, method: str, lora_r: int, cards: int, link: str) -> float:
    """Seconds of communication in a step of one row a card; full: sharded over them."""
    if method == "full":
        return sharded_row_bytes(shape, cards) / LINKS[link]
    return summed_bytes(shape.lora_parameters(lora_r), cards) / LINKS[link]
