"""The keys of preprocessor_config.json: the one place that says what happens to each, for each image processor.

Defaults are those of transformers' classes (5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diptych.data.settings import CLIP_MEAN, CLIP_STD, HALF, Channels
from diptych.weights.hf_rules import Fixed, Ignored, Read, Rule, Table, pair, real, whole
from diptych.weights.read import WeightsError

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's resampling filters by number."""


@dataclass(frozen=True)
class Size:
    """Height and width; or `shortest`, the shorter side alone."""

    height: int = 0
    width: int = 0
    shortest: int = 0


@dataclass(frozen=True)
class Family:
    """The defaults of an image processor's class (transformers 5.23)."""

    size: dict[str, int]
    resample: int
    mean: Channels = HALF
    std: Channels = HALF
    crop: int = 0
    divisor: int = 0  # ViLT: the longer side is bounded, both are rounded down to a multiple of it

    @property
    def by_shorter(self) -> bool:
        """What one number as `size` means: the shorter side, or both."""
        return "shortest_edge" in self.size


FAMILIES = {
    "ViT": Family({"height": 224, "width": 224}, resample=2),
    "DeiT": Family({"height": 256, "width": 256}, resample=3, crop=224),
    "CLIP": Family({"shortest_edge": 224}, resample=3, mean=CLIP_MEAN, std=CLIP_STD, crop=224),
    "Blip": Family({"height": 384, "width": 384}, resample=3, mean=CLIP_MEAN, std=CLIP_STD),
    "Vilt": Family({"shortest_edge": 384}, resample=3, divisor=32),
}
SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
OWN = {"vit": "ViT", "vilt": "Vilt", "clip": "CLIP", "open_clip": "CLIP", "blip": "Blip"}
"""The image processor of each system's class, where the file does not name one."""


def family_of(values: Mapping[str, Any], system: str, where: str) -> Family:
    for key in ("image_processor_type", "feature_extractor_type"):
        if (named := values.get(key)) is None:
            continue
        name = next((str(named).removesuffix(suffix) for suffix in SUFFIXES if str(named).endswith(suffix)), "")
        if name not in FAMILIES or bool(FAMILIES[name].divisor) != (system == "vilt"):
            fitting = [name for name, f in FAMILIES.items() if bool(f.divisor) == (system == "vilt")]
            raise WeightsError(f"{where}: {key} is {named!r}; expected one of {', '.join(fitting)} + ImageProcessor")
        return FAMILIES[name]
    return FAMILIES[OWN[system]]


def table_of(family: Family) -> Table:
    def default(value: bool) -> Rule:
        return Fixed((value, None) if not value else (value,))

    return {
        "do_resize": Fixed((True,)),
        "size": Read("size", family.size, lambda value: _size(value, family.by_shorter)),
        "resample": Read("resample", family.resample, _filter),
        "do_center_crop": Read("do_center_crop", bool(family.crop), _flag),
        "crop_size": Read(
            "crop_size", family.crop or 1, lambda value: Size() if value is None else _size(value, False, pairs=True)
        ),
        "do_rescale": Read("do_rescale", True, _flag),
        "rescale_factor": Read("rescale_factor", 1 / 255, _factor),
        "do_normalize": Read("do_normalize", True, _flag),
        "image_mean": Read("image_mean", list(family.mean), _channels),
        "image_std": Read("image_std", list(family.std), _spread),
        "size_divisor": Read("size_divisor", family.divisor, whole) if family.divisor else Fixed((None,)),
        "do_pad": default(bool(family.divisor)),
        "pad_size": Fixed((None,)),
        "default_to_square": Fixed((not family.by_shorter, None)),
        "do_convert_rgb": Ignored("every picture is read as RGB"),
        **dict.fromkeys(
            (
                "data_format",
                "input_data_format",
                "device",
                "return_tensors",
                "disable_grouping",
                "_valid_processor_keys",
            ),
            Ignored("says how arrays are passed around"),
        ),
        **dict.fromkeys(
            ("image_processor_type", "feature_extractor_type", "processor_class"), Ignored("checked: by family_of")
        ),
    }


def _size(value: Any, by_shorter: bool, pairs: bool = False) -> Size:
    if isinstance(value, dict):
        known = {key: n for key, n in value.items() if n is not None}
        if set(known) == {"height", "width"}:
            return Size(whole(known["height"]), whole(known["width"]))
        if set(known) == {"shortest_edge"} and not pairs:
            return Size(shortest=whole(known["shortest_edge"]))
        raise ValueError("height and width" + ("" if pairs else ", or shortest_edge alone"))
    if by_shorter and isinstance(value, int):
        return Size(shortest=whole(value))
    return Size(*pair(value))


def _filter(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(FILTERS):
        raise ValueError(f"a number from 0 to {len(FILTERS) - 1}, a filter of Pillow's")
    return value


def _flag(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ValueError("true or false")
    return bool(value)


def _factor(value: Any) -> float:
    if real(value) <= 0:
        raise ValueError("a number above 0")
    return float(value)


def _channels(value: Any) -> Channels:
    """Three numbers, or one for all channels."""
    three = value if isinstance(value, list) else [value] * 3
    if len(three) != 3:
        raise ValueError("three numbers")
    red, green, blue = map(real, three)
    return red, green, blue


def _spread(value: Any) -> Channels:
    if min(_channels(value)) <= 0:
        raise ValueError("numbers above 0")
    return _channels(value)
