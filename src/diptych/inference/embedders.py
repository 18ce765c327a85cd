"""Embedders: a model's own patch and word embeddings, or frozen features in their place.

Images: "own" patches, the "grid" cells of a frozen CNN, "boxes" or "hypercolumns" pooled from it in fixed boxes, or
region features from files. Texts: "own" words, or states of a frozen MiniLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from diptych.config.data import BOXES, HALF, Embedders, ImageSettings
from diptych.data.images.loading import ImageLoader
from diptych.data.regions.arrays import SCALES, fixed_boxes
from diptych.data.regions.files import open_regions
from diptych.data.regions.frozen_features import BoxLoader, ExtractedFeatures, FeatureKeys, GridLoader, RegionLoader
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.hypercolumns import Hypercolumns
from diptych.inference.feature_extractors import (
    TEXT_FEATURES,
    cnn_maps,
    frozen_cnn,
    frozen_sources,
    hypercolumns,
    memory_cache,
)
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.models.configs import (
    RegionModel,
    SCANConfig,
    VisualBERTConfig,
    VisualTokenizerConfig,
    VSEppConfig,
    model_name,
)
from diptych.modules.embeddings import GridEmbedding, RegionEmbedding
from diptych.modules.frozen_text import FrozenTextEmbedding, FrozenTextEncoder
from diptych.modules.input_embeddings import Grid, InputEmbeddings
from diptych.modules.normalization import CENTRED
from diptych.utils.feature_cache import MemoryCache, digest

CNN_GRID = (7, 7)  # its size for images of 224 x 224 pixels


def input_embeddings(settings: ModelSettings) -> InputEmbeddings:
    """The input embeddings of `settings.embedders`, for the constructor of the model.

    Raises:
        RunError: the model's region features have another dimension.
    """
    model, config = settings.model, settings.embedders
    if isinstance(model, RegionModel) and config.image in BOXES and model.feature_dim != _feature_dim(config):
        raise RunError(
            f"{config.image} have {_feature_dim(config)} features each, and this {model_name(model)} reads "
            f"{model.feature_dim}: set model.feature_dim to {_feature_dim(config)}"
        )
    image = None if config.image == "own" or isinstance(model, RegionModel) else _image_embedding(config)
    if config.text == "own":
        return InputEmbeddings(image, feature_dropout=config.dropout)
    source, feature_dim = TEXT_FEATURES[config.text]
    arguments = {"source": source, "feature_dim": feature_dim, "dropout": config.dropout}
    text = partial(FrozenTextEncoder, **arguments) if config.text == "minilm" else None
    return InputEmbeddings(image, text, partial(FrozenTextEmbedding, **arguments), config.dropout)


def _image_embedding(config: Embedders) -> Callable[[int, Grid | None], nn.Module]:
    """Factory of the embedding of frozen image features, from the model's width and position grid."""
    if config.image == "grid":
        return lambda dim, grid: GridEmbedding(cnn_maps, FrozenCNN.width, dim, grid or CNN_GRID, class_token=True)
    return lambda dim, _: RegionEmbedding(_feature_dim(config), dim, feature_dropout=config.dropout)


def _feature_dim(config: Embedders) -> int:
    """Features per region."""
    return {"boxes": FrozenCNN.width, "hypercolumns": Hypercolumns.width}.get(config.image, config.feature_dim)


def reads_regions(settings: ModelSettings) -> bool:
    """Whether the model's image input is region features."""
    return isinstance(settings.model, RegionModel) or settings.embedders.image not in ("own", "grid")


def input_image_settings(settings: ModelSettings) -> ImageSettings:
    """The image settings of the model's input; for the CNN's grid with the normalization that it was trained with."""
    return replace(settings.images, mean=HALF, std=HALF) if settings.embedders.image == "grid" else settings.images


def augmentation_warning(settings: ModelSettings) -> str:
    """Warning that augmentation has no effect on region features; "" if it has, or is off."""
    if not settings.images.augmented or settings.embedders.image in ("own", "grid"):
        return ""
    reason = "regions come from a detector that read each image once"
    if settings.embedders.image in BOXES:
        reason = "boxes are pooled from features that a frozen CNN computed once for each image"
    name, off = ("images.augment", "False") if settings.images.augment else ("images.random_crop", "0")
    return f'{name} has no effect: {reason}; set it to {off}, or embedders.image to "grid" or "own"'


def image_input(settings: ModelSettings, augment: bool = False) -> ImageSettings | ImageLoader:
    """How examples load the model's image input: settings for pixels, or a loader of frozen features.

    Args:
        augment: training examples; images are augmented if the settings say so.

    Raises:
        RunError: a model of region features without any.
        DataError: region files cannot be used.
    """
    images = input_image_settings(settings)
    images = images if augment else images.without_augmentation()
    model, kind = settings.model, settings.embedders.image
    if kind == "own":
        if isinstance(model, RegionModel):
            raise RunError(
                f'a {model_name(model)} reads region features: set embedders.image to "boxes", or to the path of '
                "region files"
            )
        return images
    if kind == "grid" and images.augmented:
        return images  # the CNN computes the features of each augmented image anew
    has_whole_image = not isinstance(model, SCANConfig | VisualBERTConfig | VSEppConfig)  # serves as class token
    if kind not in ("grid", *BOXES):
        return RegionLoader(open_regions(Path(kind)), has_whole_image)
    if kind == "grid":
        return _grid_loader(images)
    network = hypercolumns() if kind == "hypercolumns" else frozen_cnn()
    # maps of all stages are ten times as large, and only what is pooled from them is kept in memory
    map_cache = MemoryCache(0) if kind == "hypercolumns" else memory_cache()
    features = ExtractedFeatures(network.extract, network.name, images, map_cache)
    boxes = fixed_boxes(settings.embedders.scales or SCALES)
    return BoxLoader(features, boxes, network.project, memory_cache(), has_whole_image)


def _grid_loader(images: ImageSettings) -> GridLoader:
    """The loader of the frozen CNN's last feature map."""
    return GridLoader(ExtractedFeatures(frozen_cnn().extract, frozen_cnn().name, images, memory_cache()))


COMPARED = ImageSettings(shorter_side=224, square=True, augment=False)
"""The preprocessing of images whose CNN features are compared, where the model itself reads pixels."""


def comparable_features(settings: ModelSettings) -> tuple[ImageLoader, bytes]:
    """A loader of frozen features by which images are compared, and a digest of what they depend on.

    The features are those that the model reads; the frozen CNN's, if it reads pixels.
    """
    loader = image_input(settings)
    if isinstance(loader, ImageSettings):
        return _grid_loader(COMPARED), digest(frozen_cnn().name, repr(COMPARED))
    sources = frozen_sources(settings).get("image", "")
    return loader, digest(sources, repr(settings.embedders), repr(replace(settings.images, augment=False)))


def cnn_feature_keys(settings: ModelSettings, augment: bool = False) -> FeatureKeys | None:
    """Cache keys of a visual tokenizer's images, by which its CNN teacher reuses features that other runs computed.

    None if there is no such tokenizer, or if images are augmented or normalized in another way than the CNN's.
    """
    images = input_image_settings(settings)
    same_pixels = (
        settings.embedders.image == "own" and images.mean_std == CENTRED and not (augment and images.augmented)
    )
    if not (isinstance(settings.model, VisualTokenizerConfig) and same_pixels):
        return None
    return FeatureKeys(frozen_cnn().name, images)
