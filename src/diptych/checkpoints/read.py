"""Reading checkpoints that strangers made: tensors only, no code is ever run, and no more memory than the file is big."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.checkpoints.reader import StateInFile, find_states, preferred
from diptych.checkpoints.torch_file import Broken, opened
from diptych.checkpoints.torch_pickle import OTHER_TENSORS, Claim, UnsafePickle, UnsupportedValue
from diptych.data.safe_pickle import read_npz

SWELLING = 8  # times its own size that a file may unpack to; weights hardly compress


class WeightsError(Exception):
    """A checkpoint that cannot be used as asked; the message names the file and the weights."""


class NonFinite(WeightsError):
    """Weights that are NaN or infinite, by name."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Names to tensors, from .safetensors, .npz, or a pickle of tensors (.pth, .pt, .ckpt, .bin): those that were trained.

    Where a file nests several sets, the first by `preferred`. Raises WeightsError where the file is broken, or holds
    anything but plain values and tensors.
    """
    return preferred(read_states(path))[0].state


def read_states(path: Path) -> list[StateInFile]:
    """Every set of named tensors that a file holds, at its top and nested, in the file's order; never none.

    What training keeps beside a model (optimizer, scheduler, loss scaler) is not read. Raises WeightsError.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file or folder; check the path")
    try:
        _refuse_swelling(path)
        if path.suffix == ".safetensors":
            return _filled([StateInFile("", load_file(path))], path)
        if path.suffix == ".npz":
            return _filled([StateInFile("", _arrays(path))], path)
        file = opened(path)
        states = [
            StateInFile(place, _tensors(path, place, named, file.tensor), beside)
            for place, named, beside in find_states(file.content)
        ]
        file.forget()
        return _filled(states, path, type(file.content).__name__)
    except WeightsError:
        raise
    except Exception as error:  # a hostile file makes the readers raise anything at all
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        if not _by_torch(path):
            reason = "not a file of PyTorch's: is it a text, or another format under this name?"
        elif isinstance(error, UnsafePickle):
            reason = f"{reason}; nothing but tensors and plain values is ever unpickled: save its state_dict alone"
        raise WeightsError(f"{path}: not a readable checkpoint ({reason})") from None


def nonfinite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinity."""
    return [name for name, tensor in state.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite. On meta, where there are none: True."""
    if tensor.is_meta or not tensor.numel():
        return True
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() == 1):  # these have no minimum
        return bool((tensor if tensor.is_complex() else tensor.float()).isfinite().all())
    return not tensor.is_floating_point() or all(end.isfinite() for end in tensor.aminmax())  # NaN passes through both


def _filled(states: list[StateInFile], path: Path, kind: str = "dict") -> list[StateInFile]:
    if kind != "dict" and not states:
        raise WeightsError(f"{path}: holds a {kind.replace('Claim', 'Tensor')}, not names and tensors")
    if not any(held.state for held in states):
        raise WeightsError(f"{path}: holds no tensors")
    return states


def _tensors(path: Path, place: str, named: Mapping[str, Any], read: Callable[[Claim], Tensor]) -> dict[str, Tensor]:
    tensors = {}
    for name, claim in named.items():
        try:
            if isinstance(claim, UnsupportedValue):
                raise Broken(f"it is {OTHER_TENSORS[claim.name]}; save it as a dense one")
            tensors[name] = read(claim)
        except Broken as error:
            raise WeightsError(f"{path}: {f'{place}.' if place else ''}{name}: {error}") from None
    return tensors


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz. Raises Broken where one is not of numbers that PyTorch has, NotPlain."""
    return {name: _of_array(name, array) for name, array in read_npz(path, _most_unpacked(path)).items()}


def _of_array(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise Broken(f"{name}: an array of {array.dtype.str}, which is no number of PyTorch's")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))


def _by_torch(path: Path) -> bool:
    """Whether a file that PyTorch is asked to read begins as its own do: as an archive or a pickle. Others: True."""
    with path.open("rb") as file:
        return path.suffix in (".safetensors", ".npz") or file.read(1) == b"\x80" or _is_zip(path)


def _refuse_swelling(path: Path) -> None:
    """Raises WeightsError where a zip archive (.npz, PyTorch's own) would unpack to many times its size."""
    if not _is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > _most_unpacked(path):
        raise WeightsError(f"{path}: would unpack to {unpacked / 2**20:.0f} MiB, which no weights do; not read")


def _most_unpacked(path: Path) -> int:
    """How many bytes an archive of weights may unpack to: numbers hardly shrink."""
    return SWELLING * path.stat().st_size + 2**24


def _is_zip(path: Path) -> bool:
    """Whether a file ends as a zip archive does, be it a broken one."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True
