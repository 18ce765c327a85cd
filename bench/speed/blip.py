"""BLIP-base: captions, image encoding and re-ranking, beside Hugging Face. Weights are random, and theirs on both sides.

Differs: captions are generated to their full length, because random weights end no text.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.speed import peers
from bench.speed.harness import (
    Check,
    Work,
    autocast,
    compare_tensors,
    inference,
    rerank_ours,
    with_bf16_weights,
)
from bench.speed.inputs import texts
from diptych.batch import Image, Text
from diptych.generation import BeamConfig, GenerationConfig, beam_search
from diptych.models.huggingface.layouts import to_official_names
from diptych.models.importing import map_official
from diptych.modules.tokens import packing

SIDE, LENGTH, BEAMS = 384, 20, 3
START, ENCODE, END = 30522, 30523, 102  # BLIP's [DEC] and [ENC], and [SEP]
GENERATE, ENCODED_ONCE, PAIR_BY_PAIR = (
    f"{peers.HF} generate",
    f"{peers.HF}, images encoded once",
    f"{peers.HF}, pair by pair",
)


def blip(kind: str) -> tuple[Any, Any]:
    """Hugging Face's BLIP-base of this class, and ours with its weights. Raises ImportError."""
    transformers = peers.transformers()
    torch.manual_seed(0)
    text = {"num_attention_heads": 12, "encoder_hidden_size": 768, "sep_token_id": END}
    vision = {"image_size": SIDE, "patch_size": 16, "layer_norm_eps": 1e-6}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256)
    theirs: Any = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # large enough that texts differ
            nn.init.normal_(weight, std=0.04) if weight.dim() > 1 else None
    official, _ = to_official_names("blip", theirs.state_dict())
    ours = map_official("blip", official, {"num_heads": 12}).build()
    return theirs, ours.get_submodule("model").eval()


def captions(precision: str) -> Work:
    """4 images; encoding them is part of both."""
    theirs, ours = blip("BlipForConditionalGeneration")
    pixels = torch.randn(4, 3, SIDE, SIDE)
    generation = GenerationConfig(END, 0, LENGTH, LENGTH)

    computing = inference(ours, precision)

    def write(_: int) -> Tensor:
        with computing():
            image = ours.encode_image(Image.from_full(pixels))
            return beam_search(ours, image, torch.tensor([[START]] * len(pixels)), generation, BeamConfig(BEAMS)).ids

    @torch.no_grad()
    def generate(model: Any, images: Tensor, _: int) -> Tensor:
        with autocast(precision):
            prompt = torch.tensor([[START, END]] * len(images))  # `generate` drops the last token
            lengths = {"max_length": LENGTH, "min_length": LENGTH}
            return model.generate(pixel_values=images, input_ids=prompt, num_beams=BEAMS, **lengths)

    def converted() -> peers.Candidate:
        return partial(generate, copy.deepcopy(theirs).bfloat16(), pixels.bfloat16())

    def compare(a: Tensor, b: Tensor) -> list[Check]:
        differ = float((a != b).sum()) if a.shape == b.shape else float(a.numel())
        return [Check(f"ids that differ, of {a.numel()}", differ, 0.0 if precision == "fp32" else None)]

    others = {GENERATE: partial(generate, theirs, pixels), **with_bf16_weights(precision, GENERATE, converted)}
    return Work(write, others, compare)


def encoding(precision: str) -> Work:
    """The images of `captions`, encoded only."""
    theirs, ours = blip("BlipForConditionalGeneration")
    pixels = torch.randn(4, 3, SIDE, SIDE)

    computing = inference(ours, precision)

    def encode(_: int) -> Tensor:
        with computing():
            return ours.encode_image(Image.from_full(pixels)).to_padded()

    @torch.no_grad()
    def encode_theirs(_: int) -> Tensor:
        with autocast(precision):
            return theirs.vision_model(pixels).last_hidden_state

    return Work(encode, {peers.HF: encode_theirs}, compare_tensors(precision, "image tokens", 1e-4, 0.5))


def reranking(precision: str) -> Work:
    """One image with 128 texts; images and texts were encoded before, which both leave out."""
    theirs, ours = blip("BlipForImageTextRetrieval")
    text, pixels = texts(128), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad(), autocast(precision), packing():
        image, encoded = ours.encode_image(Image.from_full(pixels)), ours.encode_text(text)
        states = image.to_padded()

    def rerank(_: int) -> Tensor:
        return torch.stack([score_theirs(theirs, one, text, precision) for one in states])

    compare = compare_tensors(precision, "scores", 1e-5, 0.1)
    scores = rerank_ours(ours, precision)
    return Work(lambda _: scores(image, encoded), {ENCODED_ONCE: rerank}, compare)


@torch.no_grad()
def score_theirs(model: Any, states: Tensor, text: Text, precision: str) -> Tensor:
    """The scores of an encoded image with all texts at once."""
    ids = text.ids.clone()
    ids[:, 0] = ENCODE
    with autocast(precision):
        repeated = states.expand(len(ids), -1, -1)
        out = model.text_encoder(ids, attention_mask=text.mask.long(), encoder_hidden_states=repeated)
        return out.last_hidden_state[:, 0, 0].float()


def few_texts(precision: str) -> Work:
    """One image with 8 texts; encoding images and texts is part of all."""
    theirs, ours = blip("BlipForImageTextRetrieval")
    text, pixels = texts(8), torch.randn(1, 3, SIDE, SIDE)

    computing, scores = inference(ours, precision), rerank_ours(ours, precision)

    def ours_of_pixels(_: int) -> Tensor:
        with computing():
            image, encoded = ours.encode_image(Image.from_full(pixels)), ours.encode_text(text)
        return scores(image, encoded)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with autocast(precision):
            return theirs.vision_model(images).last_hidden_state

    def encoded_once(_: int) -> Tensor:
        return torch.stack([score_theirs(theirs, states, text, precision) for states in encode(pixels)])

    def pair_by_pair(_: int) -> Tensor:
        rows = [slice(i, i + 1) for i in range(len(text))]
        scores = [
            torch.cat([score_theirs(theirs, encode(one[None])[0], text[row], precision) for row in rows])
            for one in pixels
        ]
        return torch.stack(scores)

    compare = compare_tensors(precision, "scores", 1e-5, 0.1)
    return Work(ours_of_pixels, {ENCODED_ONCE: encoded_once, PAIR_BY_PAIR: pair_by_pair}, compare)
