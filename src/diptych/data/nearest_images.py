"""The nearest images of each image of a source, by the mean of frozen features: candidates for hard negatives."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from diptych.batch import Image, Regions, masked_mean
from diptych.data.images.loading import ImageLoader, identity_of
from diptych.data.sources.base import BadSample, Captioned
from diptych.data.sources.copies import first_copies_of
from diptych.utils.feature_cache import MemoryCache, digest

BLOCK = 1024  # images whose similarities with all others are in memory at once


def nearest_images(
    source: Captioned, loader: ImageLoader, k: int, cache: MemoryCache, features: bytes = b""
) -> Int[np.ndarray, "images k"]:
    """The indices of each image's `k` nearest images, the nearest first; -1 where there are fewer.

    The similarity of two images is the cosine of their mean features, from which the mean over all images is
    subtracted. Copies (images with equal bytes) count as one image, represented by the first; an image that cannot be
    read is nobody's neighbour and has none.

    Args:
        loader: of regions or of a feature map: the features that are compared.
        cache: where the result is stored, under a digest of all images, so that a later run does not compute it again.
        features: a digest of the network and preprocessing that the loader's features come from.
    """
    first = np.array(first_copies_of(source, len(source)), dtype=np.int64)
    identities = [_identity(loader, source, i) for i in np.unique(first).tolist()]
    key = digest("nearest images", str(k), features, repr(identities), first.tobytes())
    arrays = cache.get_or_compute(key, lambda: {"nearest": _compute(source, loader, first, k)})
    return arrays["nearest"].numpy()


def _identity(loader: ImageLoader, source: Captioned, index: int) -> int:
    """See `identity_of`; -1 for an image that cannot be read."""
    try:
        return identity_of(loader, source, index)
    except BadSample:
        return -1


def _compute(source: Captioned, loader: ImageLoader, first: np.ndarray, k: int) -> Int[Tensor, "images k"]:
    images: list[int] = []
    means: list[Tensor] = []
    for index in track(np.unique(first).tolist(), description="features of images, for hard negatives"):
        try:
            mean = mean_features(loader.stack([loader.load(source, index, None)]))[0]
        except BadSample:  # skipped and counted when it is drawn as a sample
            continue
        images.append(index)
        means.append(mean.half())
    nearest = torch.full((len(first), k), -1, dtype=torch.int32)
    if len(images) > 1:
        neighbours = nearest_rows(torch.stack(means), k)
        nearest[torch.tensor(images), : neighbours.shape[1]] = torch.tensor(images, dtype=torch.int32)[neighbours]
    return nearest[torch.from_numpy(first)]


def mean_features(images: Image | Regions) -> Float[Tensor, "b f"]:
    """The mean feature of each image over its detected regions, or over the cells of its feature map."""
    if isinstance(images, Regions):
        return masked_mean(images.features, images.detected)
    rows, columns = (torch.arange(side) for side in images.pixels.shape[2:])
    inside = (rows < images.sizes[:, :1])[:, :, None] & (columns < images.sizes[:, 1:])[:, None, :]
    return masked_mean(images.pixels.flatten(2).transpose(1, 2), inside.flatten(1))


def nearest_rows(features: Float[Tensor, "n f"], k: int) -> Int[Tensor, "n nearest"]:
    """The indices of the min(k, n - 1) other rows with the largest cosine of centred features, the largest first."""
    centred = features.float() - features.float().mean(0)
    unit = torch.nn.functional.normalize(centred, dim=1)
    best = []
    for start in track(range(0, len(unit), BLOCK), description="nearest images"):
        cosines = unit[start : start + BLOCK] @ unit.T
        own = torch.arange(start, start + len(cosines))
        cosines[own - start, own] = -torch.inf
        best.append(cosines.topk(min(k, len(unit) - 1), 1).indices)
    return torch.cat(best)
