"""Accelerators by their datasheets: dense peak FLOP/s (without sparsity), memory and bandwidth. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

T, G = 1e12, 1e9


@dataclass(frozen=True)
class Accelerator:
    """Peak rates of one device.

    Attributes:
        bf16_flops: Matrix products in bf16 (fp16 if there is no bf16), FLOP/s.
        fp32_flops: Matrix products in fp32, without TF32, FLOP/s.
        memory: Bytes.
        bandwidth: Of the memory, bytes/s.
        link: To other devices, bytes/s in each direction.
    """

    name: str
    bf16_flops: float
    fp32_flops: float
    memory: float
    bandwidth: float
    link: float
    source: str


_A100 = "NVIDIA A100 Tensor Core GPU datasheet (2021)"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet; rates there are with sparsity, halved here"
_ADA = "NVIDIA Ada GPU architecture white paper, table 2 (fp32 accumulation)"

ACCELERATORS = {
    a.name: a
    for a in (
        Accelerator("A100", 312 * T, 19.5 * T, 80 * G, 2039 * G, 300 * G, _A100),
        Accelerator("A100-40GB", 312 * T, 19.5 * T, 40 * G, 1555 * G, 300 * G, _A100),
        Accelerator("H100", 989 * T, 67 * T, 80 * G, 3350 * G, 450 * G, _H100),
        Accelerator(
            "H200", 989 * T, 67 * T, 141 * G, 4800 * G, 450 * G, "NVIDIA H200 datasheet; rates halved likewise"
        ),
        Accelerator("V100", 125 * T, 15.7 * T, 32 * G, 900 * G, 150 * G, "NVIDIA V100 datasheet (SXM2; fp16, no bf16)"),
        Accelerator("A10", 125 * T, 31.2 * T, 24 * G, 600 * G, 32 * G, "NVIDIA A10 datasheet (PCIe)"),
        Accelerator(
            "L4", 121 * T, 30.3 * T, 24 * G, 300 * G, 32 * G, "NVIDIA L4 datasheet; rates halved likewise (PCIe)"
        ),
        Accelerator("L40S", 362 * T, 91.6 * T, 48 * G, 864 * G, 32 * G, "NVIDIA L40S datasheet (PCIe)"),
        Accelerator("RTX4090", 165 * T, 82.6 * T, 24 * G, 1008 * G, 32 * G, _ADA),
        Accelerator(
            "RTX3090", 71 * T, 35.6 * T, 24 * G, 936 * G, 32 * G, "NVIDIA GA102 white paper (fp32 accumulation)"
        ),
    )
}


MAX_CORES, MAX_GPUS = 1024, 1_000_000


def _is_count(text: str, maximum: int) -> bool:
    """Whether a text is an integer in [1, maximum]."""
    return text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= maximum


def parse_gpus(text: str) -> tuple[int, str]:
    """The number and name of the devices: ``8xA100`` → (8, "A100"), ``cpu:2`` → (2, "cpu") for two cores.

    ``cpu`` → (0, "cpu"): as many cores as torch would use. Raises ValueError, which lists the known names.
    """
    if text.partition(":")[0] == "cpu":
        _, _, cores = text.partition(":")
        if cores and not _is_count(cores, MAX_CORES):
            raise ValueError(f"--gpus {text}: write cpu:2 for two cores, at most {MAX_CORES}")
        return int(cores or 0), "cpu"
    count, _, name = text.rpartition("x")
    known = {known.lower(): known for known in ACCELERATORS}
    if (count and not _is_count(count, MAX_GPUS)) or name.lower() not in known:
        raise ValueError(f"--gpus {text}: write 8xA100 or cpu:2; known kinds are {', '.join(ACCELERATORS)}")
    return int(count or 1), known[name.lower()]
