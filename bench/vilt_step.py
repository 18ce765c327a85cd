"""A ViLT-B/32 pre-training step, forward and backward: ours, packed and padded, and Hugging Face's ViltModel.

Both have the same weights (theirs, through `models.importing`), the same heads, the same batch of ragged photographs
and captions, and the same three losses: matching and word-patch alignment on one pass, masked words on another.
Theirs runs in its default form: padded, and with logits at every word, as in its ViltForMaskedLM.
Alignment is solved by our `transport` on both sides, and the masks are drawn outside their step, so that the figures
are about the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.side_by_side import heading, in_turn, table
from diptych.batch import Batch, Image, Matching, Text
from diptych.models.huggingface.layouts import to_official_names
from diptych.models.importing import map_official
from diptych.models.vilt.model import ViLT
from diptych.objectives.itm import ITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import KeyedChoices, MaskedText, WordMasking
from diptych.objectives.wpa import WPALoss, optimal_transport

PATCH, GRID = 32, 12
PICTURES = ((12, 16), (12, 12), (16, 12), (12, 20), (12, 14), (18, 12), (12, 16), (12, 15))  # rows, columns of patches
WORDS = (12, 9, 14, 20, 10, 13, 16, 11)  # tokens of each caption, [CLS] and [SEP] among them
Losses = dict[str, Tensor]


def ragged_batch(size: int, number: int = 0) -> Batch:
    """Random photos and captions of realistic shapes; every second image is paired with another's caption.

    `number` selects the shapes.
    """
    torch.manual_seed(number)
    at = [(number + i) % len(PICTURES) for i in range(size)]
    shapes, lengths = [PICTURES[i] for i in at], torch.tensor([WORDS[i] + number for i in at])
    rows, columns = (max(sides) for sides in zip(*shapes, strict=True))
    pixels = torch.zeros(size, 3, rows * PATCH, columns * PATCH)
    for canvas, (h, w) in zip(pixels, shapes, strict=True):
        canvas[:, : h * PATCH, : w * PATCH] = torch.randn(3, h * PATCH, w * PATCH)
    image = Image(pixels, torch.tensor(shapes) * PATCH)
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1000, 30522, real.shape).masked_fill(~real, 0)
    ids[:, 0], ids[torch.arange(size), lengths - 1] = 101, 102
    matched = torch.arange(size) % 2 == 0
    shown = image[torch.where(matched, torch.arange(size), (torch.arange(size) + 1) % size)]
    return Batch(0, number, torch.arange(size), image, Text(ids, real), Matching(shown, matched))


def useful(batch: Batch) -> float:
    """The fraction of a padded batch's tokens that are real, with every image padded to the largest."""
    assert batch.text is not None and batch.image is not None
    patches = (batch.image.sizes // PATCH).prod(1)
    real = batch.text.mask.sum() + len(batch) + patches.sum()
    return (real / (batch.text.mask.numel() + len(batch) * (1 + patches.max()))).item()


class Peer(nn.Module):
    """The three losses on the outputs of Hugging Face's ViltModel."""

    def __init__(self, vilt: nn.Module, heads: nn.ModuleDict):
        super().__init__()
        self.vilt, self.heads = vilt, heads

    def forward(self, batch: Batch, masked: MaskedText) -> Losses:
        text, image, matching = batch.text, batch.image, batch.matching
        assert text is not None and image is not None and matching is not None
        n = text.ids.shape[1]
        hidden = self.read(masked.text, image).last_hidden_state[:, :n]
        labels = masked.original.masked_fill(~masked.masked, -100)
        pair = self.read(text, matching.image)
        words, patches = pair.last_hidden_state[:, 1:n], pair.last_hidden_state[:, n + 1 :]
        inner = text.mask[:, 1:].clone()
        inner[torch.arange(len(text)), text.mask.sum(1) - 2] = False  # [SEP]
        count = (matching.image.sizes // PATCH).prod(1, keepdim=True)
        distance = optimal_transport(words, patches, inner, torch.arange(patches.shape[1]) < count).distance
        sign = torch.where(matching.matched, 1.0, -1.0)
        return {
            "itm": F.cross_entropy(self.heads["itm"](pair.pooler_output).float(), matching.matched.long()),
            "mlm": F.cross_entropy(self.heads["mlm"](hidden).float().flatten(0, 1), labels.flatten()),
            "wpa": (sign * distance).mean(),
        }

    def read(self, text: Text, image: Image) -> Any:
        height, width = image.pixels.shape[2:]
        rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
        inside = (rows < image.sizes[:, 0, None, None]) & (columns < image.sizes[:, 1, None, None])
        return self.vilt(
            input_ids=text.ids, attention_mask=text.mask.long(), pixel_values=image.pixels, pixel_mask=inside.long()
        )


def both(depth: int) -> tuple[nn.Module, ViLT, nn.ModuleDict]:
    """Their model, ours with its weights, and heads for both; no dropout. Their norms get the official eps."""
    torch.manual_seed(0)
    transformers = import_module("transformers")  # at the top, pyright would read all its models, a fifth of its time
    theirs: nn.Module = transformers.ViltModel(transformers.ViltConfig(num_hidden_layers=depth))
    for name, module in theirs.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12 if "text_embeddings" in name else 1e-6
    official, _ = to_official_names("vilt", theirs.state_dict())
    imported = map_official("vilt", official, {})
    imported = replace(imported, arguments=imported.arguments | {"dropout": 0.0})  # as their default
    ours = cast(ViLT, cast(nn.ModuleDict, imported.build())["model"])
    return theirs, ours, ours.pretraining_heads()


def step(module: nn.Module, inputs: Sequence[tuple[Any, ...]], precision: str, number: int) -> dict[str, float]:
    """One forward and backward pass on the inputs of round `number`; the losses, and the norm of the gradient."""
    module.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = module(*inputs[number % len(inputs)])
    (losses["itm"] + losses["mlm"] + 0.1 * losses["wpa"]).backward()
    length = torch.stack([p.grad.float().norm() for p in module.parameters() if p.grad is not None]).norm()
    return {name: losses[name].item() for name in ("itm", "mlm", "wpa")} | {"gradient": length.item()}


def run(
    size: int = 8, depth: int = 12, rounds: int = 3, fresh: bool = False, precisions: Sequence[str] = ("fp32", "bf16")
) -> None:
    """Prints the table and the differences of the losses.

    `fresh`: every round has a batch of other shapes, as in training, so that kernels that are compiled for each new
    shape (bfloat16) take as long as there.
    """
    masking = WordMasking(whole_words=False)
    batches = [ragged_batch(size, number) for number in range(1 + rounds * fresh)]
    masked = [KeyedChoices(batch).mask_text(cast(Text, batch.text), masking) for batch in batches]
    objectives = [ITMLoss(), MLMLoss(masking), WPALoss()]
    theirs, ours, heads = both(depth)
    peer = Peer(theirs, heads).train()
    padded, packed = (Pretraining(ours, heads, objectives, pack=pack).train() for pack in (False, True))
    for_peer, for_ours = list(zip(batches, masked, strict=True)), [(batch,) for batch in batches]
    candidates: dict[str, Callable[[int], Any]] = {}
    for precision in precisions:
        candidates[f"Hugging Face, {precision}"] = partial(step, peer, for_peer, precision)
        candidates[f"Diptych padded, {precision}"] = partial(step, padded, for_ours, precision)
        candidates[f"Diptych packed, {precision}"] = partial(step, packed, for_ours, precision)
    name = "ViLT-B/32" if depth == 12 else f"ViLT-B/32 cut to {depth} layers"
    shapes = "other shapes every round" if fresh else "the same shapes every round"
    print(heading(f"{name} training step, batch {size}, {useful(batches[0]):.0%} useful tokens, {shapes}"))
    timings, results = in_turn(candidates, rounds)
    first = next(iter(candidates))
    print(table(timings, first, size, "samples"))
    print(f"\n{rounds} rounds, in turn. Losses at the same weights, and their difference from {first}:\n")
    for candidate, losses in results.items():
        text = ", ".join(f"{key} {value:.6f} ({value - results[first][key]:+.1e})" for key, value in losses.items())
        print(f"- {candidate}: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.vilt_step", description=__doc__)
    parser.add_argument("--batch", type=int, default=8, choices=range(2, 9))
    parser.add_argument("--depth", type=int, default=12, help="transformer layers; 12 is the published size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="a batch of other shapes every round")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    options = parser.parse_args()
    run(options.batch, options.depth, options.rounds, options.fresh, options.precision)


if __name__ == "__main__":
    main()
