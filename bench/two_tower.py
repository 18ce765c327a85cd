"""The simplest two-tower model on frozen features, as a lower bound: `python -m bench.two_tower --data flickr8k/`

Images are features of a frozen CNN (`--image`: encoders/hypercolumns.py, or the last map of
encoders/efficientnet.py, at `--shorter` pixels), captions MiniLM token states (encoders/minilm.py). Each side is
pooled and mapped by two layers to a joint space, trained with symmetric InfoNCE. It uses no part of Diptych's
models: a system of the workbench must score at least as high on the same features. Evaluated as in papers: every val
photo against all captions.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from diptych.batch import Text
from diptych.config.data import BOXES, ImageSettings
from diptych.data.images.loading import ImageLoader
from diptych.data.sources.captions import open_captions
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.encoders.minilm import FrozenMiniLM
from diptych.inference.embedders import image_input
from diptych.inference.feature_extractors import disk_cache
from diptych.models.clip import recipes as clip
from diptych.models.common_recipes import IMAGES


class Features:
    """The features of one split: of photos (p, boxes, f), of captions (c, n, w), and the photo of each caption.

    Unless `attended`, the mean of the whole photo, and the unit-norm mean over all tokens, with [CLS] and [SEP].
    """

    def __init__(self, data: str, split: str, attended: bool, loader: ImageLoader, read: FrozenMiniLM, least: int):
        source = open_captions(data, split, min_side=least)
        photos = track(range(len(source)), description=f"{split} photos")
        features = (torch.from_numpy(loader.load(source, i, None).features).half() for i in photos)
        self.images = torch.stack([boxes if attended else boxes[0] for boxes in features])
        pairs = [(i, caption) for i in range(len(source)) for caption in source.captions(i)]
        text = Tokenizer(40).encode([caption for _, caption in pairs])
        self.real, self.owner = text.mask, torch.tensor([i for i, _ in pairs])
        parts = []
        for at in track(range(0, len(pairs), 500), description=f"{split} captions"):
            real = text.mask[at : at + 500]
            states = read(Text(text.ids[at : at + 500], real))
            parts.append(states.half() if attended else F.normalize(states.sum(1) / real.sum(1, keepdim=True), dim=1))
        self.texts = torch.cat(parts)


class Attend(nn.Module):
    """Attention pooling with `num_heads` learned queries, each over its own part of the width."""

    def __init__(self, feature_dim: int, dim: int, num_heads: int = 8):
        super().__init__()
        self.query, self.value, self.num_heads = (
            nn.Linear(feature_dim, num_heads),
            nn.Linear(feature_dim, dim),
            num_heads,
        )

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        scores = self.query(x)
        if real is not None:
            scores = scores.masked_fill(~real[:, :, None], -torch.inf)
        values = self.value(x).unflatten(2, (self.num_heads, -1))
        return (scores.softmax(1)[:, :, :, None] * values).sum(1).flatten(1)


class Tower(nn.Module):
    def __init__(self, feature_dim: int, dim: int, attended: bool, dropout: float):
        super().__init__()
        self.pool = Attend(feature_dim, dim) if attended else None
        inner = dim if attended else feature_dim
        self.map = nn.Sequential(
            nn.LayerNorm(inner),
            nn.Dropout(dropout),
            nn.Linear(inner, 2 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        return F.normalize(self.map(x if self.pool is None else self.pool(x, real)), dim=1)


def recalls(scores: Tensor, owner: Tensor) -> dict[str, float]:
    """In per cent, of photos (rows) by captions (columns)."""
    own = owner[None] == torch.arange(len(scores))[:, None]
    best = scores.masked_fill(~own, -torch.inf).amax(1)
    to_text = (scores > best[:, None]).sum(1)
    to_image = (scores > scores[owner, torch.arange(len(owner))][None]).sum(0)
    ranks = {"image->text": to_text, "text->image": to_image}
    return {f"{way} R@{k}": 100 * (rank < k).float().mean().item() for way, rank in ranks.items() for k in (1, 5, 10)}


def run(train: Features, val: Features, attended: bool, options: argparse.Namespace, seed: int) -> None:
    torch.manual_seed(seed)
    image, text = (
        Tower(train.images.shape[-1], options.width, attended, options.dropout),
        Tower(train.texts.shape[-1], options.width, attended, options.dropout),
    )
    scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
    learned = [*image.parameters(), *text.parameters(), scale]
    steps = options.epochs * (len(train.owner) // options.batch)
    optimizer = torch.optim.AdamW(learned, options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=steps, pct_start=0.1)
    grids, texts = train.images, train.texts
    began = time.perf_counter()
    for _ in range(options.epochs):
        for rows in torch.randperm(len(train.owner))[: steps // options.epochs * options.batch].split(options.batch):
            owner, real = train.owner[rows], train.real[rows]
            longest = int(real.sum(1).max()) if attended else None
            words = texts[rows].float() if longest is None else texts[rows, :longest].float()
            scores = (
                scale.exp()
                * image(grids[owner].float())
                @ text(words, None if longest is None else real[:, :longest]).T
            )
            same = owner[:, None] == owner[None]  # a photo's other captions are not negatives
            scores = scores.masked_fill(same & ~torch.eye(len(rows), dtype=torch.bool), -torch.inf)
            target = torch.arange(len(rows))
            loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                scale.clamp_(max=np.log(100))
    took = time.perf_counter() - began
    with torch.no_grad():
        image.eval()
        text.eval()
        photos = torch.cat([image(part.float()) for part in val.images.split(250)])
        parts = zip(val.texts.split(500), val.real.split(500), strict=True)
        captions = torch.cat([text(part.float(), real) for part, real in parts])
    found = recalls(photos @ captions.T, val.owner)
    how = "attended" if attended else "mean    "
    figures = "  ".join(
        f"{way} " + "/".join(f"{found[f'{way} R@{k}']:.1f}" for k in (1, 5, 10))
        for way in ("image->text", "text->image")
    )
    print(
        f"{how} seed {seed}: {figures}  ({steps} steps, {took:.0f} s, CPU {time.process_time():.0f} s in all)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="captions with a train and a val split")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pooling", choices=("mean", "attended"), default="mean")
    parser.add_argument("--image", choices=BOXES, default="hypercolumns")
    parser.add_argument("--shorter", type=int, default=IMAGES.shorter_side, help="pixels of a photo's side")
    options = parser.parse_args()
    recipe = replace(clip.small(), images=replace(IMAGES, shorter_side=options.shorter))
    loader = image_input(replace(recipe, embedders=replace(recipe.embedders, image=options.image)))
    assert not isinstance(loader, ImageSettings)
    read, attended = FrozenMiniLM(cache=disk_cache()), options.pooling == "attended"
    train, val = (Features(options.data, split, attended, loader, read, options.shorter) for split in ("train", "val"))
    for seed in range(options.seeds):
        run(train, val, attended, options, seed)


if __name__ == "__main__":
    main()
