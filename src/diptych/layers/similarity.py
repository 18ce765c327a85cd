"""How alike two sides are: every image of a batch with every text."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def unit(x: Float[Tensor, "*n d"], dim: int = -1, eps: float = 1e-8) -> Float[Tensor, "*n d"]:
    """`x` over its length plus `eps` along `dim`, which leaves zero where it is; its gradient there is zero too."""
    return x / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) + eps)


def cosine(image: Float[Tensor, "i d"], text: Float[Tensor, "t d"]) -> Float[Tensor, "i t"]:
    """Dot products, of unit vectors."""
    return image @ text.T


def order(image: Float[Tensor, "i d"], text: Float[Tensor, "t d"]) -> Float[Tensor, "i t"]:
    """How far the text is from being more general than the image in every coordinate: -‖max(0, |text| - |image|)‖
    (Vendrov et al. 2016, equation 2). Its gradient where nothing is violated is zero. Differs: the norm is not squared, as in
    VSE++'s official code.
    """
    excess = (text.abs()[None] - image.abs()[:, None]).clamp(min=0)
    return -torch.linalg.vector_norm(excess, dim=2)
