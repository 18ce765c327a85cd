"""Image preprocessing of a Hugging Face folder (preprocessor_config.json) as a run's ImageSettings, and back.

What becomes of each key of preprocessor_config.json, for each image processor: all of them are listed here.

Defaults are those of transformers' classes (5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.checkpoints.huggingface.folder import read_object
from diptych.checkpoints.huggingface.rules import Fixed, Ignored, Read, Table, apply, pair, real, whole
from diptych.checkpoints.read import WeightsError
from diptych.config.data import CLIP_MEAN, CLIP_STD, HALF, Channels, ImageSettings

FILE, ALL = "preprocessor_config.json", "processor_config.json"
"""The image processor's own file, and transformers 5's for tokenizer and image processor together."""


def read_images(folder: Path) -> tuple[dict[str, Any], str] | None:
    """The image processor's keys and values, and the file they stand in; None where there is none. Raises WeightsError."""
    whole_file = folder / ALL
    if whole_file.is_file():
        held = read_object(whole_file).get("image_processor")
        if held is not None:
            if not isinstance(held, dict):
                raise WeightsError(f"{whole_file}: image_processor is {held!r}; expected keys and values")
            return held, f"{whole_file}: image_processor"
    return (read_object(folder / FILE), str(folder / FILE)) if (folder / FILE).is_file() else None


def image_settings(
    images: ImageSettings, values: Mapping[str, Any], where: str, system: str, side: tuple[int, int], patch: int
) -> ImageSettings:
    """A run's `images` as an image processor prepares them. `side`: height and width that the model reads.

    Raises WeightsError naming the key that cannot be done equally.
    """
    family = family_of(values, system, where)
    found, _ = apply(table_of(family, family.by_shorter(values)), values, f"{where}: ")
    cut = (found["crop_size"].height, found["crop_size"].width) if found["do_center_crop"] else None
    images = replace(images, resample=FILTERS[found["resample"]], square=False, square_width=0, crop=0)
    images = _normalised(images, found, where)
    if family.divisor:
        return _by_vilt(images, found, where, patch)
    size: Size = found["size"]
    if "size" not in values and "crop_size" not in values and (cut or (size.height, size.width)) != side:
        size, cut = _of_model(family, side)  # the class's own size is another model's
    if cut == (0, 0):
        raise WeightsError(
            f"{where}: crop_size is null or absent, but do_center_crop is true; give its height and width"
        )
    if cut is not None:
        cut_to = f"{where}: crop_size {cut[0]} x {cut[1]}"
        if cut[0] != cut[1]:
            raise WeightsError(f"{cut_to}: expected a square; no other part of a picture can be cut out here")
        if cut[0] > min(n for n in (size.shortest, size.height, size.width) if n):
            raise WeightsError(f"{cut_to} is larger than the resized picture ({values.get('size', family.size)})")
    elif size.shortest:
        raise WeightsError(
            f"{where}: size is {values.get('size', family.size)!r} without do_center_crop; expected height and width: pictures "
            "of different shapes do not fit this model's positions"
        )
    if (cut or (size.height, size.width)) != side:
        shown = cut or (size.height, size.width)
        raise WeightsError(
            f"{where}: pictures become {shown[0]} x {shown[1]}, but the model reads {side[0]} x {side[1]}; correct size "
            "or crop_size, or give --grid"
        )
    crop = cut[0] if cut else 0
    if size.shortest:
        return replace(images, shorter_side=size.shortest, crop=crop)
    wide = 0 if size.width == size.height else size.width
    return replace(images, shorter_side=size.height, square_width=wide, square=True, crop=crop)


def fitted(values: Mapping[str, Any], side: tuple[int, int]) -> dict[str, Any]:
    """The keys and values for pictures of another size: resized to it, as `--grid` asks."""
    without = {key: value for key, value in values.items() if key not in ("size", "crop_size", "do_center_crop")}
    return without | {"size": {"height": side[0], "width": side[1]}, "do_center_crop": False}


