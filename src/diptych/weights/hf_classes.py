"""The classes of transformers that are imported: by system, their config's tables and the task of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diptych.weights.hf_keys import BLIP, BLIP_IMAGE, BLIP_TEXT, CLIP, CLIP_IMAGE, CLIP_TEXT, VILT, VIT
from diptych.weights.hf_rules import Table


@dataclass(frozen=True)
class Config:
    """The configs of one model_type. `architectures`: the classes that are imported, and the task of each."""

    model_type: str
    table: Table
    architectures: Mapping[str, tuple[str, ...]]
    nested: Mapping[str, Table] = field(default_factory=dict)


_CLIP = Config("clip", CLIP, {"CLIPModel": ("pretraining",)}, {"vision_config": CLIP_IMAGE, "text_config": CLIP_TEXT})
CONFIGS = {
    "vit": Config("vit", VIT, {"ViTForImageClassification": ("classification",), "ViTModel": ("encoder",)}),
    "vilt": Config(
        "vilt",
        VILT,
        {
            "ViltForMaskedLM": ("pretraining",),
            "ViltForQuestionAnswering": ("vqa",),
            "ViltForImagesAndTextClassification": ("nlvr2",),
            "ViltForImageAndTextRetrieval": ("retrieval",),
            "ViltModel": ("encoder",),
        },
    ),
    "clip": _CLIP,
    "open_clip": _CLIP,
    "blip": Config(
        "blip",
        BLIP,
        {
            "BlipForConditionalGeneration": ("caption",),
            "BlipForQuestionAnswering": ("vqa",),
            "BlipForImageTextRetrieval": ("matching", "retrieval"),
        },
        {"vision_config": BLIP_IMAGE, "text_config": BLIP_TEXT},
    ),
}
"""By system, those that a class of transformers equals."""
