"""The rows of `python -m bench.speed`: the work, how it is prepared, the peers, and the ratios to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from bench.speed import albef, blip, clip, coca, jpeg, peers
from bench.speed.harness import Work

BOTH = ("fp32", "bf16")


@dataclass(frozen=True)
class Row:
    """One kind of work.

    `prepare`: the module of this package and its function from a precision to the Work. `seconds`: CPU time of one
    round at each precision, of all candidates together, on one core of a Xeon; a row has ten times its estimate to
    finish. `peers`: the peers, each with the ratio peer / Diptych to be reached, by precision. `memory`: whether peak
    memory is compared too.
    """

    name: str
    title: str
    prepare: str
    seconds: Mapping[str, float]
    peers: Mapping[str, Mapping[str, float]]
    memory: bool = False

    def work(self, precision: str) -> Work:
        """Prepares the candidates. Raises ImportError if a peer that all depend on is not installed."""
        module, _, function = self.prepare.partition(":")
        return getattr(import_module(f"bench.speed.{module}"), function)(precision)

    def peers_at(self, precision: str) -> list[str]:
        """The peers that run at this precision."""
        return [peer for peer in self.peers if precision == "bf16" or not peer.endswith(peers.BF16_WEIGHTS)]


def both(fp32: float, bf16: float) -> dict[str, float]:
    return dict(zip(BOTH, (fp32, bf16), strict=True))


ROWS = (
    Row(
        "blip.captions",
        "BLIP-base captions, 4 images of 384 pixels, beam size 3, 20 tokens",
        "blip:captions",
        both(20, 14),
        {blip.GENERATE: both(1.4, 1.6), blip.GENERATE + peers.BF16_WEIGHTS: {}},
    ),
    Row("blip.encode", "of which encoding the images", "blip:encoding", both(8, 3), {peers.HF: {}}),
    Row(
        "blip.rerank",
        "BLIP-base re-ranking, 1 encoded image × 128 texts",
        "blip:reranking",
        both(36, 13),
        {blip.ENCODED_ONCE: both(3.0, 3.0)},
    ),
    Row(
        "blip.rerank_few",
        "BLIP-base re-ranking, 1 image × 8 texts, with encoding",
        "blip:few_texts",
        both(16, 8),
        {blip.ENCODED_ONCE: {}, blip.PAIR_BY_PAIR: {}},
    ),
    Row(
        "albef.rerank",
        "ALBEF-base re-ranking, 1 encoded image × 128 texts",
        "albef:reranking",
        both(13, 5),
        {albef.LOOP: {}},
    ),
    Row(
        "vilt.step",
        "ViLT-B/32 step, batch 8, the same shapes every round",
        "vilt:step",
        both(33, 16),
        {peers.HF: both(1.4, 1.5)},
        memory=True,
    ),
    Row(
        "vilt.step_fresh",
        "ViLT-B/32 step, batch 8, other shapes every round",
        "vilt:fresh_steps",
        {"bf16": 20},
        {peers.HF: {}},
    ),
    Row(
        "vilt.vqa",
        "ViLT VQA, 8 questions",
        "vilt:vqa",
        both(6, 4),
        {peers.HF: both(1.5, 1.8), peers.HF + peers.BF16_WEIGHTS: {}},
    ),
    Row(
        "albef.step",
        "ALBEF-base step, batch 4 at 256 pixels",
        "albef:step",
        both(20, 8),
        {albef.OFFICIAL: both(1.3, 1.3)},
    ),
    Row(
        "coca.step",
        "CoCa ViT-B/32 step, batch 8",
        "coca:step",
        both(17, 9),
        {coca.WIDE: {}, coca.CUT: both(1.1, 1.3)},
    ),
    Row(
        "clip.images",
        "CLIP ViT-B/32, 32 images",
        "clip:images",
        both(7, 4),
        dict.fromkeys((peers.HF, peers.OPEN_CLIP), both(1.0, 1.0))
        | {peers.HF + peers.BF16_WEIGHTS: {}, peers.OPEN_CLIP + peers.BF16_WEIGHTS: {}},
    ),
    Row(
        "clip.texts",
        "CLIP ViT-B/32, 32 texts",
        "clip:texts",
        both(4, 2),
        dict.fromkeys((clip.LONGEST, clip.HF_WIDE, clip.OPEN_CLIP_WIDE), both(1.0, 1.0))
        | {clip.LONGEST + peers.BF16_WEIGHTS: {}},
    ),
    Row("jpeg.224", "16 JPEGs, 1600×1200 → 224", "jpeg:large_to_224", {"fp32": 1}, {jpeg.TORCHVISION: {}}),
    Row("jpeg.384", "16 JPEGs, 1600×1200 → 384", "jpeg:large_to_384", {"fp32": 1}, {jpeg.TORCHVISION: {}}),
    Row(
        "jpeg.same",
        "128 JPEGs, 224×224 → 224",
        "jpeg:same_size",
        {"fp32": 1},
        {jpeg.TORCHVISION: {}, jpeg.PROCESSOR: {}},
    ),
)
