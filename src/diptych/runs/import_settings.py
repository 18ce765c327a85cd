"""The config of an imported checkpoint: its model, and its paper's published image preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from diptych.checkpoints.adapter import config_of
from diptych.config.data import IMAGENET_MEAN, IMAGENET_STD, Channels, Embedders, ImageSettings
from diptych.inference.saved_model import Imported, RunError, SavedModel
from diptych.models.albef import recipes as albef
from diptych.models.beit3 import recipes as beit3
from diptych.models.blip import recipes as blip
from diptych.models.clip import recipes as clip
from diptych.models.coca import recipes as coca
from diptych.models.configs import CrossViTConfig, Model, RegionModel
from diptych.models.importing import ADAPTERS, OfficialCheckpoint
from diptych.models.mae import recipes as mae
from diptych.models.scan import recipes as scan
from diptych.models.vilbert import recipes as vilbert
from diptych.models.vilt import recipes as vilt
from diptych.models.vit import recipes as vit
from diptych.models.vlmo import recipes as vlmo
from diptych.models.vsepp import recipes as vsepp

PUBLISHED: dict[str, Callable[[], Any]] = {
    "albef": albef.pretrain_4m, "beit3": beit3.base, "blip": blip.pretrain_14m, "clip": clip.base,
    "clip_resnet": clip.base, "open_clip": clip.base, "coca": coca.open_clip, "mae": mae.base,
    "scan": scan.flickr30k, "vilbert": vilbert.pretrain, "vilt": vilt.base,
    "vit": vit.base, "vlmo": vlmo.base, "vsepp": vsepp.flickr30k,
}  # fmt: skip
"""The recipe whose image preprocessing an imported model takes, by system; a CrossViT has that of ImageNet."""

PRETRAINING = ("pretraining", "encoder", "matching", "caption", "captioning")
"""Tasks of official code whose models have the heads of pre-training, or none."""


def saved_from_checkpoint(
    imported: OfficialCheckpoint, config: Mapping[str, Any], regions: str, name: str
) -> SavedModel:
    """The config of a checkpoint.

    Args:
        config: settings that cannot be inferred from weight shapes, such as the mean and std of images.
        regions: the folder of the region features that the model takes.
        name: of the checkpoint's file.

    Raises RunError.
    """
    model: Model = config_of(ADAPTERS[imported.system].config_class, imported.arguments)
    images, embedders = _inputs(imported, model, regions)
    heads = imported.head_names
    task = imported.task
    if task in PRETRAINING or (task == "retrieval" and heads):  # ViLT's retrieval has a ranking head instead
        task = "pretraining"
    trained = ADAPTERS[imported.system].losses(imported.task, heads) if task == "pretraining" else (task,)
    return SavedModel(
        model=model,
        images=with_normalization(images, config),
        embedders=embedders,
        task=task,
        heads=heads if task == "pretraining" else (),
        losses=trained,
        imported=Imported(system=imported.system, task=imported.task, checkpoint=name, ignored=imported.ignored),
    )


def _inputs(imported: OfficialCheckpoint, model: Any, regions: str) -> tuple[ImageSettings, Embedders]:
    """Image preprocessing and embedders of a checkpoint's model."""
    if isinstance(model, CrossViTConfig):
        side = model.image_sizes[0]
        return ImageSettings(shorter_side=side, square=True, mean=IMAGENET_MEAN, std=IMAGENET_STD), Embedders()
    published = PUBLISHED[imported.system]()
    images: ImageSettings = published.images
    if isinstance(model, RegionModel):
        return images, Embedders(image=regions or published.embedders.image, feature_dim=model.feature_dim)
    images = replace(images, shorter_side=model.patch_size * min(model.grid), patch_size=model.patch_size)
    if (imported.system, imported.task) == ("beit3", "classification"):
        images = replace(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return images, published.embedders


def with_normalization(images: ImageSettings, config: Mapping[str, Any]) -> ImageSettings:
    """The image settings with the mean and std of a config.

    They are `mean` and `std` (timm; also nested in its pretrained_cfg, and in open_clip's preprocess_cfg), or
    `image_mean` and `image_std` (Hugging Face). Raises RunError.
    """
    nested = config.get("preprocess_cfg", config.get("pretrained_cfg"))
    parts = (config, nested) if isinstance(nested, Mapping) else (config,)
    mean, std = (
        next((part[name] for name in (f"image_{key}", key) for part in parts if name in part), None)
        for key in ("mean", "std")
    )
    return replace(images, mean=_channels(mean, images.mean, "mean"), std=_channels(std, images.std, "std"))


def _channels(value: Any, default: Channels, key: str) -> Channels:
    """Three numbers, one for each channel; `default` if the config has none. Raises RunError."""
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(x, int | float) for x in value):
        raise RunError(f"--config: {key} of images is {value!r}; expected three numbers")
    if key == "std" and min(value) <= 0:
        raise RunError(f"--config: std of images is {value!r}; expected three numbers above 0")
    red, green, blue = map(float, value)
    return red, green, blue
