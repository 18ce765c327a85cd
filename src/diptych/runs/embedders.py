"""What stands before a model's first block, exchanged by assignment for what a frozen network sees or reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from diptych.config.data import HALF, ImageSettings
from diptych.config.run import BOXES, Embedders, Finetune, Pretrain
from diptych.data.images.loading import ImageLoader
from diptych.data.regions.arrays import SCALES, fixed_boxes
from diptych.data.regions.files import open_regions
from diptych.data.regions.frozen_features import BoxLoader, ExtractedFeatures, FeatureKeys, GridLoader, RegionLoader
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.hypercolumns import Hypercolumns
from diptych.models.configs import RegionModel, SCANConfig, VisualBERTConfig, VSEppConfig, model_name
from diptych.models.scan import model as scan
from diptych.models.vsepp import model as vsepp
from diptych.modules.embeddings import (
    GridEmbedding,
    PatchEmbedding,
    PatchEmbeddingWithoutPosition,
    RegionEmbedding,
    RegionEmbeddingWithoutPosition,
    TextEmbedding,
)
from diptych.modules.frozen_text import FrozenTextEmbedding, FrozenTextEncoder, InputDropout
from diptych.modules.normalization import CENTRED
from diptych.runs.feature_extractors import READ, cnn_maps, frozen_cnn, hypercolumns, memory_cache
from diptych.runs.run_folder import RunError
from diptych.utils.cache import MemoryCache

CNN_CELL = 1280  # numbers per cell of the CNN's grid
CNN_GRID = (7, 7)  # of pictures of 224 pixels
WRITES = ("decoder", "answer_words")  # parts that write texts, and may not be told what comes after


def install_embedders(model: nn.Module, run: Pretrain | Finetune) -> None:
    """Puts the run's embedders in the place of the model's own. Heads that are tied to its words must be made before.

    Raises RunError where the model reads other features than the run's boxes have.
    """
    embed = run.embedders
    if isinstance(run.model, RegionModel) and embed.image in BOXES and run.model.feature_dim != _features(embed):
        asked = f"{embed.image} have {_features(embed)} features each, and this {model_name(run.model)} reads"
        raise RunError(f"{asked} {run.model.feature_dim}: set model.feature_dim to {_features(embed)}")
    if embed.image == "grid":
        _put(model, (PatchEmbedding, PatchEmbeddingWithoutPosition), _grid)
    elif embed.image != "own" and not isinstance(run.model, RegionModel):
        _put(
            model,
            (PatchEmbedding, PatchEmbeddingWithoutPosition),
            lambda old: RegionEmbedding(_features(embed), _width(old)),
        )
    if embed.dropout and reads_regions(run):
        for parent, name in _readers(model):
            setattr(parent, name, InputDropout.like(getattr(parent, name), embed.dropout))
    if embed.text == "own":
        return
    source, features = READ[embed.text]
    if embed.text == "minilm":
        given = partial(FrozenTextEncoder, source=source, feature_dim=features, dropout=embed.dropout)
        _put(model, (TextEmbedding,), lambda old: given(_word_width(old)))
        _refuse_foretelling(model, run)
    words = partial(FrozenTextEmbedding, source=source, feature_dim=features, dropout=embed.dropout)
    _put(model, (nn.Embedding,), lambda old: words(old.embedding_dim), named="word")  # type: ignore[arg-type]


def _readers(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The linear layers that read regions' features: what holds each, and its name there."""
    for part in model.modules():
        if isinstance(part, RegionEmbedding | RegionEmbeddingWithoutPosition):
            yield part, "feature"
        elif isinstance(part, vsepp.VSEpp | scan.SCAN):
            yield part, "image"


def _features(embed: Embedders) -> int:
    """Numbers per region."""
    told = {"boxes": FrozenCNN.width, "hypercolumns": Hypercolumns.width}
    return told.get(embed.image, embed.feature_dim)


