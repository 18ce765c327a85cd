"""Work that does not depend on the text, done once per image: captioning and re-ranking, beside Hugging Face.

    OMP_NUM_THREADS=1 python -m bench.keys_values [--precision fp32 bf16] [--rounds 5] [--only caption rerank]

- Captions: BLIP-base, random images of 384 pixels, beam search of 3 beams up to 20 tokens, which no text ends before;
  beside `BlipForConditionalGeneration.generate`. Encoding the images is part of both.
- Re-ranking: BLIP-base and ALBEF-base, every image with k texts, images and texts encoded before; BLIP beside
  `BlipForImageTextRetrieval`'s encoder, k pairs at a time (ALBEF has no class there).

Weights are random, and the same on both sides.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from bench.side_by_side import heading, in_turn, table
from diptych.batch import Image, Text
from diptych.generation import BeamConfig, GenerationConfig, beam_search
from diptych.models.albef.config import ALBEFConfig
from diptych.models.huggingface.layouts import to_official_names
from diptych.models.importing import map_official
from diptych.modules.tokens import Tokens, packing
from diptych.tasks.pair_scores import CrossEncoder

SIDE, PROMPT, CAPTION_LENGTH, BEAMS = 384, (30522,), 20, 3
WORDS = (12, 9, 14, 20, 10, 13, 16, 11)  # tokens of each text, [CLS] and [SEP] among them
ENC = 30523


def sized(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def blip(kind: str, depth: int) -> tuple[Any, Any]:
    """Hugging Face's BLIP-base of this class, with `depth` layers on both sides, and ours with its weights."""
    torch.manual_seed(0)
    transformers = import_module("transformers")
    text = {"num_attention_heads": 12, "num_hidden_layers": depth, "encoder_hidden_size": 768, "sep_token_id": 102}
    vision = {"image_size": SIDE, "patch_size": 16, "num_hidden_layers": depth, "layer_norm_eps": 1e-6}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256)
    theirs: Any = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # large enough that texts differ
            nn.init.normal_(weight, std=0.04) if weight.dim() > 1 else None
    official, _ = to_official_names("blip", theirs.state_dict())
    ours = map_official("blip", official, {"num_heads": 12}).build()
    return theirs, ours.get_submodule("model").eval()


@torch.no_grad()
def caption_ours(model: Any, pixels: Tensor, precision: str, _: int) -> Tensor:
    rules = GenerationConfig(102, 0, CAPTION_LENGTH, CAPTION_LENGTH)
    with sized(precision), packing():
        image = model.encode_image(Image.from_full(pixels))
        prompt = torch.tensor([PROMPT] * len(pixels))
        return beam_search(model, image, prompt, rules, BeamConfig(BEAMS)).ids


@torch.no_grad()
def caption_theirs(model: Any, pixels: Tensor, precision: str, _: int) -> Tensor:
    with sized(precision):
        prompt = torch.tensor([[*PROMPT, 102]] * len(pixels))  # `generate` drops the last token
        lengths = {"max_length": CAPTION_LENGTH, "min_length": CAPTION_LENGTH}
        return model.generate(pixel_values=pixels, input_ids=prompt, num_beams=BEAMS, **lengths)


def captions(images: int, depth: int, precision: str, rounds: int) -> None:
    theirs, ours = blip("BlipForConditionalGeneration", depth)
    pixels = torch.randn(images, 3, SIDE, SIDE)
    candidates: dict[str, Callable[[int], Any]] = {
        f"Hugging Face generate, {precision}": partial(caption_theirs, theirs, pixels, precision),
        f"Diptych, {precision}": partial(caption_ours, ours, pixels, precision),
    }
    print(heading(f"BLIP captions of {images} images at {SIDE}, {BEAMS} beams, {CAPTION_LENGTH} tokens"), flush=True)
    timings, results = in_turn(candidates, rounds)
    print(table(timings, next(iter(candidates)), images, "images"))
    first, second = results.values()
    print(f"\nIds equal: {first.tolist() == second.tolist()}.")


def texts(count: int) -> Text:
    lengths = torch.tensor([WORDS[i % len(WORDS)] for i in range(count)])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return Text(torch.randint(1000, 30522, mask.shape).masked_fill(~mask, 0), mask)


def first_channel(pooled: Tensor) -> Tensor:
    return pooled[:, 0]


@torch.no_grad()
def rerank_ours(model: Any, image: Tokens, text: Tokens, precision: str, _: int) -> Tensor:
    with sized(precision), packing():
        return CrossEncoder(model, first_channel, [text]).score_all(image)


@torch.no_grad()
def rerank_theirs(encoder: Any, image: Tensor, text: Text, precision: str, _: int) -> Tensor:
    ids = text.ids.clone()
    ids[:, 0] = ENC
    scores = []
    with sized(precision):
        for one in image:
            states = one.expand(len(ids), -1, -1)
            out = encoder(ids, attention_mask=text.mask.long(), encoder_hidden_states=states)
            scores.append(out.last_hidden_state[:, 0, 0].float())
    return torch.stack(scores)


@torch.no_grad()
def rerank(system: str, images: int, k: int, depth: int, precision: str, rounds: int) -> None:
    pixels, text, candidates = torch.randn(images, 3, SIDE, SIDE), texts(k), {}
    if system == "BLIP":
        theirs, ours = blip("BlipForImageTextRetrieval", depth)
    else:
        half = {"text_depth": depth // 2, "fusion_depth": depth // 2, "grid": (SIDE // 16, SIDE // 16)}
        ours = ALBEFConfig(**half, image_depth=depth).build().eval()
    with sized(precision), packing():
        image, encoded = ours.encode_image(Image.from_full(pixels)), ours.encode_text(text)
    if system == "BLIP":
        name = f"Hugging Face, images encoded once, {precision}"
        candidates[name] = partial(rerank_theirs, theirs.text_encoder, image.to_padded(), text, precision)
    candidates[f"Diptych, {precision}"] = partial(rerank_ours, ours, image, encoded, precision)
    print(heading(f"{system} re-ranking, {images} images at {SIDE} with {k} texts each"), flush=True)
    timings, results = in_turn(candidates, rounds)
    print(table(timings, next(iter(candidates)), images * k, "pairs"))
    first, *others = results.values()
    for other in others:
        print(f"\nLargest difference of scores: {(first - other).abs().max():.1e}, of {first.abs().max():.1f}.")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.keys_values", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--only", nargs="+", choices=("caption", "rerank"), default=("caption", "rerank"))
    parser.add_argument("--images", type=int, default=4, help="images to caption; half as many are re-ranked")
    parser.add_argument("--texts", type=int, default=128, help="texts that each image is scored with")
    parser.add_argument("--depth", type=int, default=12, help="transformer layers; 12 is the published size")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for precision in options.precision:
        if "caption" in options.only:
            captions(options.images, options.depth, precision, options.rounds)
        if "rerank" in options.only:
            for system in ("BLIP", "ALBEF"):
                rerank(system, max(1, options.images // 2), options.texts, options.depth, precision, options.rounds)


if __name__ == "__main__":
    main()
