"""Reading of a Hugging Face model folder: weights in one file or in shards, and JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.checkpoints.nested_state_dicts import StateInFile
from diptych.checkpoints.read import WeightsError, load_all_state_dicts, load_state_dict
from diptych.data.sources.base import DataError
from diptych.data.sources.paths import data_in_json, read_text

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files of weights, in the order in which transformers looks for them."""
CONFIG_FILE = "config.json"
INDEX_FILE = ".index.json"
MAX_BYTES = 64 * 2**20  # of a JSON file


def find_weights(folder: Path) -> Path | None:
    """The file of a folder's weights, or the index of its shards; None if there is none."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def is_model_folder_weights(file: Path) -> bool:
    """Whether a file is the weights file of a folder that has a config.json."""
    return file.name in WEIGHT_FILES and file.is_file() and (file.parent / CONFIG_FILE).is_file()


def load_folder_state_dicts(path: Path) -> list[StateInFile]:
    """Every set of weights of a checkpoint; one set, of all shards, if `path` is their index. Raises WeightsError."""
    return [StateInFile("", _from_shards(path))] if path.name.endswith(INDEX_FILE) else load_all_state_dicts(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The keys and values of a JSON file. Raises WeightsError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"{path}: {path.stat().st_size:,} bytes of JSON; expected at most {MAX_BYTES:,}")
        content = data_in_json(read_text(path), path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except DataError as error:
        raise WeightsError(str(error)) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}; expected an object of keys and values")
    return content


def _from_shards(index: Path) -> dict[str, Tensor]:
    """The weights that an index lists. Raises WeightsError unless each file holds exactly the weights listed for it."""
    files = read_json_object(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(x, str) for x in files.values()):
        raise WeightsError(f"{index}: weight_map must map each weight to its file")
    weights: dict[str, Tensor] = {}
    for name in dict.fromkeys(files.values()):
        if not name.endswith((".safetensors", ".bin")) or any(c in name for c in "/\\:\0") or name.startswith("."):
            raise WeightsError(f"{index}: weight_map names the file {name!r}; expected a file of the same folder")
        shard = load_state_dict(index.parent / name)
        expected = {weight for weight, file in files.items() if file == name}
        if wrong := min(expected ^ shard.keys(), default=None):
            problem = "is not in it" if wrong in expected else "is in it, but the index does not list it there"
            raise WeightsError(f"{index.parent / name}: {wrong} {problem} ({index.name})")
        weights |= shard
    return weights
