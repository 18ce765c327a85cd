"""CLIP ViT-B/32 as OpenAI published it (QuickGELU): unit-norm embeddings of images and of texts. The weights are ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.speed import peers
from bench.speed.harness import Work, autocast, compare_tensors, inference, with_bf16_weights
from bench.speed.inputs import CLIP as SPECIAL
from bench.speed.inputs import texts as random_texts
from diptych.batch import Image
from diptych.checkpoints.adapter import State
from diptych.models.clip.checkpoint import names, pretraining_step
from diptych.models.clip.config import CLIPConfig
from diptych.models.huggingface.clip_export import clip as to_hf
from diptych.objectives.pretraining import Pretraining

COUNT, COLUMNS, END = 32, 77, SPECIAL[1]
LONGEST = f"{peers.HF}, padded to the longest"
HF_WIDE, OPEN_CLIP_WIDE = (f"{peer}, padded to {COLUMNS}" for peer in (peers.HF, peers.OPEN_CLIP))
ARGUMENTS = {name: getattr(CLIPConfig(), name) for name in CLIPConfig.__dataclass_fields__}


def clip() -> tuple[Pretraining, State]:
    """Our model with its heads, and its weights under OpenAI's names, which open_clip uses too."""
    torch.manual_seed(0)
    step = pretraining_step(CLIPConfig().build()).eval()
    return step, names({}, "").to_official(step.state_dict())


def openai_model(official: State) -> Any:
    """open_clip's model with these weights. Raises ImportError."""
    model = peers.open_clip().create_model("ViT-B-32-quickgelu")
    model.load_state_dict(official)
    return model.eval()


def hf_model(official: State) -> Any:
    """Hugging Face's model with these weights. Raises ImportError.

    With its plain attention, which is the faster of its two on a CPU for so few tokens.
    """
    transformers = peers.transformers()
    settings, named, _ = to_hf(ARGUMENTS, "", official)
    model = transformers.CLIPModel(transformers.CLIPConfig(**settings, attn_implementation="eager"))
    model.load_state_dict(named, strict=False)
    return model.eval()


def embed(precision: str, encode: Callable[[], Tensor]) -> peers.Candidate:
    """A candidate that returns unit-norm embeddings in fp32; autocast leaves a model of bf16 weights as it is."""

    @torch.no_grad()
    def run(_: int) -> Tensor:
        with autocast(precision):
            return F.normalize(encode().float(), dim=-1)

    return run


def hf_features(output: Any) -> Tensor:
    """The embeddings in the joint space: newer versions return them as the pooled output."""
    return output if isinstance(output, Tensor) else output.pooler_output


def images(precision: str) -> Work:
    step, official = clip()
    pixels = torch.randn(COUNT, 3, 224, 224)

    computing = inference(step, precision)

    def ours() -> Tensor:
        with computing():
            (pooled,) = step.model.pooled_features(step.model.encode_image(Image.from_full(pixels)))  # type: ignore[operator]
            return step.heads["itc"].project_image(pooled)  # type: ignore[operator]

    def hf(dtype: torch.dtype = torch.float32) -> peers.Candidate:
        model, inputs = hf_model(official).to(dtype), pixels.to(dtype)
        return embed(precision, lambda: hf_features(model.get_image_features(pixel_values=inputs)))

    def openai(dtype: torch.dtype = torch.float32) -> peers.Candidate:
        model, inputs = openai_model(official).to(dtype), pixels.to(dtype)
        return embed(precision, lambda: model.encode_image(inputs))

    others = {peers.HF: peers.unless_missing(hf), peers.OPEN_CLIP: peers.unless_missing(openai)}
    others |= with_bf16_weights(precision, peers.HF, lambda: hf(torch.bfloat16))
    others |= with_bf16_weights(precision, peers.OPEN_CLIP, lambda: openai(torch.bfloat16))
    return Work(
        lambda _: F.normalize(ours().float(), dim=-1), others, compare_tensors(precision, "embeddings", 1e-5, 2e-2)
    )


def texts(precision: str) -> Work:
    """Lengths as of captions. Hugging Face's, padded to the longest, needs no mask of padding, as attention is causal;
    padded to 77 it gets the mask, as its tokenizer returns it.
    """
    step, official = clip()
    text = random_texts(COUNT, SPECIAL)
    wide = F.pad(text.ids, (0, COLUMNS - text.ids.shape[1]))
    wide_mask = F.pad(text.mask, (0, COLUMNS - text.ids.shape[1]))

    computing = inference(step, precision)

    def ours() -> Tensor:
        with computing():
            (pooled,) = step.model.pooled_features(step.model.encode_text(text))  # type: ignore[operator]
            return step.heads["itc"].project_text(pooled)  # type: ignore[operator]

    def hf(dtype: torch.dtype = torch.float32, **inputs: Tensor) -> peers.Candidate:
        model = hf_model(official).to(dtype)
        return embed(precision, lambda: hf_features(model.get_text_features(**inputs)))

    def openai() -> peers.Candidate:
        model = openai_model(official)
        return embed(precision, lambda: model.encode_text(wide))

    others = {
        LONGEST: peers.unless_missing(lambda: hf(input_ids=text.ids)),
        HF_WIDE: peers.unless_missing(lambda: hf(input_ids=wide, attention_mask=wide_mask.long())),
        OPEN_CLIP_WIDE: peers.unless_missing(openai),
        **with_bf16_weights(precision, LONGEST, lambda: hf(torch.bfloat16, input_ids=text.ids)),
    }
    return Work(
        lambda _: F.normalize(ours().float(), dim=-1), others, compare_tensors(precision, "embeddings", 1e-5, 2e-2)
    )
