"""How a Hugging Face folder says that pictures are prepared (preprocessor_config.json), as a run's ImageSettings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.data.settings import ImageSettings
from diptych.jobs.hf_processor import FAMILIES, FILTERS, OWN, Family, Size, family_of, table_of
from diptych.weights.hf_folder import read_object
from diptych.weights.hf_rules import apply
from diptych.weights.read import WeightsError

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
    found, _ = apply(table_of(family), values, f"{where}: ")
    cut = (found["crop_size"].height, found["crop_size"].width) if found["do_center_crop"] else None
    images = replace(images, resample=FILTERS[found["resample"]], square=False, wide=0, crop=0)
    images = _normalised(images, found, where)
    if family.divisor:
        return _by_vilt(images, found, where, patch)
    size: Size = found["size"]
    if "size" not in values and "crop_size" not in values and (cut or (size.height, size.width)) != side:
        size, cut = _of_model(family, side)  # the class's own size is another model's
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
        return replace(images, shorter=size.shortest, crop=crop)
    wide = 0 if size.width == size.height else size.width
    return replace(images, shorter=size.height, wide=wide, square=True, crop=crop)


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
        return told | {"size": {"shortest_edge": images.shorter}, "size_divisor": images.patch, "do_pad": True}
    size = {"height": images.shorter, "width": images.wide or images.shorter}
    told |= {"size": size if images.square else {"shortest_edge": images.shorter}, "do_center_crop": bool(images.crop)}
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
    return replace(images, shorter=size.shortest, longer_ratio=1333 / 800, patch=found["size_divisor"])


def _of_model(family: Family, side: tuple[int, int]) -> tuple[Size, tuple[int, int] | None]:
    if family.by_shorter:
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
