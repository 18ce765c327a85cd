"""Embedders of a run: a model's own patch and word embeddings, or frozen features in their place.

Images: "own" patches, the "grid" cells of a frozen CNN, "boxes" or "hypercolumns" pooled from it in fixed boxes, or
region features from files. Texts: "own" words, or states of a frozen MiniLM.
"""

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
from diptych.runs.feature_extractors import TEXT_FEATURES, cnn_maps, frozen_cnn, hypercolumns, memory_cache
from diptych.runs.run_folder import RunError
from diptych.utils.feature_cache import MemoryCache

CNN_CELL = 1280  # channels of the CNN's last feature map
CNN_GRID = (7, 7)  # its size for images of 224 x 224 pixels
DECODER_PARTS = ("decoder", "answer_words")  # keep their own words: bidirectional features would leak future tokens


def install_embedders(model: nn.Module, run: Pretrain | Finetune) -> None:
    """Replaces the embeddings of a built model by those of `run.embedders`.

    Heads that share the model's word embeddings must be built before.

    Raises:
        RunError: the model's region features have another dimension, or its decoder would read bidirectional features.
    """
    config = run.embedders
    if isinstance(run.model, RegionModel) and config.image in BOXES and run.model.feature_dim != _feature_dim(config):
        raise RunError(
            f"{config.image} have {_feature_dim(config)} features each, and this {model_name(run.model)} reads "
            f"{run.model.feature_dim}: set model.feature_dim to {_feature_dim(config)}"
        )
    if config.image == "grid":
        _replace_parts(model, (PatchEmbedding, PatchEmbeddingWithoutPosition), _grid_embedding)
    elif config.image != "own" and not isinstance(run.model, RegionModel):
        _replace_parts(
            model,
            (PatchEmbedding, PatchEmbeddingWithoutPosition),
            lambda old: RegionEmbedding(_feature_dim(config), _patch_dim(old)),
        )
    if config.dropout and reads_regions(run):
        for parent, name in _region_projections(model):
            setattr(parent, name, InputDropout.like(getattr(parent, name), config.dropout))
    if config.text == "own":
        return
    source, features = TEXT_FEATURES[config.text]
    if config.text == "minilm":
        encoder = partial(FrozenTextEncoder, source=source, feature_dim=features, dropout=config.dropout)
        _replace_parts(model, (TextEmbedding,), lambda old: encoder(_word_dim(old)))
        _check_no_leak(model, run)
    words = partial(FrozenTextEmbedding, source=source, feature_dim=features, dropout=config.dropout)
    _replace_parts(model, (nn.Embedding,), lambda old: words(_embedding_dim(old)), called="word")


