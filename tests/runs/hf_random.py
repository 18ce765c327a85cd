"""Random small models of transformers' classes saved by transformers, and the runs that `diptych import` makes of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.cli import main
from diptych.runs.load_model import load_model

ACTIVATIONS = ("gelu", "quick_gelu", "relu", "silu", "swish", "gelu_new", "gelu_pytorch_tanh")
CLASSES = {
    "ViTForImageClassification": "vit",
    "ViTModel": "vit",
    "CLIPModel": "clip",
    "ViltModel": "vilt",
    "ViltForMaskedLM": "vilt",
    "ViltForQuestionAnswering": "vilt",
    "ViltForImagesAndTextClassification": "vilt",
    "ViltForImageAndTextRetrieval": "vilt",
    "BlipForConditionalGeneration": "blip",
    "BlipForQuestionAnswering": "blip",
    "BlipForImageTextRetrieval": "blip",
}
TEXT_LENGTH = 9


def _tower(draw: random.Random, dim: int | None = None) -> dict[str, Any]:
    heads = draw.choice((1, 2, 3, 4))
    return {
        "hidden_size": dim or heads * draw.choice((4, 8, 12)),
        "num_attention_heads": heads if dim is None else draw.choice([n for n in (1, 2, 4) if dim % n == 0]),
        "num_hidden_layers": draw.choice((1, 2, 3)),
        "intermediate_size": draw.choice((12, 24, 40)),
        "hidden_act": draw.choice(ACTIVATIONS),
        "layer_norm_eps": draw.choice((1e-12, 1e-6, 1e-5, 1e-3, 0.1)),
    }


def _image_sizes(draw: random.Random) -> dict[str, Any]:
    patch = draw.choice((4, 8))
    return {"patch_size": patch, "image_size": patch * draw.choice((2, 3))}


def _text_sizes(draw: random.Random) -> dict[str, Any]:
    return {"vocab_size": draw.choice((40, 61)), "max_position_embeddings": TEXT_LENGTH}


def _labels(draw: random.Random, count: int) -> dict[str, Any]:
    names = draw.sample(["tench", "crane", "a cat", "naïve", "two words, and a comma", "3", "yes", "crane"], count)
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def config_of(kind: str, draw: random.Random) -> dict[str, Any]:
    """Random keyword arguments of the class's config."""
    if kind.startswith("ViT"):
        return _tower(draw) | _image_sizes(draw) | _labels(draw, draw.choice((2, 3, 5)))
    if kind.startswith("Vilt"):
        config = _tower(draw) | _image_sizes(draw) | _text_sizes(draw)
        if kind == "ViltForImagesAndTextClassification":
            return config | {"modality_type_vocab_size": 3, "num_images": 2, "id2label": {0: "False", 1: "True"}}
        return config | _labels(draw, draw.choice((2, 4)))
    embed_dim = draw.choice((4, 10))
    if kind == "CLIPModel":
        return {
            "vision_config": _tower(draw) | _image_sizes(draw),
            "text_config": _tower(draw) | _text_sizes(draw) | {"eos_token_id": 2, "bos_token_id": 0},
            "projection_dim": embed_dim,
        }
    image = _tower(draw) | _image_sizes(draw)
    text = _tower(draw, image["hidden_size"] if "Question" in kind else None) | _text_sizes(draw) | {"bos_token_id": 38}
    return {"vision_config": image, "text_config": text, "image_text_hidden_size": embed_dim}


def saved(kind: str, config: dict[str, Any], folder: Path, seed: int = 0, **saving: Any) -> Any:
    """A model of the class with random weights of visible effect, saved to `folder`."""
    import transformers

    model_class = getattr(transformers, kind)
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**config)).eval()
    for name, parameter in model.named_parameters():
        if name != "logit_scale":
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, **saving)
    return model


def imported(system: str, source: Path, out: Path, *more: str) -> tuple[Any, Any]:
    """The config of a folder imported at the command line, and its module with weights."""
    assert main(["import", system, str(source), "--out", str(out), *more]) == 0
    loaded = load_model(out, torch.device("cpu"))
    return loaded.saved, loaded.module


def close(ours: Tensor, theirs: Tensor) -> bool:
    assert ours.shape == theirs.shape and theirs.abs().max() > 0
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