def _refuse_foretelling(model: nn.Module, run: Pretrain | Finetune) -> None:
    """Raises RunError where the words that a model is to foretell would be read in states that have seen them."""
    foretells = isinstance(run, Pretrain) and (run.objectives.lm or run.objectives.masked_captions)
    if foretells and any(name == "word" for _, name, _ in _parts(model)):
        raise RunError(
            f"{model_name(run.model)} foretells words, and minilm's states have seen those to come: set embedders.text to "
            '"minilm_onward" or "own"'
        )


def reads_regions(run: Pretrain | Finetune) -> bool:
    """Whether images come as regions."""
    return isinstance(run.model, RegionModel) or run.embedders.image not in ("own", "grid")


def image_loader(run: Pretrain | Finetune) -> ImageSettings:
    """How the run's pixels are made: those of which a CNN makes cells are normalised as it learned them."""
    return replace(run.images, mean=HALF, std=HALF) if run.embedders.image == "grid" else run.images


def unused_region_settings(run: Pretrain | Finetune) -> str:
    """What a run asks of its pictures that they are not shown with; "" where all is followed."""
    if not run.images.augment or run.embedders.image in ("own", "grid"):
        return ""
    seen = "boxes are pooled from what a frozen CNN saw in each picture, once" if run.embedders.image in BOXES else ""
    seen = seen or "regions are what a detector saw in each picture"
    return f'images.augment is not followed: {seen}; set it to False, or embedders.image to "grid" or "own"'


def shown_images(run: Pretrain | Finetune, augment: bool = False) -> ImageSettings | ImageLoader:
    """How the run's model is shown its pictures, which every kind of examples asks for. Raises RunError, DataError."""
    images, asked = replace(image_loader(run), augment=augment and run.images.augment), run.embedders.image
    if asked == "own":
        if isinstance(run.model, RegionModel):
            raise RunError(
                f'a {model_name(run.model)} reads regions: set embedders.image to "boxes", or where they lie'
            )
        return images
    if asked == "grid" and images.augment:
        return images  # the CNN sees each picture anew
    whole = not isinstance(run.model, SCANConfig | VisualBERTConfig | VSEppConfig)  # a class token's place
    if asked not in ("grid", *BOXES):
        return RegionLoader(open_regions(Path(asked)), whole)
    network = hypercolumns() if asked == "hypercolumns" else frozen_cnn()
    # maps of all stages are not remembered, but for what is pooled from them: they are ten times as large
    seen = ExtractedFeatures(
        network.extract, network.name, images, MemoryCache(0) if asked == "hypercolumns" else memory_cache()
    )
    if asked == "grid":
        return GridLoader(seen)
    boxes = fixed_boxes(run.embedders.scales or SCALES)
    return BoxLoader(seen, boxes, network.project, memory_cache(), whole)


def image_key_names(run: Pretrain, augment: bool = False) -> FeatureKeys | None:
    """What a visual tokenizer's pictures are known by: its teacher looks at them once for all runs that are shown the same.
    None where they come otherwise than frozen networks look at them.
    """
    images = image_loader(run)
    alike = run.embedders.image == "own" and images.mean_std == CENTRED and not (augment and images.augment)
    return FeatureKeys(frozen_cnn().name, images) if run.objectives.vqkd and alike else None


def _grid(old: nn.Module) -> nn.Module:
    return GridEmbedding(cnn_maps, CNN_CELL, _width(old), getattr(old, "grid", CNN_GRID), first=True)


def _word_width(old: nn.Module) -> int:
    assert isinstance(old, TextEmbedding)
    return old.word.embedding_dim


def _width(old: nn.Module) -> int:
    project = old.project
    assert isinstance(project, nn.Linear)
    return project.out_features


def _put(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], make: Callable[[nn.Module], nn.Module], named: str = ""
) -> None:
    for parent, name, part in list(_parts(model)):
        if isinstance(part, kinds) and named in ("", name):
            setattr(parent, name, make(part))


def _parts(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every part with its parent and its name there, but for what writes; a part that two share comes under both."""
    for name, part in model.named_children():
        if name not in WRITES:
            yield model, name, part
            yield from _parts(part)