def _region_projections(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The linear layers that project region features: parent module and attribute name of each."""
    for part in model.modules():
        if isinstance(part, RegionEmbedding | RegionEmbeddingWithoutPosition):
            yield part, "feature"
        elif isinstance(part, vsepp.VSEpp | scan.SCAN):
            yield part, "image"


def _feature_dim(config: Embedders) -> int:
    """Features per region."""
    return {"boxes": FrozenCNN.width, "hypercolumns": Hypercolumns.width}.get(config.image, config.feature_dim)


def _check_no_leak(model: nn.Module, run: Pretrain | Finetune) -> None:
    """Raises RunError if a causal objective would read bidirectional MiniLM features."""
    causal = isinstance(run, Pretrain) and (run.objectives.lm or run.objectives.masked_captions)
    if causal and any(name == "word" for _, name, _ in _parts(model)):
        raise RunError(
            f"{model_name(run.model)} decodes autoregressively, and bidirectional MiniLM features would leak future "
            'tokens: set embedders.text to "minilm_causal" (causal mask) or "own"'
        )


def reads_regions(run: Pretrain | Finetune) -> bool:
    """Whether the model's image input is region features."""
    return isinstance(run.model, RegionModel) or run.embedders.image not in ("own", "grid")


def image_loader(run: Pretrain | Finetune) -> ImageSettings:
    """The run's image settings. Images for the CNN's grid have the normalization that the CNN was trained with."""
    return replace(run.images, mean=HALF, std=HALF) if run.embedders.image == "grid" else run.images


def unused_region_settings(run: Pretrain | Finetune) -> str:
    """Warning that `images.augment` has no effect on region features; "" if it has, or is off."""
    if not run.images.augment or run.embedders.image in ("own", "grid"):
        return ""
    reason = "regions come from a detector that read each image once"
    if run.embedders.image in BOXES:
        reason = "boxes are pooled from features that a frozen CNN computed once for each image"
    return f'images.augment has no effect: {reason}; set it to False, or embedders.image to "grid" or "own"'


def shown_images(run: Pretrain | Finetune, augment: bool = False) -> ImageSettings | ImageLoader:
    """How examples load the model's image input: settings for pixels, or a loader of frozen features.

    Args:
        augment: training examples; images are augmented if the run's settings say so.

    Raises:
        RunError: a model of region features without any.
        DataError: region files cannot be used.
    """
    images, kind = replace(image_loader(run), augment=augment and run.images.augment), run.embedders.image
    if kind == "own":
        if isinstance(run.model, RegionModel):
            raise RunError(
                f'a {model_name(run.model)} reads region features: set embedders.image to "boxes", or to the path of '
                "region files"
            )
        return images
    if kind == "grid" and images.augment:
        return images  # the CNN computes the features of each augmented image anew
    has_whole_image = not isinstance(run.model, SCANConfig | VisualBERTConfig | VSEppConfig)  # serves as class token
    if kind not in ("grid", *BOXES):
        return RegionLoader(open_regions(Path(kind)), has_whole_image)
    network = hypercolumns() if kind == "hypercolumns" else frozen_cnn()
    # maps of all stages are ten times as large, and only what is pooled from them is kept in memory
    map_cache = MemoryCache(0) if kind == "hypercolumns" else memory_cache()
    features = ExtractedFeatures(network.extract, network.name, images, map_cache)
    if kind == "grid":
        return GridLoader(features)
    boxes = fixed_boxes(run.embedders.scales or SCALES)
    return BoxLoader(features, boxes, network.project, memory_cache(), has_whole_image)


def image_key_names(run: Pretrain, augment: bool = False) -> FeatureKeys | None:
    """Cache keys of a visual tokenizer's images, by which its CNN teacher reuses features that other runs computed.

    None if there is no such tokenizer, or if images are augmented or normalized in another way than the CNN's.
    """
    images = image_loader(run)
    same_pixels = run.embedders.image == "own" and images.mean_std == CENTRED and not (augment and images.augment)
    return FeatureKeys(frozen_cnn().name, images) if run.objectives.vqkd and same_pixels else None


def _grid_embedding(old: nn.Module) -> nn.Module:
    return GridEmbedding(cnn_maps, CNN_CELL, _patch_dim(old), getattr(old, "grid", CNN_GRID), class_token=True)


def _embedding_dim(old: nn.Module) -> int:
    assert isinstance(old, nn.Embedding)
    return old.embedding_dim


def _word_dim(old: nn.Module) -> int:
    assert isinstance(old, TextEmbedding)
    return old.word.embedding_dim


def _patch_dim(old: nn.Module) -> int:
    project = old.project
    assert isinstance(project, nn.Linear)
    return project.out_features


def _replace_parts(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], make: Callable[[nn.Module], nn.Module], called: str = ""
) -> None:
    """Replaces every part of these kinds (and of that attribute name, if `called` is given) by `make(part)`."""
    for parent, name, part in list(_parts(model)):
        if isinstance(part, kinds) and called in ("", name):
            setattr(parent, name, make(part))


def _parts(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute name, part) of every part of `model` outside decoders; a shared part once for each parent."""
    for name, part in model.named_children():
        if name not in DECODER_PARTS:
            yield model, name, part
            yield from _parts(part)
