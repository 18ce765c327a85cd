"""Random inputs of realistic shapes: ragged photographs and captions."""

from __future__ import annotations

import torch

from diptych.batch import Batch, Image, Matching, Text

PATCH = 32
PICTURES = ((12, 16), (12, 12), (16, 12), (12, 20), (12, 14), (18, 12), (12, 16), (12, 15))  # rows, columns of patches
WORDS = (12, 9, 14, 20, 10, 13, 16, 11)  # tokens of each text, the first and last special token among them
BERT = (101, 102)  # [CLS] and [SEP]
CLIP = (49406, 49407)


def texts(count: int, special: tuple[int, int] = BERT, extra: int = 0) -> Text:
    """Random texts between special tokens, padded with 0 to the longest; each `extra` tokens longer than WORDS."""
    lengths = torch.tensor([WORDS[i % len(WORDS)] + extra for i in range(count)])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1000, 30522, mask.shape).masked_fill(~mask, 0)
    ids[:, 0], ids[torch.arange(count), lengths - 1] = special
    return Text(ids, mask)


def ragged_images(count: int, number: int = 0) -> Image:
    """Random images of whole patches, each at the top left of the batch's canvas; `number` selects the shapes."""
    shapes = [PICTURES[(number + i) % len(PICTURES)] for i in range(count)]
    rows, columns = (max(sides) for sides in zip(*shapes, strict=True))
    pixels = torch.zeros(count, 3, rows * PATCH, columns * PATCH)
    for canvas, (h, w) in zip(pixels, shapes, strict=True):
        canvas[:, : h * PATCH, : w * PATCH] = torch.randn(3, h * PATCH, w * PATCH)
    return Image(pixels, torch.tensor(shapes) * PATCH)


def ragged_batch(size: int, number: int = 0) -> Batch:
    """Ragged images with their captions; every second image is paired with another's caption."""
    torch.manual_seed(number)
    image = ragged_images(size, number)
    text = texts(size, extra=number)
    order = torch.arange(size)
    matched = order % 2 == 0
    shown = image[torch.where(matched, order, (order + 1) % size)]
    return Batch(0, number, order, image, text, Matching(shown, matched))


def pixel_mask(image: Image) -> torch.Tensor:
    """1 at the pixels of each image, 0 at the padding, as Hugging Face's processors return it."""
    height, width = image.pixels.shape[2:]
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    return ((rows < image.sizes[:, 0, None, None]) & (columns < image.sizes[:, 1, None, None])).long()
