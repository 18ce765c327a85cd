"""Reading checkpoints that strangers made: tensors only, no code is ever run, and no more memory than the file is big."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

NESTS = ("state_dict", "model", "module")  # under which official files keep their weights
SIDES = ("img_enc.", "txt_enc.")  # VSE++ and SCAN keep a list of two states, image's and text's, without these prefixes
SWELLING = 8  # times its own size that a file may unpack to; weights hardly compress


class WeightsError(Exception):
    """A checkpoint that cannot be used as asked; the message names the file and the weights."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Names to tensors, from .safetensors, .npz, or a pickle of tensors (.pth, .pt, .ckpt, .bin), unnested.

    Raises WeightsError where the file is broken, or holds anything but plain values and tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give the checkpoint file itself")
    try:
        _refuse_swelling(path)
        loaded = _load(path)
    except WeightsError:
        raise
    except Exception as error:  # a hostile file makes the readers raise anything at all
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        if not _by_torch(path):
            reason = "not a file of PyTorch's: is it a text, or another format under this name?"
        elif type(error).__name__ == "UnpicklingError":
            # torch's own advice is to unpickle anything, which is never done
            reason = "nothing but tensors and plain values is ever unpickled: save its state_dict alone"
        raise WeightsError(f"{path}: not a readable checkpoint ({reason})") from None
    return _tensors(loaded, path)


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    with warnings.catch_warnings(action="ignore"):  # of odd pickles, just before they are refused
        return torch.load(path, map_location="cpu", weights_only=True)


def _by_torch(path: Path) -> bool:
    """Whether a file that PyTorch is asked to read begins as its own do: as an archive or a pickle. Others: True."""
    with path.open("rb") as file:
        return path.suffix in (".safetensors", ".npz") or file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _refuse_swelling(path: Path) -> None:
    """Raises WeightsError where a zip archive (.npz, PyTorch's own) would unpack to many times its size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > SWELLING * path.stat().st_size + 2**24:
        raise WeightsError(f"{path}: would unpack to {unpacked / 2**20:.0f} MiB, which no weights do; not read")


def _named(nested: object) -> Mapping | None:
    """A state, or the two that stand side by side as one; None where it is neither."""
    if isinstance(nested, list) and len(nested) == len(SIDES) and all(isinstance(side, Mapping) for side in nested):
        return {f"{prefix}{name}": x for prefix, side in zip(SIDES, nested, strict=True) for name, x in side.items()}
    return nested if isinstance(nested, Mapping) else None


def sided(state: dict[str, Tensor]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
    """What `_named` undoes: the two states, where all names are of one of the sides; else the state as it is."""
    if not all(name.startswith(SIDES) for name in state):
        return state
    return [{name.removeprefix(p): x for name, x in state.items() if name.startswith(p)} for p in SIDES]


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    for nest in NESTS:
        if isinstance(loaded, Mapping) and (inner := _named(loaded.get(nest))) is not None:
            loaded = inner
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: holds a {type(loaded).__name__}, not names and tensors")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors")
    for name, value in tensors.items():
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {name} claims {tuple(value.shape)}, more than is stored for it")
    return tensors
