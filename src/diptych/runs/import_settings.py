"""The run of an imported checkpoint: its paper's published recipe, with the sizes and heads of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diptych.config.data import IMAGENET_MEAN, IMAGENET_STD, Channels, ImageSettings
from diptych.config.objectives import ITM, HardNegatives, MaskedCaptions, NoImage, Objectives
from diptych.config.run import Embedders, Finetune, ImportedCheckpoint, Pretrain
from diptych.models import common_recipes
from diptych.models.albef import recipes as albef
from diptych.models.beit3 import recipes as beit3
from diptych.models.blip import recipes as blip
from diptych.models.clip import recipes as clip
from diptych.models.coca import recipes as coca
from diptych.models.configs import CrossViTConfig, RegionModel
from diptych.models.crossvit import recipes as crossvit
from diptych.models.importing import OfficialCheckpoint
from diptych.models.mae import recipes as mae
from diptych.models.scan import recipes as scan
from diptych.models.vilbert import recipes as vilbert
from diptych.models.vilt import recipes as vilt
from diptych.models.vit import recipes as vit
from diptych.models.vlmo import recipes as vlmo
from diptych.models.vsepp import recipes as vsepp
from diptych.objectives.definition import definitions
from diptych.objectives.pretraining import Pretraining
from diptych.runs.run_folder import RunError
from diptych.tasks.captioning import Captioning
from diptych.tasks.retrieval import ContrastRetrieval

PUBLISHED: dict[str, Callable[[], Pretrain]] = {
    "albef": albef.pretrain_4m, "beit3": beit3.base, "blip": blip.pretrain_14m, "clip": clip.base,
    "open_clip": clip.base, "coca": coca.open_clip, "mae": mae.base, "scan": scan.flickr30k,
    "vilbert": vilbert.pretrain, "vilt": vilt.base,
    "vit": vit.base, "vlmo": vlmo.base, "vsepp": vsepp.flickr30k,
}  # fmt: skip
"""The recipe whose image preprocessing, objectives and training settings an imported run takes, by system."""

PRETRAINING_LOSS_NAMES = {"caption": "lm", "retrieval": "itc"}
"""Names of single-task losses as they are called in pre-training."""

FINE_TUNED = {"masked_captions": MaskedCaptions(whole_words=False, label_smoothing=0.0)}
"""Settings of objectives that the published recipe lacks (BEiT-3's captioning), if they are not the defaults."""

TASK_RECIPES = {
    "vqa": common_recipes.vqa,
    "retrieval": common_recipes.retrieval,
    "classification": common_recipes.classification,
}

NOT_EXPRESSIBLE = {("clip_resnet", "pretraining"): "no recipe has CLIP's ResNet"}
"""Checkpoints that no recipe expresses, by (system, task), and why."""


def run_from_checkpoint(
    imported: OfficialCheckpoint, step: nn.Module, config: Mapping[str, Any], regions: str, name: str
) -> Any:
    """The run of a checkpoint: a Pretrain or a Finetune, or an ImportedCheckpoint where no recipe expresses it.

    Args:
        step: the training step that the checkpoint was saved from; of a student with a teacher, the student.
        config: settings that cannot be inferred from weight shapes, such as the mean and std of images.
        regions: the folder of the region features that the model takes.
        name: of the checkpoint's file.

    Raises RunError.
    """
    if why := NOT_EXPRESSIBLE.get((imported.system, imported.task)):
        return ImportedCheckpoint(imported.system, imported.task, imported.arguments, name, why)
    if imported.system == "crossvit":
        return _crossvit(imported, config)
    published = PUBLISHED[imported.system]()
    model = type(published.model)(**imported.arguments)
    images = published.images
    if isinstance(model, RegionModel):
        embedders = Embedders(image=regions or published.embedders.image, feature_dim=model.feature_dim)
        published = replace(published, embedders=embedders)
    else:
        sizes: Any = model
        images = replace(images, shorter_side=sizes.patch_size * min(sizes.grid), patch_size=sizes.patch_size)
    if (imported.system, imported.task) == ("beit3", "classification"):
        images = replace(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    run = replace(published, model=model, images=with_normalization(images, config))
    if isinstance(step, Pretraining | ContrastRetrieval | Captioning):
        return _pretraining(run, step, imported.arguments)
    if imported.task == "encoder":
        return replace(run, objectives=Objectives(), heads=())
    return _task(run, imported.task)


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


def _pretraining(run: Pretrain, step: Any, arguments: Mapping[str, Any]) -> Pretrain:
    """The run with the losses, loss weights and heads of the step."""
    weights = {PRETRAINING_LOSS_NAMES.get(name) or name: weight for name, weight in step.weights.items()}
    known: dict[str, Any] = {name: definitions()[name].settings() for name in weights}
    known |= FINE_TUNED | run.objectives.present()
    objectives = Objectives(**{name: replace(known[name], weight=weight) for name, weight in weights.items()})
    mlm, itm, regions = objectives.mlm, objectives.itm, objectives.masked_regions
    if itm and isinstance(itm.negatives, HardNegatives) and not objectives.itc:
        objectives = replace(objectives, itm=ITM(weight=itm.weight))
    if mlm and "vl_start_layer" in arguments and arguments["vl_start_layer"] == arguments["depth"]:
        # VLMo's text-only stage: no layer fuses images
        objectives = replace(objectives, mlm=replace(mlm, image=NoImage()))
    if regions and arguments["num_region_targets"] == arguments["feature_dim"]:
        objectives = replace(objectives, masked_regions=replace(regions, target="features"))
    heads = tuple(step.heads) if hasattr(step, "heads") else ()
    return replace(run, objectives=objectives, heads=heads)


def _task(run: Pretrain, task: str) -> Finetune:
    """The fine-tuning run of a task. If `finetune` lacks the task, it serves for export and `init_from` only."""
    own = TASK_RECIPES.get(task, common_recipes.vqa)(run)
    return replace(own, task=task, embedders=run.embedders, recipe=run.recipe)


def _crossvit(imported: OfficialCheckpoint, config: Mapping[str, Any]) -> Finetune:
    model = CrossViTConfig(**imported.arguments)
    images = ImageSettings(shorter_side=model.image_sizes[0], square=True, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return replace(crossvit.small(), model=model, images=with_normalization(images, config), recipe="")
