"""What accelerators can do, as their makers state it: dense rates, without sparsity. Plain values: help reads this file."""

from __future__ import annotations

from dataclasses import dataclass

T, G = 1e12, 1e9


@dataclass(frozen=True)
class Accelerator:
    """`half`: peak of bf16 matrix products (fp16 where there is no bf16), FLOP/s; `single`: of fp32, without TF32;
    `memory`: bytes; `bandwidth`: of that memory, bytes/s; `link`: to its neighbours, bytes/s each way.
    """

    name: str
    half: float
    single: float
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


MOST_CORES, MOST_GPUS = 1024, 1_000_000


def _counted(text: str, most: int) -> bool:
    """Whether a text is a whole number from 1 to `most`."""
    return text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most


def chosen(words: str) -> tuple[int, str]:
    """``8xA100`` → (8, "A100"); ``cpu:2`` → (2, "cpu"), two cores; ``cpu`` → (0, "cpu"), as many as torch would use.

    Raises ValueError, which names what there is.
    """
    if words.partition(":")[0] == "cpu":
        _, _, cores = words.partition(":")
        if cores and not _counted(cores, MOST_CORES):
            raise ValueError(f"--gpus {words}: write cpu:2 for two cores, at most {MOST_CORES}")
        return int(cores or 0), "cpu"
    count, _, name = words.rpartition("x")
    known = {known.lower(): known for known in ACCELERATORS}
    if (count and not _counted(count, MOST_GPUS)) or name.lower() not in known:
        raise ValueError(f"--gpus {words}: write 8xA100 or cpu:2; there are {', '.join(ACCELERATORS)}")
    return int(count or 1), known[name.lower()]
