"""Images as people pass them: files, folders, globs, PIL images, arrays and tensors, as one source of images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from diptych.data.images.decode import FORMATS, from_pillow, load_image, read_image_file, upright_size
from diptych.data.images.headers import has_image_signature
from diptych.data.images.loading import size_and_pixels
from diptych.data.sources.base import BadSample, DataError

ImageInput = str | os.PathLike[str] | Pillow.Image | np.ndarray | Tensor
"""One image, or a folder or glob of them."""
_ACCEPTED = "a path, a folder, a glob, a PIL image, a uint8 array, a tensor, or a list of these"


@dataclass(frozen=True, eq=False)
class Photo:
    """One image that is not read yet.

    Args:
        where: its name in messages: the path, or the place in the list, such as "images[3]".
        path: the file, as it was passed or found; empty for an image in memory.
        pixels: an image in memory: uint8 ``(h, w, 3)`` or ``(h, w)`` if it is an array.
        error: why it cannot be read, if that is known already.
    """

    where: str
    path: str = ""
    pixels: Pillow.Image | np.ndarray | None = None
    error: str = ""


@dataclass(eq=False)
class Photos:
    """A source of images (images.loading.ImageSource), read one at a time when they are used.

    `min_side`: large JPEGs may be decoded at a smaller scale whose shorter side is at least this many pixels.
    """

    photos: Sequence[Photo]
    name: str = "photographs"
    split: str = "all"
    min_side: int | None = None

    def __len__(self) -> int:
        return len(self.photos)

    def image(self, index: int) -> Pillow.Image:
        """The decoded image, mode RGB, upright (EXIF applied). Raises BadSample."""
        photo = self._readable(index)
        if photo.pixels is None:
            return load_image(Path(photo.path), self.min_side)
        pixels = photo.pixels
        return from_pillow(Pillow.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels, photo.where)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels of the upright image; of a file only the header is read. Raises BadSample."""
        photo = self._readable(index)
        return self.image(index).size if photo.pixels is not None else upright_size(self.file(index), photo.path)

    def file(self, index: int) -> bytes:
        """Bytes of the image file; size and pixels of an image in memory. Raises BadSample."""
        photo = self._readable(index)
        return read_image_file(Path(photo.path)) if photo.pixels is None else size_and_pixels(self.image(index))

    def stem(self, index: int) -> str:
        """File name without its suffix; the index of an image in memory."""
        return Path(self.photos[index].path).stem if self.photos[index].path else str(index)

    def path(self, index: int) -> str:
        """Path of the file, as it was passed or found; empty for an image in memory."""
        return self.photos[index].path

    def where(self, index: int) -> str:
        """The path, or the place in the list, for messages."""
        return self.photos[index].where

    def select(self, indices: Iterable[int]) -> Photos:
        """The images of these indices, in this order."""
        return replace(self, photos=[self.photos[i] for i in indices])

    def _readable(self, index: int) -> Photo:
        photo = self.photos[index]
        if photo.error:
            raise BadSample(photo.where, photo.error)
        return photo


def open_photos(images: ImageInput | Iterable[Any] | Photos, min_side: int | None = None) -> Photos:
    """The images that a person passes, in order. No image is decoded yet.

    Folders contain their files and those of their subfolders in natural order (``2.jpg`` before ``10.jpg``), without
    hidden ones (``.name``); each folder is read once, however many links lead to it. Files that are not images are
    part of the source too: they raise BadSample when they are read, so that they can be counted and named.

    Args:
        images: a path, a folder, a glob (``photos/**/*.jpg``), a PIL image, a uint8 array ``(h, w, 3)`` or ``(h, w)``,
            a tensor ``(3, h, w)`` of uint8 or of floats in [0, 1], or several of these.
        min_side: see Photos.

    Raises:
        DataError: nothing was passed; a path does not exist, a folder contains no image, a glob matches nothing; an
            array or tensor has another shape, type or range.
    """
    if isinstance(images, Photos):
        return replace(images, min_side=min_side or images.min_side)
    if isinstance(images, str | os.PathLike):
        return Photos(list(_at_path(images, "the image")), _name(images), min_side=min_side)
    if isinstance(images, Pillow.Image | np.ndarray | Tensor):
        return Photos([_in_memory(images, "the image")], min_side=min_side)
    if not isinstance(images, Iterable) or isinstance(images, bytes | bytearray | dict):
        raise DataError(f"the image: expected {_ACCEPTED}, got {type(images).__name__}")
    photos = [photo for i, image in enumerate(images) for photo in _photos(image, f"images[{i}]")]
    if not photos:
        raise DataError(f"no images: expected {_ACCEPTED}, got an empty {type(images).__name__}")
    return Photos(photos, min_side=min_side)


def _name(path: str | os.PathLike[str]) -> str:
    """Name of a source of one path: the folder's, else a general one."""
    return Path(path).name if os.path.isdir(path) and Path(path).name else Photos.name


