"""From an official checkpoint to the run that it is: the published settings, at the checkpoint's own sizes and with its heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diptych.config.data import IMAGENET_MEAN, IMAGENET_STD, Channels, ImageSettings
from diptych.config.run import LOSSES, Embedders, Finetune, ImportedCheckpoint, Objectives, Pretrain
from diptych.models import common_recipes
from diptych.models.albef import recipes as albef
from diptych.models.beit3 import recipes as beit3
from diptych.models.blip import recipes as blip
from diptych.models.clip import recipes as clip
from diptych.models.coca import recipes as coca
from diptych.models.configs import CrossViTConfig, RegionModel
from diptych.models.crossvit import recipes as crossvit
from diptych.models.importing import Imported
from diptych.models.mae import recipes as mae
from diptych.models.scan import recipes as scan
from diptych.models.vilbert import recipes as vilbert
from diptych.models.vilt import recipes as vilt
from diptych.models.vit import recipes as vit
from diptych.models.vlmo import recipes as vlmo
from diptych.models.vsepp import recipes as vsepp
from diptych.objectives.pretraining import Pretraining
from diptych.runs.run_folder import RunError
from diptych.tasks.captioning import Captioning
from diptych.tasks.retrieval import ContrastRetrieval

PUBLISHED: dict[str, Callable[[], Pretrain]] = {
    "albef": albef.pretrain_4m, "beit3": beit3.base, "blip": blip.pretrain_14m, "clip": clip.base, "open_clip": clip.base,
    "coca": coca.open_clip, "mae": mae.base, "scan": scan.flickr30k, "vilbert": vilbert.pretrain, "vilt": vilt.base,
    "vit": vit.base, "vlmo": vlmo.base, "vsepp": vsepp.flickr30k,
}  # fmt: skip
"""The recipe whose pictures, objectives and training an imported run has."""

SAID_OTHERWISE = {"caption": "lm", "retrieval": "itc"}
"""Losses of steps that the official code has for one task alone, by their names in pre-training."""

OWN_TRAINING = {
    "vqa": common_recipes.vqa,
    "retrieval": common_recipes.retrieval,
    "classification": common_recipes.classification,
}

NO_RUN = {
    ("clip_resnet", "pretraining"): "no recipe has CLIP's ResNet",
    ("blip", "matching"): "its contrast has no temperature, so that it was not trained as it is",
}
"""What no recipe expresses, and why."""


def run_of(found: Imported, step: nn.Module, config: Mapping[str, Any], regions: str, name: str) -> Any:
    """The run, a Pretrain or a Finetune; an ImportedCheckpoint of what no recipe expresses.

    `step`: what was trained, of a student beside its teacher the student. `config`: settings that stand in no shape, the
    pictures' mean and std among them. `regions`: where the regions lie that a model reads. `name`: the file's. Raises
    RunError.
    """
    if why := NO_RUN.get((found.system, found.task)):
        return ImportedCheckpoint(found.system, found.task, found.arguments, name, why)
    if found.system == "crossvit":
        return _crossvit(found, config)
    published = PUBLISHED[found.system]()
    model = type(published.model)(**found.arguments)
    images = published.images
    if isinstance(model, RegionModel):
        embed = Embedders(image=regions or published.embedders.image, feature_dim=model.feature_dim)
        published = replace(published, embedders=embed)
    else:
        images = replace(images, shorter_side=model.patch_size * min(model.grid), patch_size=model.patch_size)  # type: ignore[union-attr]
    if (found.system, found.task) == ("beit3", "classification"):
        images = replace(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    run = replace(published, model=model, images=normalised(images, config))
    if isinstance(step, Pretraining | ContrastRetrieval | Captioning):
        return _pretraining(run, step, found.arguments)
    if found.task == "encoder":
        return replace(run, objectives=Objectives(), heads=())
    return _task(run, found.task)


def normalised(images: ImageSettings, config: Mapping[str, Any]) -> ImageSettings:
    """Pictures as settings tell of them: `mean` and `std` (timm's, also under pretrained_cfg; open_clip's under
    preprocess_cfg), `image_mean` and `image_std` (Hugging Face's). Raises RunError.
    """
    nested = config.get("preprocess_cfg", config.get("pretrained_cfg"))
    told = {**(nested if isinstance(nested, Mapping) else {}), **config}
    mean, std = (told.get(f"image_{part}", told.get(part)) for part in ("mean", "std"))
    return replace(images, mean=_channels(mean, images.mean, "mean"), std=_channels(std, images.std, "std"))


def _channels(told: Any, usual: Channels, what: str) -> Channels:
    if told is None:
        return usual
    if not isinstance(told, list) or len(told) != 3 or not all(isinstance(x, int | float) for x in told):
        raise RunError(f"--config: {what} of pictures is {told!r}; give three numbers")
    if what == "std" and min(told) <= 0:
        raise RunError(f"--config: std of pictures is {told!r}; give three numbers above 0")
    red, green, blue = map(float, told)
    return red, green, blue


def _pretraining(run: Pretrain, step: Any, arguments: Mapping[str, Any]) -> Pretrain:
    """With the step's own losses, their weights, and heads."""
    weights = {SAID_OTHERWISE.get(name, name): weight for name, weight in step.weights.items()}
    asked = replace(run.objectives, **{name: weights.get(name, 0.0) for name in LOSSES})
    asked = replace(asked, hard_negatives=asked.hard_negatives and bool(asked.itc))
    if asked.mlm and "vl_start_layer" in arguments:  # VLMo: before images are met, texts are read alone
        asked = replace(asked, text_only=arguments["vl_start_layer"] == arguments["depth"])
    if asked.masked_regions and arguments["num_region_targets"] == arguments["feature_dim"]:
        asked = replace(asked, region_target="features")
    if asked.masked_captions:
        asked = replace(asked, mask_rate=0.7)
    heads = tuple(step.heads) if hasattr(step, "heads") else ()
    return replace(run, objectives=asked, heads=heads)


def _task(run: Pretrain, task: str) -> Finetune:
    """The task by that name; of what `finetune` has not, one that can be exported and started from, not scored."""
    own = OWN_TRAINING.get(task, common_recipes.vqa)(run)
    return replace(own, task=task, embedders=run.embedders, recipe=run.recipe)


def _crossvit(found: Imported, config: Mapping[str, Any]) -> Finetune:
    model = CrossViTConfig(**found.arguments)
    images = ImageSettings(shorter_side=model.image_sizes[0], square=True, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return replace(crossvit.small(), model=model, images=normalised(images, config), recipe="")
