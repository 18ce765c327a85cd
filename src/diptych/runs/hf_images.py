"""Conversion of a Hugging Face image processor (preprocessor_config.json) to a run's ImageSettings, and back.

`table_of` lists every key of preprocessor_config.json with its rule. Defaults are those of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.checkpoints.huggingface.folder import read_json_object
from diptych.checkpoints.huggingface.rules import Fixed, Ignored, Read, Table, apply, finite_number, pair, positive_int
from diptych.checkpoints.read import WeightsError
from diptych.config.data import CLIP_MEAN, CLIP_STD, HALF, Channels, ImageSettings

IMAGE_PROCESSOR_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
"""The image processor's own file, and the file of tokenizer and image processor together (transformers 5)."""


def read_image_processor(folder: Path) -> tuple[dict[str, Any], str] | None:
    """The image processor's keys and values, and their file; None if there is none. Raises WeightsError."""
    file = folder / PROCESSOR_FILE
    if file.is_file():
        values = read_json_object(file).get("image_processor")
        if values is not None:
            if not isinstance(values, dict):
                raise WeightsError(f"{file}: image_processor is {values!r}; expected keys and values")
            return values, f"{file}: image_processor"
    return (
        (read_json_object(folder / IMAGE_PROCESSOR_FILE), str(folder / IMAGE_PROCESSOR_FILE))
        if (folder / IMAGE_PROCESSOR_FILE).is_file()
        else None
    )


def image_settings(
    images: ImageSettings, values: Mapping[str, Any], where: str, system: str, side: tuple[int, int], patch: int
) -> ImageSettings:
    """A run's `images` with the preprocessing of an image processor.

    Args:
        values: the keys and values of the image processor.
        where: names the file in errors.
        side: height and width of the model's images, in pixels.
        patch: side of its patches, in pixels.

    Raises WeightsError, which names the key, if the preprocessing cannot be reproduced exactly.
    """
    family = family_of(values, system, where)
    settings, _ = apply(table_of(family, family.size_is_shorter_side(values)), values, f"{where}: ")
    crop = (settings["crop_size"].height, settings["crop_size"].width) if settings["do_center_crop"] else None
    images = replace(images, resample=FILTERS[settings["resample"]], square=False, square_width=0, crop=0)
    images = _normalized(images, settings)
    if family.divisor:
        return _vilt_settings(images, settings, where, patch)
    size: Size = settings["size"]
    if "size" not in values and "crop_size" not in values and (crop or (size.height, size.width)) != side:
        size, crop = _model_size(family, side)  # the default size of the class may be another model's
    if crop == (0, 0):
        raise WeightsError(
            f"{where}: crop_size is null or absent, but do_center_crop is true; give its height and width"
        )
    if crop is not None:
        crop_to = f"{where}: crop_size {crop[0]} x {crop[1]}"
        if crop[0] != crop[1]:
            raise WeightsError(f"{crop_to}: expected a square; no other crop is supported")
        if crop[0] > min(n for n in (size.shortest, size.height, size.width) if n):
            raise WeightsError(f"{crop_to} is larger than the resized image ({values.get('size', family.size)})")
    elif size.shortest:
        raise WeightsError(
            f"{where}: size is {values.get('size', family.size)!r} without do_center_crop; expected height and width: "
            "images of different shapes do not fit this model's position embeddings"
        )
    result = crop or (size.height, size.width)
    if result != side:
        raise WeightsError(
            f"{where}: images become {result[0]} x {result[1]}, but the model expects {side[0]} x {side[1]}; correct "
            "size or crop_size, or give --grid"
        )
    crop_side = crop[0] if crop else 0
    if size.shortest:
        return replace(images, shorter_side=size.shortest, crop=crop_side)
    square_width = 0 if size.width == size.height else size.width
    return replace(images, shorter_side=size.height, square_width=square_width, square=True, crop=crop_side)


def with_size(values: Mapping[str, Any], side: tuple[int, int]) -> dict[str, Any]:
    """The keys and values of a processor that resizes to another size, for `--grid`."""
    rest = {key: value for key, value in values.items() if key not in ("size", "crop_size", "do_center_crop")}
    return rest | {"size": {"height": side[0], "width": side[1]}, "do_center_crop": False}


