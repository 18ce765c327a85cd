"""Frozen feature extractors of runs: a CNN, hypercolumns and MiniLM, built at first use and once for a process.

Their features are cached in memory and on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from torch import Tensor

from diptych.batch import Text
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.hypercolumns import Hypercolumns
from diptych.encoders.minilm import DEPTH, WIDTH, FrozenMiniLM
from diptych.inference.saved_model import ModelSettings, RunError, SavedModel
from diptych.modules.frozen_text import HiddenStates
from diptych.utils.feature_cache import DiskCache, MemoryCache, default_folder

MINILM_STAGES = (0, 3, 6)  # layers whose states "minilm_causal" concatenates: word embeddings, middle, last


@cache
def disk_cache() -> DiskCache:
    return DiskCache(default_folder())


@cache
def memory_cache() -> MemoryCache:
    """Memory cache of CNN features, in front of the disk cache."""
    return MemoryCache(disk=disk_cache())


@cache
def frozen_cnn() -> FrozenCNN:
    return FrozenCNN(cache=disk_cache())


@cache
def frozen_text(depth: int = DEPTH, stages: tuple[int, ...] = (), causal: bool = False) -> FrozenMiniLM:
    return FrozenMiniLM(depth, cache=disk_cache(), stages=stages, causal=causal)


@cache
def hypercolumns() -> Hypercolumns:
    return Hypercolumns(frozen_cnn())


def cnn_maps(pixels: Tensor) -> Tensor:
    """Last feature maps of the frozen CNN."""
    return frozen_cnn().feature_maps(pixels)


def frozen_sources(settings: ModelSettings) -> dict[str, str]:
    """Digest of each frozen network whose features the model reads ("image", "text"); config.json records it.

    A digest tells networks with other weights apart, and hypercolumns also by how they are computed. Region features
    from files are the user's own and have none.
    """
    image = {"hypercolumns": hypercolumns, "boxes": frozen_cnn, "grid": frozen_cnn}.get(settings.embedders.image)
    networks = {"image": image, "text": _TEXT_ENCODERS.get(settings.embedders.text)}
    return {side: network().name.hex()[:16] for side, network in networks.items() if network is not None}


def changed_features(saved: SavedModel) -> list[str]:
    """Inputs ("image", "text") whose frozen features are not those that the model was trained on."""
    return [side for side, name in frozen_sources(saved).items() if saved.frozen_features.get(side) != name]


def check_frozen_features(saved: SavedModel) -> None:
    """Raises RunError if the frozen features are not those that the model was trained on."""
    if sides := changed_features(saved):
        raise RunError(
            f"the frozen {' and '.join(sides)} features have changed since this run was trained on them, and its "
            "weights would score wrong: train it again, or evaluate it with the version that trained it"
        )


def bidirectional_states(text: Text, uncached: bool = False) -> Tensor:
    """MiniLM's last hidden states with full attention: batch × tokens × dim.

    Args:
        uncached: do not store the states, as of texts that are being generated and do not recur.
    """
    return _TEXT_ENCODERS["minilm"]()(text, uncached)


def causal_states(text: Text, uncached: bool = False) -> Tensor:
    """MiniLM's hidden states of `MINILM_STAGES` with a causal mask, concatenated: batch × tokens × stages * dim."""
    return _TEXT_ENCODERS["minilm_causal"]()(text, uncached)


def word_states(text: Text, uncached: bool = False) -> Tensor:
    """MiniLM's word embeddings, without context: batch × tokens × dim."""
    table = _TEXT_ENCODERS["minilm_words"]().words.word.weight
    return table.to(text.ids.device)[text.ids]


_TEXT_ENCODERS: dict[str, Callable[[], FrozenMiniLM]] = {
    "minilm": frozen_text,
    "minilm_causal": partial(frozen_text, stages=MINILM_STAGES, causal=True),
    "minilm_words": partial(frozen_text, 0),  # no layers: only the embedding table
}

TEXT_FEATURES: dict[str, tuple[HiddenStates, int]] = {
    "minilm": (bidirectional_states, WIDTH),
    "minilm_causal": (causal_states, WIDTH * len(MINILM_STAGES)),
    "minilm_words": (word_states, WIDTH),
}
"""Text features for `embedders.text`: the function that computes them, and their dimension."""
