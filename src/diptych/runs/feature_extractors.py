"""The frozen networks, made when they are first needed and once for a process; what they say is kept in one store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from torch import Tensor

from diptych.batch import Text
from diptych.config.run import Finetune, Pretrain
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.hypercolumns import Hypercolumns
from diptych.encoders.minilm import DEPTH, WIDTH, FrozenMiniLM
from diptych.modules.frozen_text import HiddenStates
from diptych.runs.validate import RunError
from diptych.utils.cache import DiskCache, MemoryCache, default_folder

STAGES = (0, 3, 6)  # of MiniLM: its words, what half of its layers say of them, and all


@cache
def disk_cache() -> DiskCache:
    return DiskCache(default_folder())


@cache
def memory_cache() -> MemoryCache:
    """What the CNN saw."""
    return MemoryCache(disk=disk_cache())


@cache
def frozen_cnn() -> FrozenCNN:
    return FrozenCNN(store=disk_cache())


@cache
def frozen_text(depth: int = DEPTH, stages: tuple[int, ...] = (), onward: bool = False) -> FrozenMiniLM:
    return FrozenMiniLM(depth, store=disk_cache(), stages=stages, onward=onward)


@cache
def hypercolumns() -> Hypercolumns:
    return Hypercolumns(frozen_cnn())


def cnn_maps(pixels: Tensor) -> Tensor:
    return frozen_cnn().feature_maps(pixels)


def frozen_sources(run: Pretrain | Finetune) -> dict[str, str]:
    """Which frozen networks say what the run's model is given of images and texts: a digest of each, by which their checkpoints are told
    apart, and hypercolumns by how they are made too. Regions that lie in files are the user's own, and are not looked into.
    """
    seen = {"hypercolumns": hypercolumns, "boxes": frozen_cnn, "grid": frozen_cnn}.get(run.embedders.image)
    read = _READERS.get(run.embedders.text)
    made = {"image": seen, "text": read}
    return {side: network().name.hex()[:16] for side, network in made.items() if network is not None}


def changed(run: Pretrain | Finetune, facts: Mapping[str, Any]) -> list[str]:
    """Of what ("image", "text") a run learned from other features than it would be given now. One from before that was written down
    learned from what is given today, unless it was hypercolumns (docs/decisions/0011).
    """
    now = frozen_sources(run)
    told = facts.get("given", now | {"image": "one look"} if run.embedders.image == "hypercolumns" else now)
    return [side for side, name in now.items() if told.get(side) != name]


def check_given(run: Pretrain | Finetune, facts: Mapping[str, Any]) -> None:
    """Raises RunError where a run learned from other features than it would be given now."""
    if other := changed(run, facts):
        raise RunError(
            f"what frozen networks say of {' and '.join(f'{side}s' for side in other)} has changed since this run learned from it, "
            "and its weights would score wrong: train it again, or score it with the version that trained it"
        )


def bidirectional_states(text: Text, once: bool = False) -> Tensor:
    """MiniLM's word states, each of which has seen the whole text."""
    return _READERS["minilm"]()(text, once)


def causal_states(text: Text, once: bool = False) -> Tensor:
    """The states of several stages, side by side, where no word has seen a later one."""
    return _READERS["minilm_onward"]()(text, once)


def word_states(text: Text, once: bool = False) -> Tensor:
    """MiniLM's vector of each piece by itself."""
    table = _READERS["minilm_words"]().words.word.weight
    return table.to(text.ids.device)[text.ids]


_READERS: dict[str, Callable[[], FrozenMiniLM]] = {
    "minilm": frozen_text,
    "minilm_onward": partial(frozen_text, stages=STAGES, onward=True),
    "minilm_words": partial(frozen_text, 0),
}

READ: dict[str, tuple[HiddenStates, int]] = {
    "minilm": (bidirectional_states, WIDTH),
    "minilm_onward": (causal_states, WIDTH * len(STAGES)),
    "minilm_words": (word_states, WIDTH),
}
"""What reads a text for `embedders.text`, and how many numbers it says of each piece."""