def preprocessor_config(system: str, images: ImageSettings) -> dict[str, Any]:
    """The preprocessor_config.json of a run's image settings, for the class that its weights are exported to."""
    family = DEFAULT_FAMILY[system]
    values: dict[str, Any] = {
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
        return values | {
            "size": {"shortest_edge": images.shorter_side},
            "size_divisor": images.patch_size,
            "do_pad": True,
        }
    size = {"height": images.shorter_side, "width": images.square_width or images.shorter_side}
    values |= {
        "size": size if images.square else {"shortest_edge": images.shorter_side},
        "do_center_crop": bool(images.crop),
    }
    return values | ({"crop_size": {"height": images.crop, "width": images.crop}} if images.crop else {})


def _vilt_settings(images: ImageSettings, settings: Mapping[str, Any], where: str, patch: int) -> ImageSettings:
    """ViLT's preprocessing: a shorter side, a bound on the longer one, and both rounded down to the divisor."""
    size, divisor = settings["size"], settings["size_divisor"]
    if not size.shortest or settings["do_center_crop"]:
        raise WeightsError(f"{where}: ViLT's size is a shortest_edge, without do_center_crop")
    if divisor % patch:
        raise WeightsError(f"{where}: size_divisor is {divisor}; expected a multiple of the patch size, {patch}")
    if size.shortest < divisor:
        raise WeightsError(f"{where}: size {size.shortest} is smaller than size_divisor {divisor}")
    return replace(images, shorter_side=size.shortest, longer_ratio=1333 / 800, patch_size=divisor)


def _model_size(family: Family, side: tuple[int, int]) -> tuple[Size, tuple[int, int] | None]:
    """The size and crop of a family that make images of the model's height and width."""
    if "shortest_edge" in family.size:
        return Size(shortest=min(side)), side
    return Size(*side), None


def _normalized(images: ImageSettings, settings: Mapping[str, Any]) -> ImageSettings:
    """The image settings with mean and std for pixels in [0, 1], which absorb the `rescale_factor` f.

    For a byte x, (f x − m) / s = (x / 255 − m / 255 f) / (s / 255 f).
    """
    mean = settings["image_mean"] if settings["do_normalize"] else (0.0,) * 3
    std = settings["image_std"] if settings["do_normalize"] else (1.0,) * 3
    scale = 255 * settings["rescale_factor"] if settings["do_rescale"] else 255.0
    if abs(scale - 1) < 1e-6:
        return replace(images, mean=mean, std=std)
    return replace(images, mean=tuple(m / scale for m in mean), std=tuple(s / scale for s in std))


FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's resampling filters by number."""


@dataclass(frozen=True)
class Size:
    """Height and width, or only `shortest`, the shorter side; in pixels, 0 if unset."""

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

    def size_is_shorter_side(self, values: Mapping[str, Any]) -> bool:
        """Whether a single number as `size` is the shorter side; else it is both sides."""
        return not values.get("default_to_square", "shortest_edge" not in self.size)


FAMILIES = {
    "ViT": Family({"height": 224, "width": 224}, resample=2),
    "DeiT": Family({"height": 256, "width": 256}, resample=3, crop=224),
    "CLIP": Family({"shortest_edge": 224}, resample=3, mean=CLIP_MEAN, std=CLIP_STD, crop=224),
    "Blip": Family({"height": 384, "width": 384}, resample=3, mean=CLIP_MEAN, std=CLIP_STD),
    "Vilt": Family({"shortest_edge": 384}, resample=3, divisor=32),
}
SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
DEFAULT_FAMILY = {"vit": "ViT", "vilt": "Vilt", "clip": "CLIP", "open_clip": "CLIP", "blip": "Blip"}
"""The family of each system's image processor, for files that do not name one."""


def family_of(values: Mapping[str, Any], system: str, where: str) -> Family:
    """The family that the file names, else the system's default. Raises WeightsError if the system cannot use it."""
    for key in ("image_processor_type", "feature_extractor_type"):
        if (class_name := values.get(key)) is None:
            continue
        name = next(
            (str(class_name).removesuffix(suffix) for suffix in SUFFIXES if str(class_name).endswith(suffix)), ""
        )
        if name not in FAMILIES or bool(FAMILIES[name].divisor) != (system == "vilt"):
            usable = [name for name, f in FAMILIES.items() if bool(f.divisor) == (system == "vilt")]
            raise WeightsError(
                f"{where}: {key} is {class_name!r}; expected one of {', '.join(usable)} + ImageProcessor"
            )
        return FAMILIES[name]
    return FAMILIES[DEFAULT_FAMILY[system]]


_EQUAL_SIZES = Ignored("all images have the same size, so that nothing is padded")
_NOT_READ = Ignored("the class does not read it")


def table_of(family: Family, by_shorter: bool) -> Table:
    """The rule of each key. `by_shorter`: see `Family.size_is_shorter_side`."""
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
        "size_divisor": Read("size_divisor", family.divisor, positive_int) if family.divisor else _NOT_READ,
        "do_pad": Fixed((True,)) if family.divisor else _EQUAL_SIZES,
        "pad_size": Fixed((None,)),
        "default_to_square": Read("default_to_square", False, _flag),
        "do_convert_rgb": Ignored("every image is loaded as RGB"),
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
            ("image_processor_type", "feature_extractor_type", "processor_class"), Ignored("checked by family_of")
        ),
    }


def _size(value: Any, by_shorter: bool, pairs: bool = False) -> Size:
    if isinstance(value, dict):
        sides = {key: n for key, n in value.items() if n is not None}
        if set(sides) == {"height", "width"}:
            return Size(positive_int(sides["height"]), positive_int(sides["width"]))
        if set(sides) == {"shortest_edge"} and not pairs:
            return Size(shortest=positive_int(sides["shortest_edge"]))
        raise ValueError("height and width" + ("" if pairs else ", or only shortest_edge"))
    if by_shorter and isinstance(value, int):
        return Size(shortest=positive_int(value))
    return Size(*pair(value))


def _filter(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(FILTERS):
        raise ValueError(f"a number from 0 to {len(FILTERS) - 1}, one of Pillow's filters")
    return value


def _flag(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ValueError("true or false")
    return bool(value)


def _factor(value: Any) -> float:
    if finite_number(value) <= 0:
        raise ValueError("a number above 0")
    return float(value)


def _channels(value: Any) -> Channels:
    """Three numbers, or a single one for all channels."""
    three = value if isinstance(value, list) else [value] * 3
    if len(three) != 3:
        raise ValueError("three numbers")
    red, green, blue = map(finite_number, three)
    return red, green, blue


def _spread(value: Any) -> Channels:
    if min(_channels(value)) <= 0:
        raise ValueError("numbers above 0")
    return _channels(value)
