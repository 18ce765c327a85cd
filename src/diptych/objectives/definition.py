"""Definition of an objective: what it needs of model and data, and how its loss is built from its settings.

Each file of this folder with a pre-training loss has a `Definition` of it, which names the settings in
config/objectives.py; everything else finds it by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

from torch import nn

import diptych.objectives
from diptych.config.objectives import Objectives, WordRegionMasking
from diptych.objectives.pretraining import Objective
from diptych.objectives.random_choices import PairMasking, WordMasking

Settings = TypeVar("Settings")


class OtherObjective(NamedTuple):
    """Another objective that one cannot do without: its name, why, and the setting that makes it unnecessary."""

    name: str
    why: str
    alternative: str


@dataclass(frozen=True)
class Needs:
    """What an objective, with its settings, needs of the model, of the data and of frozen networks.

    Args:
        model: protocols of the model.
        head: the pre-training head that it reads; "" if none.
        text, image: whether a batch must have texts, and images (or regions).
        mismatched_pairs: half of the images are those of other samples.
        regions: images are detected regions.
        patch_grid: image tokens are patches on a grid, one state for each: not regions, nor a visual tokenizer's.
        masks_patches: patches are masked in the model's own patch embedding.
        equal_dims: text and image states have one dimension.
        frozen_cnn: the frozen CNN, in training.
        visual_tokenizer: the frozen visual tokenizer, in training.
        codebook_size: number of codes that the visual tokenizer must have; 0: any.
        causal: text is decoded autoregressively, so that its input features must not depend on later tokens.
        grad_cache_size: samples per encoder pass with gradient caching; 0: the whole batch.
        other: another objective of the run.
    """

    model: tuple[type, ...] = ()
    head: str = ""
    text: bool = True
    image: bool = True
    mismatched_pairs: bool = False
    regions: bool = False
    patch_grid: bool = False
    masks_patches: bool = False
    equal_dims: bool = False
    frozen_cnn: bool = False
    visual_tokenizer: bool = False
    codebook_size: int = 0
    causal: bool = False
    grad_cache_size: int = 0
    other: OtherObjective | None = None


@dataclass(frozen=True)
class Setup:
    """What losses are built with besides their settings: the vocabulary, and the names of the run's ITC heads."""

    vocab_size: int
    mask_id: int
    itc_heads: tuple[str, ...] = ("itc",)

    def word_masking(self, rate: float, whole_words: bool, ends: bool = False) -> WordMasking:
        """The masking of words of the run's vocabulary; `ends`: end tokens may be masked too."""
        return WordMasking(self.vocab_size, self.mask_id, rate, whole_words, ends)

    def pair_masking(self, settings: WordRegionMasking) -> PairMasking:
        """The masking of words and regions at the same time."""
        return PairMasking(self.word_masking(settings.word_rate, settings.whole_words), settings.regions)


def no_heads(settings: Any, model: Any, heads: nn.ModuleDict) -> None:
    """Adds no heads: those of the model suffice."""


@dataclass(frozen=True)
class Definition(Generic[Settings]):
    """An objective.

    Args:
        settings: the class of its settings.
        needs: what it needs, with given settings.
        losses: its losses (and metrics) with given settings. The first has the name of the field of `Objectives`.
        add_heads: adds the pre-training heads that the model lacks to those of the run.
        trains: the evaluation task that it trains a model for; "" if none.
    """

    settings: type[Settings]
    needs: Callable[[Settings], Needs]
    losses: Callable[[Settings, Setup], list[Objective]]
    add_heads: Callable[[Settings, Any, nn.ModuleDict], None] = no_heads
    trains: str = ""


@cache
def definitions() -> dict[str, Definition[Any]]:
    """The definition of every field of `Objectives`, in their order.

    Raises LookupError for a field of whose settings no file of this folder has a definition.
    """
    modules = [
        import_module(f"{diptych.objectives.__name__}.{m.name}") for m in iter_modules(diptych.objectives.__path__)
    ]
    by_settings = {d.settings: d for module in modules for d in vars(module).values() if isinstance(d, Definition)}
    table = {}
    for name, hint in get_type_hints(Objectives).items():
        settings = next(member for member in get_args(hint) if member is not type(None))
        if settings not in by_settings:
            raise LookupError(f"objectives.{name}: no file in objectives/ has a Definition({settings.__name__}, ...)")
        table[name] = by_settings[settings]
    return table


def needs_of(objectives: Objectives) -> dict[str, Needs]:
    """What each objective of a run needs, by its name."""
    return {name: definitions()[name].needs(settings) for name, settings in objectives.present().items()}


def any_needs(objectives: Objectives, need: Callable[[Needs], object]) -> bool:
    """Whether `need` (``lambda needs: needs.text``) is true of what any objective of a run needs."""
    return any(need(needs) for needs in needs_of(objectives).values())


def losses_of(objectives: Objectives, setup: Setup) -> Iterator[Objective]:
    """The losses and metrics of a run's objectives."""
    for name, settings in objectives.present().items():
        yield from definitions()[name].losses(settings, setup)


def losses_that_train(task: str) -> set[str]:
    """The names of the losses that train a model for an evaluation task."""
    return {name for name, definition in definitions().items() if definition.trains == task}
