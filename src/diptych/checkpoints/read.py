"""Reading untrusted checkpoints: tensors only; no code of the file runs, and memory is bounded by the file's size."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.checkpoints.nested_state_dicts import StateInFile, find_states, preferred
from diptych.checkpoints.torch_file import CorruptFile, open_torch_file
from diptych.checkpoints.torch_pickle import OTHER_TENSORS, TensorRef, UnsafePickle, UnsupportedValue
from diptych.utils.safe_pickle import read_npz

MAX_EXPANSION = 8  # how many times its own size a file may unpack to; weights hardly compress


class WeightsError(Exception):
    """A checkpoint cannot be used; the message names the file and the weights."""


class NonFinite(WeightsError):
    """Weights are NaN or infinite; the message names them."""


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The trained weights of a file by name: .safetensors, .npz, or a pickle of tensors (.pth, .pt, .ckpt, .bin).

    Of several nested sets, the first in the order of `preferred`.

    Raises:
        WeightsError: the file is damaged, or holds anything but plain values and tensors.
    """
    return preferred(load_all_state_dicts(path))[0].state


def load_all_state_dicts(path: Path) -> list[StateInFile]:
    """Every set of named tensors of a file, at its top level and nested, in the order of the file; at least one.

    The state of training (optimizer, scheduler, loss scaler) is not read. Raises WeightsError.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file or folder; check the path")
    try:
        _check_unpacked_size(path)
        if path.suffix == ".safetensors":
            return _non_empty([StateInFile("", load_file(path))], path)
        if path.suffix == ".npz":
            return _non_empty([StateInFile("", _arrays(path))], path)
        file = open_torch_file(path)
        states = [
            StateInFile(key_path, _tensors(path, key_path, named, file.tensor), other_keys)
            for key_path, named, other_keys in find_states(file.content)
        ]
        file.release()
        return _non_empty(states, path, type(file.content).__name__)
    except WeightsError:
        raise
    except Exception as error:  # a crafted file can make the readers raise any exception
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        if not _has_known_format(path):
            reason = "not a file of PyTorch: is it text, or another format under this name?"
        elif isinstance(error, UnsafePickle):
            reason = f"{reason}; only tensors and plain values are unpickled: save the state_dict alone"
        raise WeightsError(f"{path}: not a readable checkpoint ({reason})") from None


def nonfinite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that contain NaN or infinity."""
    return [name for name, tensor in state.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    """Whether every element is finite; True on the meta device, which stores no values."""
    if tensor.is_meta or not tensor.numel():
        return True
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() == 1):  # aminmax lacks these types
        return bool((tensor if tensor.is_complex() else tensor.float()).isfinite().all())
    return not tensor.is_floating_point() or all(end.isfinite() for end in tensor.aminmax())  # NaN propagates to both


def _non_empty(states: list[StateInFile], path: Path, kind: str = "dict") -> list[StateInFile]:
    """`states`. Raises WeightsError if they contain no tensor; `kind`: the type of the file's content."""
    if kind != "dict" and not states:
        raise WeightsError(
            f"{path}: holds a {kind.replace('TensorRef', 'Tensor')}; expected a dict of names and tensors"
        )
    if not any(found.state for found in states):
        raise WeightsError(f"{path}: holds no tensors")
    return states


def _tensors(
    path: Path, key_path: str, named: Mapping[str, Any], load: Callable[[TensorRef], Tensor]
) -> dict[str, Tensor]:
    tensors = {}
    for name, ref in named.items():
        try:
            if isinstance(ref, UnsupportedValue):
                raise CorruptFile(f"it is {OTHER_TENSORS[ref.name]}; save it as a dense tensor")
            tensors[name] = load(ref)
        except CorruptFile as error:
            raise WeightsError(f"{path}: {f'{key_path}.' if key_path else ''}{name}: {error}") from None
    return tensors


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file. Raises CorruptFile for a dtype that PyTorch lacks, ValueError for an object array."""
    return {name: _from_numpy(name, array) for name, array in read_npz(path, _max_unpacked_bytes(path)).items()}


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise CorruptFile(f"{name}: an array of dtype {array.dtype.str}; expected a number type of PyTorch")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))


def _has_known_format(path: Path) -> bool:
    """Whether a file begins like PyTorch's: as a zip archive or a pickle. True for .safetensors and .npz."""
    with path.open("rb") as file:
        return path.suffix in (".safetensors", ".npz") or file.read(1) == b"\x80" or _is_zip(path)


def _check_unpacked_size(path: Path) -> None:
    """Raises WeightsError if a zip archive (.npz, PyTorch's own) would unpack to many times its size."""
    if not _is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > _max_unpacked_bytes(path):
        raise WeightsError(
            f"{path}: would unpack to {unpacked / 2**20:.0f} MiB from {path.stat().st_size / 2**20:.1f} MiB, "
            "which weights never do; not read"
        )


def _max_unpacked_bytes(path: Path) -> int:
    """How many bytes an archive of weights may unpack to."""
    return MAX_EXPANSION * path.stat().st_size + 2**24


def _is_zip(path: Path) -> bool:
    """Whether a file ends like a zip archive, even a damaged one."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True
