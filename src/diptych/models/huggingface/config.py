"""The classes of transformers that are imported: by system, their config's tables and the task of each class.

A Hugging Face config.json as what an import needs: settings of the model, its task, and the names of its classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diptych.checkpoints.huggingface.rules import Read, Table, apply, check_shapes
from diptych.checkpoints.read import WeightsError
from diptych.models.huggingface.keys import (
    BLIP,
    BLIP_IMAGE,
    BLIP_TEXT,
    CLIP,
    CLIP_IMAGE,
    CLIP_TEXT,
    ENDS,
    LARGEST,
    VILT,
    VIT,
)


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


MARKS = ("model_type", "architectures", "transformers_version", "vision_config")
"""Keys that a config of transformers has and the settings of an official code have not."""
NOT_ARGUMENTS = ("image_size", "modalities", "bos_token_id", "end")
"""Settings that become an argument only together with others."""


@dataclass(frozen=True)
class HFConfig:
    """`told`: as the system's `infer` reads settings that no shape gives, with the model's "arguments" by name."""

    file: str
    system: str
    values: Mapping[str, Any]  # the file's own
    settings: Mapping[str, Any]
    told: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of the pictures that the position grid is made for."""
        return self.settings["image_size"]

    def check_heads(self, num_heads: int | None) -> None:
        """Raises WeightsError where a number of heads from elsewhere is another."""
        for name, stated in self.settings.items():
            if name.endswith("heads") and num_heads not in (None, stated):
                raise WeightsError(f"{self.file}: {name} is {stated}, but --heads {num_heads}; leave --heads out")

    def check(self, arguments: Mapping[str, Any], task: str, resized: bool = False) -> None:
        """Raises WeightsError where the weights are of other sizes or another class than the config states. `resized`: the
        position grid was fitted to another size on purpose.
        """
        config = CONFIGS[self.system]
        for part, table in _tables(config):
            check_shapes(table, self.settings, arguments, f"{self.file}: {part}")
        height, width = self.side
        patch, grid = self.settings["patch_size"], tuple(arguments["grid"])
        if not resized and grid != (height // patch, width // patch):
            raise WeightsError(
                f"{self.file}: image_size {height} x {width} makes a grid of {height // patch} x {width // patch} patches, but "
                f"in the weights it is {grid[0]} x {grid[1]}"
            )
        if "modalities" in self.settings and self.settings["modalities"] != arguments["num_images"] + 1:
            raise WeightsError(
                f"{self.file}: modality_type_vocab_size is {self.settings['modalities']}, but in the weights it is "
                f"{arguments['num_images'] + 1}"
            )
        for architecture in self.values.get("architectures") or ():
            if task not in config.architectures[architecture]:
                raise WeightsError(f"{self.file}: architectures is {architecture}, but the weights are of {task}")

    def labels(self, count: int) -> list[str]:
        """The names of `count` classes in order. Raises WeightsError where id2label is of other ones."""
        named = self.values.get("id2label")
        if named is None:
            many = self.values.get("num_labels")
            if many not in (None, count):
                raise WeightsError(f"{self.file}: num_labels is {many!r}, but the weights have {count} classes")
            return [f"LABEL_{i}" for i in range(count)]
        ids = [str(i) for i in range(len(named))] if isinstance(named, dict) else []
        if not isinstance(named, dict) or set(named) != set(ids) or not all(isinstance(x, str) for x in named.values()):
            raise WeightsError(
                f'{self.file}: id2label must map "0", "1", ... to names, each a string; correct it, or give --answers FILE'
            )
        if len(named) != count:
            raise WeightsError(f"{self.file}: id2label names {len(named)} classes, but the weights have {count}")
        labels = [named[i] for i in ids]
        self._check_back(labels)
        return labels

    def _check_back(self, labels: list[str]) -> None:
        """label2id must say the same: of a name that stands twice it holds one of the two. Numbers may be strings, as in
        what the example scripts of transformers saved.
        """
        back = self.values.get("label2id") or {}
        if not isinstance(back, dict):
            raise WeightsError(f"{self.file}: label2id must map names to numbers")
        places: dict[str, list[int]] = {}
        for place, label in enumerate(labels):
            places.setdefault(label, []).append(place)
        for name, i in back.items():
            if name in places and str(i) not in map(str, places[name]):
                raise WeightsError(f"{self.file}: label2id has {name!r} at {i!r}, but id2label at {places[name][0]}")


def placeholders(labels: list[str]) -> bool:
    """Whether transformers made the names up, because nobody had given any."""
    return labels == [f"LABEL_{i}" for i in range(len(labels))]


def is_hf(system: str, values: Mapping[str, Any], in_folder: bool) -> bool:
    """Whether a system's settings are a config of transformers: by its marks, or as the config.json of a folder that is not
    timm's ("architecture").
    """
    marked = any(mark in values for mark in MARKS) or (in_folder and bool(values) and "architecture" not in values)
    return system in CONFIGS and marked


def read_config(system: str, values: Mapping[str, Any], file: str) -> HFConfig:
    """Raises WeightsError naming the file and the key that is not supported."""
    config = CONFIGS[system]
    _check_class(config, values, file)
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for part, table in _tables(config):
        found, said = apply(table, _part(values, part, table, file), f"{file}: {part}")
        settings |= found
        notes += said
    if "end" in settings:
        notes += _check_end(config, settings["end"], settings["vocab_size"], file)
    if "bos_token_id" in settings:
        begin, words = settings.pop("bos_token_id"), settings["vocab_size"]
        if isinstance(begin, int) and 0 <= begin < words:
            settings["bos_token_id"] = begin
        else:
            notes.append(
                f"{file}: text_config.bos_token_id is {begin}, outside of the {words} pieces: texts begin with piece "
                f"{words - 2}, as in BLIP's own code"
            )
    return HFConfig(file, system, values, settings, _told(system, config, settings), notes)


def _check_end(config: Config, end: Any, words: int, file: str) -> list[str]:
    """A text must end where it ends here: at the piece of the bundled vocabulary that ends texts, and in CLIP's texts, where
    the end is read, at the largest id. A note to print where a CLIP of another vocabulary states an id outside of it.
    """
    clip = config.model_type == "clip"
    key = f"{file}: text_config.{'eos' if clip else 'sep'}_token_id is"
    ends = ENDS.get(words, (words - 1, LARGEST) if clip else (end,))
    if not isinstance(end, bool) and end in ends:
        return []
    if words in ENDS or not isinstance(end, int) or isinstance(end, bool) or end < words:
        raise WeightsError(f"{key} {end!r}; expected {ends[0]}, where texts end here")
    return [f"{key} {end}, outside of the {words} pieces: texts end at their largest id"]


def _check_class(config: Config, values: Mapping[str, Any], file: str) -> None:
    kind, classes = values.get("model_type"), values.get("architectures")
    if kind not in (None, config.model_type):
        raise WeightsError(f"{file}: model_type is {kind!r}; expected {config.model_type!r}")
    if classes is not None and not isinstance(classes, list):
        raise WeightsError(f"{file}: architectures is {classes!r}; expected a list")
    for name in classes or ():
        if name not in list(config.architectures):
            raise WeightsError(f"{file}: architectures is {name!r}; expected one of {', '.join(config.architectures)}")


def _tables(config: Config) -> list[tuple[str, Any]]:
    """Every part of a config: what to call it before a key's name, and its table."""
    return [("", config.table), *((f"{part}.", table) for part, table in config.nested.items())]


def _part(values: Mapping[str, Any], part: str, table: Mapping[str, Any], file: str) -> Mapping[str, Any]:
    """The keys of one part. Of CLIP's `text_config_dict` transformers takes every key of the class, given or default, in
    the place of `text_config`'s.
    """
    if not part:
        return values
    name = part.removesuffix(".")
    nested, over = values.get(name), values.get(f"{name}_dict")
    for key, value in ((name, nested), (f"{name}_dict", over)):
        if value is not None and not isinstance(value, dict):
            raise WeightsError(f"{file}: {key} is {value!r}; expected keys and values")
    nested = nested or {}
    if over is None:
        return nested
    return {key: value for key, value in nested.items() if not isinstance(table.get(key), Read)} | over


def _told(system: str, config: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    shaped = {
        rule.argument
        for _, table in _tables(config)
        for rule in table.values()
        if isinstance(rule, Read) and rule.in_shapes
    }
    arguments = {name: x for name, x in settings.items() if name not in shaped and name not in NOT_ARGUMENTS}
    if system == "vilt":
        arguments["text_eps"] = arguments["eps"]  # transformers has one for all
    told: dict[str, Any] = {"arguments": arguments, "num_heads": settings["num_heads"]}
    if system in ("clip", "open_clip"):
        told = {
            "arguments": arguments, "vision_heads": settings["num_heads"], "transformer_heads": settings["text_num_heads"],
        }  # fmt: skip
    if system == "blip":
        told = {
            "arguments": arguments,
            "vision": {"heads": settings["image_num_heads"]},
            "text": {"num_attention_heads": settings["num_heads"]},
            "special_ids": {"bos_DEC": settings["bos_token_id"]} if "bos_token_id" in settings else {},
        }
    (height, width), patch = settings["image_size"], settings["patch_size"]
    return told if height == width else told | {"grid": (height // patch, width // patch)}