def exported(system: str, images: ImageSettings) -> dict[str, Any]:
    """preprocessor_config.json of a run's pictures, for the class that the weights are exported to."""
    family = OWN[system]
    told: dict[str, Any] = {
        "image_processor_type": f"{family}ImageProcessor",
        "do_resize": True,
        "resample": FILTERS.index(images.resample),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
        "do_convert_rgb": True,
    }
    if FAMILIES[family].divisor:
        return told | {
            "size": {"shortest_edge": images.shorter_side},
            "size_divisor": images.patch_size,
            "do_pad": True,
        }
    size = {"height": images.shorter_side, "width": images.square_width or images.shorter_side}
    told |= {
        "size": size if images.square else {"shortest_edge": images.shorter_side},
        "do_center_crop": bool(images.crop),
    }
    return told | ({"crop_size": {"height": images.crop, "width": images.crop}} if images.crop else {})


def _by_vilt(images: ImageSettings, found: Mapping[str, Any], where: str, patch: int) -> ImageSettings:
    size: Size = found["size"]
    if not size.shortest or found["do_center_crop"]:
        raise WeightsError(f"{where}: ViLT's size is a shortest_edge, without do_center_crop")
    if found["size_divisor"] % patch:
        raise WeightsError(
            f"{where}: size_divisor is {found['size_divisor']}; expected a multiple of the patch, {patch}"
        )
    if size.shortest < found["size_divisor"]:
        raise WeightsError(f"{where}: size {size.shortest} is smaller than size_divisor {found['size_divisor']}")
    return replace(images, shorter_side=size.shortest, longer_ratio=1333 / 800, patch_size=found["size_divisor"])


def _of_model(family: Family, side: tuple[int, int]) -> tuple[Size, tuple[int, int] | None]:
    if "shortest_edge" in family.size:
        return Size(shortest=min(side)), side
    return Size(*side), None


def _normalised(images: ImageSettings, found: Mapping[str, Any], where: str) -> ImageSettings:
    """Mean and std of pixels from 0 to 1, which are what is left of a `rescale_factor` too: (f x − m) / s of a byte x is
    (x / 255 − m / 255 f) / (s / 255 f).
    """
    mean = found["image_mean"] if found["do_normalize"] else (0.0,) * 3
    std = found["image_std"] if found["do_normalize"] else (1.0,) * 3
    scale = 255 * found["rescale_factor"] if found["do_rescale"] else 255.0
    if abs(scale - 1) < 1e-6:
        return replace(images, mean=mean, std=std)
    return replace(images, mean=tuple(m / scale for m in mean), std=tuple(s / scale for s in std))


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

    def by_shorter(self, values: Mapping[str, Any]) -> bool:
        """What one number as `size` means: the shorter side, or both."""
        return not values.get("default_to_square", "shortest_edge" not in self.size)


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


_EQUAL_SIZES = Ignored("all pictures have one size, so that nothing is padded")
_NOT_READ = Ignored("the class does not read it")


def table_of(family: Family, by_shorter: bool) -> Table:
    """The rule of each key. `by_shorter`: what one number as `size` means (`Family.by_shorter`)."""
    return {
        "do_resize": Fixed((True,)),
        "size": Read("size", family.size, lambda value: _size(value, by_shorter)),
        "resample": Read("resample", family.resample, _filter),
        "do_center_crop": Read("do_center_crop", bool(family.crop), _flag),
        "crop_size": Read(
            "crop_size", family.crop or None, lambda value: Size() if value is None else _size(value, False, pairs=True)
        ),
        "do_rescale": Read("do_rescale", True, _flag),
        "rescale_factor": Read("rescale_factor", 1 / 255, _factor),
        "do_normalize": Read("do_normalize", True, _flag),
        "image_mean": Read("image_mean", list(family.mean), _channels),
        "image_std": Read("image_std", list(family.std), _spread),
        "size_divisor": Read("size_divisor", family.divisor, whole) if family.divisor else _NOT_READ,
        "do_pad": Fixed((True,)) if family.divisor else _EQUAL_SIZES,
        "pad_size": Fixed((None,)),
        "default_to_square": Read("default_to_square", False, _flag),
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
            Ignored("the type of arrays that the processor returns"),
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
