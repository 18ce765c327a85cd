"""The files of a folder as Hugging Face keeps a model: weights in one file or in shards, and JSON beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.checkpoints.read import WeightsError, read_checkpoint, read_states
from diptych.checkpoints.reader import StateInFile
from diptych.data.sources.base import DataError
from diptych.data.sources.paths import parse_json, read_text

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files that hold weights, in the order in which transformers looks for them."""
CONFIG = "config.json"
INDEX = ".index.json"
MOST_BYTES = 64 * 2**20  # of a JSON file


def weights_of(folder: Path) -> Path | None:
    """The file to read a folder's weights from, perhaps the index of shards."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def in_folder(file: Path) -> bool:
    """Whether a file is the weights of a folder that has a config.json."""
    return file.name in WEIGHTS and file.is_file() and (file.parent / CONFIG).is_file()


def read_weights(path: Path) -> list[StateInFile]:
    """Every set of weights that a checkpoint holds; one, of all shards, where `path` is their index. Raises WeightsError."""
    return [StateInFile("", _from_shards(path))] if path.name.endswith(INDEX) else read_states(path)


def read_object(path: Path) -> dict[str, Any]:
    """The keys and values of a JSON file. Raises WeightsError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise WeightsError(f"{path}: more than {MOST_BYTES:,} bytes of JSON")
        held = parse_json(read_text(path), path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except DataError as error:
        raise WeightsError(str(error)) from None
    if not isinstance(held, dict):
        raise WeightsError(f"{path}: holds a {type(held).__name__}, not names and values")
    return held


def _from_shards(index: Path) -> dict[str, Tensor]:
    """The weights that an index lists: each file holds those that the index puts there, and no others."""
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(x, str) for x in listed.values()):
        raise WeightsError(f"{index}: weight_map must map each weight to its file")
    weights: dict[str, Tensor] = {}
    for name in dict.fromkeys(listed.values()):
        if not name.endswith((".safetensors", ".bin")) or any(c in name for c in "/\\:\0") or name.startswith("."):
            raise WeightsError(f"{index}: weight_map names the file {name!r}; expected a file of the same folder")
        shard = read_checkpoint(index.parent / name)
        wanted = {weight for weight, file in listed.items() if file == name}
        if wrong := min(wanted ^ shard.keys(), default=None):
            where = "is not in it" if wrong in wanted else "is in it, but the index does not say so"
            raise WeightsError(f"{index.parent / name}: {wrong} {where} ({index.name})")
        weights |= shard
    return weights