@torch.no_grad()
def equal(kind: str, theirs: Any, step: Any) -> bool:
    """Whether both models compute the same outputs from random inputs."""
    vision = getattr(theirs.config, "vision_config", theirs.config)
    words = getattr(theirs.config, "text_config", theirs.config)
    side, model = vision.image_size, step.model
    two = kind == "ViltForImagesAndTextClassification"
    pixels = torch.randn(3, 2 if two else 1, 3, side, side)
    image = Image.from_full(pixels[:, 0])
    if kind == "ViTForImageClassification":
        return close(model.classify(image), theirs(pixels[:, 0]).logits)
    if kind == "ViTModel":
        return close(model.encode_image(image).to_padded(), theirs(pixels[:, 0]).last_hidden_state)
    text = _text(words.vocab_size, ends_in_largest=kind == "CLIPModel", whole="Question" in kind and "Blip" in kind)
    inputs = {"input_ids": text.ids, "attention_mask": text.mask.long()}
    if kind == "CLIPModel":
        return _clip_equal(theirs(**inputs, pixel_values=pixels[:, 0]), step, image, text)
    if kind.startswith("Blip"):
        return _blip_equal(kind, theirs, step, image, pixels[:, 0], text)
    inputs["pixel_values"] = pixels if two else pixels[:, 0]
    return _vilt_equal(
        kind, theirs(**inputs), step, text, [Image.from_full(pixels[:, i]) for i in range(pixels.shape[1])]
    )


def _text(words: int, ends_in_largest: bool, whole: bool) -> Text:
    lengths = torch.tensor([[TEXT_LENGTH], [4], [6]])
    mask = torch.arange(TEXT_LENGTH) < (torch.full_like(lengths, TEXT_LENGTH) if whole else lengths)
    ids = torch.randint(3, words - 3, mask.shape)
    if ends_in_largest:
        ids.scatter_(1, lengths - 1, words - 1)
    return Text(ids * mask, mask)


def _clip_equal(out: Any, step: Any, image: Image, text: Text) -> bool:
    head, model = step.heads["itc"], step.model
    (image_features,) = model.pooled_features(model.encode_image(image))
    (text_features,) = model.pooled_features(model.encode_text(text))
    image_embeds, text_embeds = head.project_image(image_features), head.project_text(text_features)
    return close(image_embeds, out.image_embeds) and close(text_embeds, out.text_embeds)


def _vilt_equal(kind: str, out: Any, step: Any, text: Text, images: list[Image]) -> bool:
    model = step.model
    tokens = model.encode_text(text)
    pairs = [model.fuse(tokens, model.encode_image(image).with_image_index(slot)) for slot, image in enumerate(images)]
    pooled, hidden_states = pairs[0].pooled, pairs[0].text.to_padded()[text.mask]
    match kind:
        case "ViltModel":
            return close(hidden_states, out.last_hidden_state[:, :TEXT_LENGTH][text.mask]) and close(
                pooled, out.pooler_output
            )
        case "ViltForMaskedLM":
            return close(step.heads["mlm"](hidden_states), out.logits[text.mask])
        case "ViltForQuestionAnswering":
            return close(step.head(pooled), out.logits)
        case "ViltForImageAndTextRetrieval":
            return close(step.rank(pooled), out.logits[:, 0])
    return close(step.logits(tuple(pairs)), out.logits)


def _blip_equal(kind: str, theirs: Any, step: Any, image: Image, pixels: Tensor, text: Text) -> bool:
    model, mask = step.model, text.mask
    image_tokens = model.encode_image(image)
    inputs = {"input_ids": text.ids, "attention_mask": mask.long()}
    if kind == "BlipForConditionalGeneration":
        text.ids[:, 0] = model.decoder.bos_token_id
        return close(
            model.next_token_logits(text, image_tokens)[mask], theirs(**inputs, pixel_values=pixels).logits[mask]
        )
    text.ids[:, 0] = model.encoder.enc_token_id
    fused = model.fuse(model.encode_text(text), image_tokens).text
    if kind == "BlipForImageTextRetrieval":
        out = theirs(**inputs, pixel_values=pixels)
        head = step.heads["itc"]
        (a,), (b,) = model.pooled_features(image_tokens), model.pooled_features(model.encode_text(text))
        cosines = theirs(**inputs, pixel_values=pixels, use_itm_head=False).itm_score
        return close(step.heads["itm"](fused.first()), out.itm_score) and close(
            head.project_image(a) @ head.project_text(b).T, cosines
        )
    question = theirs.text_encoder(**inputs, encoder_hidden_states=theirs.vision_model(pixels).last_hidden_state)[0]
    answer = Text(text.ids.clone(), mask)
    answer.ids[:, 0] = model.decoder.bos_token_id
    logits = theirs.text_decoder(answer.ids, mask.long(), encoder_hidden_states=question).logits
    return close(fused.to_padded(), question) and close(model.next_token_logits(answer, fused), logits)
