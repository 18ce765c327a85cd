"""A Hugging Face config.json as the settings of an import: constructor arguments, task, and class labels.

By system: the transformers classes that are supported, the task of each, and the table of rules for the config's keys.
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
class ClassConfigs:
    """The configs of one model_type. `architectures`: the supported classes, and the tasks of each."""

    model_type: str
    table: Table
    architectures: Mapping[str, tuple[str, ...]]
    nested: Mapping[str, Table] = field(default_factory=dict)


_CLIP = ClassConfigs(
    "clip", CLIP, {"CLIPModel": ("pretraining",)}, {"vision_config": CLIP_IMAGE, "text_config": CLIP_TEXT}
)
CONFIGS = {
    "vit": ClassConfigs("vit", VIT, {"ViTForImageClassification": ("classification",), "ViTModel": ("encoder",)}),
    "vilt": ClassConfigs(
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
    "blip": ClassConfigs(
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
"""By system."""


TRANSFORMERS_KEYS = ("model_type", "architectures", "transformers_version", "vision_config")
"""Keys that identify a config of transformers: settings of official code lack them."""
NOT_ARGUMENTS = ("image_size", "modalities", "bos_token_id", "end")
"""Settings that are not constructor arguments by themselves."""


@dataclass(frozen=True)
class HFConfig:
    """A config.json that was read for a system.

    `official_config`: the settings as the system's CheckpointAdapter.infer takes them, with constructor arguments under
    "arguments".
    """

    file: str
    system: str
    values: Mapping[str, Any]  # the keys and values of the file
    settings: Mapping[str, Any]
    official_config: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the position grid belongs to."""
        return self.settings["image_size"]

    def check_heads(self, num_heads: int | None) -> None:
        """Raises WeightsError if the config states another number of heads than `num_heads`."""
        for name, stated in self.settings.items():
            if name.endswith("heads") and num_heads not in (None, stated):
                raise WeightsError(
                    f"{self.file}: {name} is {stated}, but --num_heads {num_heads}; leave --num_heads out"
                )

    def check(self, arguments: Mapping[str, Any], task: str, resized: bool = False) -> None:
        """Raises WeightsError if the weights have other sizes, or another task, than the config states.

        Args:
            resized: whether the position grid was resized on purpose, so that it may differ.
        """
        config = CONFIGS[self.system]
        for part, table in _tables(config):
            check_shapes(table, self.settings, arguments, f"{self.file}: {part}")
        height, width = self.image_size
        patch, grid = self.settings["patch_size"], tuple(arguments["grid"])
        if not resized and grid != (height // patch, width // patch):
            raise WeightsError(
                f"{self.file}: image_size {height} x {width} makes a grid of {height // patch} x {width // patch} "
                f"patches, but in the weights it is {grid[0]} x {grid[1]}"
            )
        if "modalities" in self.settings and self.settings["modalities"] != arguments["num_images"] + 1:
            raise WeightsError(
                f"{self.file}: modality_type_vocab_size is {self.settings['modalities']}, but in the weights it is "
                f"{arguments['num_images'] + 1}"
            )
        for architecture in self.values.get("architectures") or ():
            if task not in config.architectures[architecture]:
                raise WeightsError(f"{self.file}: architectures is {architecture}, but the weights are of task {task}")

    def labels(self, count: int) -> list[str]:
        """The names of `count` classes in order. Raises WeightsError if id2label has another number of classes."""
        id2label = self.values.get("id2label")
        if id2label is None:
            num_labels = self.values.get("num_labels")
            if num_labels not in (None, count):
                raise WeightsError(f"{self.file}: num_labels is {num_labels!r}, but the weights have {count} classes")
            return [f"LABEL_{i}" for i in range(count)]
        ids = [str(i) for i in range(len(id2label))] if isinstance(id2label, dict) else []
        if (
            not isinstance(id2label, dict)
            or set(id2label) != set(ids)
            or not all(isinstance(label, str) for label in id2label.values())
        ):
            raise WeightsError(
                f'{self.file}: id2label must map "0", "1", ... to names, each a string; '
                "correct it, or give --answers FILE"
            )
        if len(id2label) != count:
            raise WeightsError(f"{self.file}: id2label names {len(id2label)} classes, but the weights have {count}")
        labels = [id2label[i] for i in ids]
        self._check_label2id(labels)
        return labels

    def _check_label2id(self, labels: list[str]) -> None:
        """Raises WeightsError if label2id contradicts id2label.

        For a label that occurs twice, either of its ids is allowed; ids may be strings, as the example scripts of
        transformers saved them.
        """
        label2id = self.values.get("label2id") or {}
        if not isinstance(label2id, dict):
            raise WeightsError(f"{self.file}: label2id must map names to numbers")
        ids: dict[str, list[int]] = {}
        for i, label in enumerate(labels):
            ids.setdefault(label, []).append(i)
        for name, i in label2id.items():
            if name in ids and str(i) not in map(str, ids[name]):
                raise WeightsError(f"{self.file}: label2id has {name!r} at {i!r}, but id2label at {ids[name][0]}")


def are_placeholders(labels: list[str]) -> bool:
    """Whether the labels are transformers' placeholders LABEL_0, LABEL_1 … for names that were not set."""
    return labels == [f"LABEL_{i}" for i in range(len(labels))]


def is_hf(system: str, values: Mapping[str, Any], in_folder: bool) -> bool:
    """Whether a system's settings are a config of transformers.

    They are if they have one of its keys, or are the config.json of a folder and not timm's (which has "architecture").
    """
    has_keys = any(key in values for key in TRANSFORMERS_KEYS)
    return system in CONFIGS and (has_keys or (in_folder and bool(values) and "architecture" not in values))


def system_of(values: Mapping[str, Any], file: str) -> str:
    """The system of a config's model_type, or of its class. Raises WeightsError if none is supported."""
    kind, classes = values.get("model_type"), values.get("architectures") or ()
    for system, config in CONFIGS.items():
        if kind == config.model_type or (kind is None and any(name in list(config.architectures) for name in classes)):
            return system
    kinds = ", ".join(dict.fromkeys(config.model_type for config in CONFIGS.values()))
    supported = ", ".join(dict.fromkeys(name for config in CONFIGS.values() for name in config.architectures))
    raise WeightsError(f"{file}: model_type is {kind!r}; expected one of {kinds}, of the classes {supported}")


def read_config(system: str, values: Mapping[str, Any], file: str) -> HFConfig:
    """The config of a file. Raises WeightsError for a key or value that is not supported."""
    config = CONFIGS[system]
    _check_class(config, values, file)
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for part, table in _tables(config):
        part_settings, part_notes = apply(table, _part(values, part, table, file), f"{file}: {part}")
        settings |= part_settings
        notes += part_notes
    if "end" in settings:
        notes += _check_end(config, settings["end"], settings["vocab_size"], file)
    if "bos_token_id" in settings:
        begin, vocab_size = settings.pop("bos_token_id"), settings["vocab_size"]
        if isinstance(begin, int) and 0 <= begin < vocab_size:
            settings["bos_token_id"] = begin
        else:
            notes.append(
                f"{file}: text_config.bos_token_id is {begin}, outside of the {vocab_size} tokens: texts begin with "
                f"token {vocab_size - 2}, as in BLIP's own code"
            )
    return HFConfig(file, system, values, settings, _official_config(system, config, settings), notes)


def _check_end(config: ClassConfigs, end: Any, vocab_size: int, file: str) -> list[str]:
    """Raises WeightsError if the config's end token differs from ours.

    The end of a text is the end token of the bundled vocabulary and, in CLIP, whose text feature is taken there, the
    largest id.

    Returns:
        A note to print if a CLIP with another vocabulary states an id outside of it.
    """
    clip = config.model_type == "clip"
    key = f"{file}: text_config.{'eos' if clip else 'sep'}_token_id is"
    ends = ENDS.get(vocab_size, (vocab_size - 1, LARGEST) if clip else (end,))
    if not isinstance(end, bool) and end in ends:
        return []
    if vocab_size in ENDS or not isinstance(end, int) or isinstance(end, bool) or end < vocab_size:
        raise WeightsError(f"{key} {end!r}; expected {ends[0]}, where texts end here")
    return [f"{key} {end}, outside of the {vocab_size} tokens: texts end at their largest id"]


def _check_class(config: ClassConfigs, values: Mapping[str, Any], file: str) -> None:
    kind, classes = values.get("model_type"), values.get("architectures")
    if kind not in (None, config.model_type):
        raise WeightsError(f"{file}: model_type is {kind!r}; expected {config.model_type!r}")
    if classes is not None and not isinstance(classes, list):
        raise WeightsError(f"{file}: architectures is {classes!r}; expected a list")
    for name in classes or ():
        if name not in list(config.architectures):
            raise WeightsError(f"{file}: architectures is {name!r}; expected one of {', '.join(config.architectures)}")


def _tables(config: ClassConfigs) -> list[tuple[str, Any]]:
    """Every part of a config: the prefix of its keys in messages, and its table."""
    return [("", config.table), *((f"{part}.", table) for part, table in config.nested.items())]


def _part(values: Mapping[str, Any], part: str, table: Mapping[str, Any], file: str) -> Mapping[str, Any]:
    """The keys and values of one part of a config.

    As in transformers, CLIP's `text_config_dict` replaces every key of `text_config` that the class has, stated or
    default.
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


def _official_config(system: str, classes: ClassConfigs, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as the system's adapter takes them: see `HFConfig.official_config`."""
    in_shapes = {
        rule.argument
        for _, table in _tables(classes)
        for rule in table.values()
        if isinstance(rule, Read) and rule.in_shapes
    }
    arguments = {name: x for name, x in settings.items() if name not in in_shapes and name not in NOT_ARGUMENTS}
    if system == "vilt":
        arguments["text_eps"] = arguments["eps"]  # transformers has one eps for all norms
    config: dict[str, Any] = {"arguments": arguments, "num_heads": settings["num_heads"]}
    if system in ("clip", "open_clip"):
        config = {
            "arguments": arguments,
            "vision_heads": settings["num_heads"],
            "transformer_heads": settings["text_num_heads"],
        }
    if system == "blip":
        config = {
            "arguments": arguments,
            "vision": {"heads": settings["image_num_heads"]},
            "text": {"num_attention_heads": settings["num_heads"]},
            "special_ids": {"bos_DEC": settings["bos_token_id"]} if "bos_token_id" in settings else {},
        }
    (height, width), patch = settings["image_size"], settings["patch_size"]
    return config if height == width else config | {"grid": (height // patch, width // patch)}