def _photos(image: Any, where: str) -> Iterable[Photo]:
    return _at_path(image, where) if isinstance(image, str | os.PathLike) else [_in_memory(image, where)]


def _at_path(path: str | os.PathLike[str], where: str) -> Iterable[Photo]:
    """The file of a path, all files of a folder, or all files that match a glob. Raises DataError."""
    name = os.fspath(path)
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: expected a path, got {name!r}")
    if os.path.isdir(name):
        return _in_folder(name)
    if os.path.lexists(name):  # also a name with brackets, which would be a glob
        return [_file(name)]
    if has_magic(name):
        return _matching(name)
    if "://" in name:
        raise DataError(f"{name}: addresses of the web are not read: download the image, and pass its path")
    raise DataError(f"{name}: no such file or folder, and no glob (*, ?, [...]); check the path")


def _file(path: str, error: str = "") -> Photo:
    return Photo(str(Path(path)), path, error=error)


def _in_folder(folder: str) -> list[Photo]:
    """All files of a folder and its subfolders, in natural order. Raises DataError if none of them is an image."""
    photos = sorted(_walk(folder), key=_natural_order)
    if not any(_is_image(photo.path) for photo in photos):
        files = f"none of its {len(photos)} files (first: {photos[0].path})" if photos else "no file"
        raise DataError(f"{folder}: no image there: {files} is one of {', '.join(FORMATS)}; give another folder")
    return photos


def _matching(pattern: str) -> list[Photo]:
    """Each file once that matches a glob or is in a folder that does, in natural order. Raises DataError."""
    paths = glob(pattern, recursive=True)
    if not paths:
        raise DataError(f"{pattern}: no file matches this glob; check it")
    photos = [photo for path in paths for photo in (_walk(path) if os.path.isdir(path) else [_file(path)])]
    return sorted({os.path.normpath(photo.path): photo for photo in photos}.values(), key=_natural_order)


def _walk(folder: str) -> Iterator[Photo]:
    """All files below a folder but hidden ones. A subfolder that cannot be listed is one photo with an error."""
    folders, links, seen = [folder], [], set()
    while folders or links:  # folders first, so that a file's path leads through as few links as possible
        place = folders.pop() if folders else links.pop()
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(place), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield _file(place, f"the folder cannot be listed ({error.strerror})")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append(entry.path)
            else:
                yield _file(entry.path)


def _natural_order(photo: Photo) -> tuple[list[list[str | int]], str]:
    """Sort key by which numbers in names are compared as numbers, and case is ignored."""
    parts = Path(photo.path).parts
    return [[int(s) if s.isdecimal() else s.casefold() for s in re.split(r"(\d+)", part)] for part in parts], photo.path


def _is_image(path: str) -> bool:
    """Whether a file begins as an image file does."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return has_image_signature(file.read(16))
    except OSError:
        return False


def _in_memory(image: Any, where: str) -> Photo:
    """A PIL image, array or tensor. Raises DataError."""
    if isinstance(image, Pillow.Image):
        return Photo(where, pixels=image)
    if isinstance(image, Tensor):
        return Photo(where, pixels=_tensor_pixels(image.detach(), where))
    if isinstance(image, np.ndarray):
        return Photo(where, pixels=_array_pixels(image, where))
    raise DataError(f"{where}: expected {_ACCEPTED}, got {type(image).__name__}")


def _array_pixels(array: np.ndarray, where: str) -> np.ndarray:
    """The array itself, contiguous. Raises DataError unless it is uint8 ``(h, w, 3)`` or ``(h, w)`` and not empty."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise DataError(
            f"{where}: expected a uint8 array (height, width, 3) or (height, width), got {array.dtype} "
            f"{array.shape}{_advice(array.shape, array.ndim == 4)}"
        )
    return np.ascontiguousarray(array)


def _tensor_pixels(tensor: Tensor, where: str) -> np.ndarray:
    """uint8 ``(h, w, 3)`` of a tensor ``(3, h, w)``. Raises DataError for another shape, type or range."""
    kind, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    expected = f"{where}: expected a tensor (3, height, width) of uint8, or of floats in [0, 1]"
    usable = tensor.dtype == torch.uint8 or tensor.is_floating_point()
    if not usable or tensor.ndim != 3 or shape[0] != 3 or not tensor.numel():
        raise DataError(f"{expected}, got {kind} {shape}{_advice(shape, tensor.ndim == 4)}")
    pixels = tensor.cpu()
    if pixels.dtype != torch.uint8:
        pixels = pixels.float()
        low, high = pixels.min().item(), pixels.max().item()
        if not (low >= 0 and high <= 1):  # NaN too
            raise DataError(
                f"{expected}, got {kind} from {low:.4g} to {high:.4g}; pass the pixels before normalization, divided "
                "by 255"
            )
        pixels = pixels.mul(255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().numpy()


def _advice(shape: Sequence[int], batch: bool) -> str:
    return "; pass a batch as a list of images" if batch else ""
