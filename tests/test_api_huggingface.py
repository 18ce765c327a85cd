"""`diptych.load` of a folder saved by transformers computes what transformers' own class and processors compute.

Every supported class, with a random small config (heads, activations, eps, labels) and image processor (mean, std, filter),
on PNG files of several sizes and texts of several lengths: cosines of embeddings at least 0.9999, logits within 1e-4 of
the largest, generated ids equal.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor

import diptych
from diptych.data.tokenizers.tokenizer import BERT, CLIP, vocabulary
from tests.runs.hf_random import CLASSES, config_of, saved

transformers = pytest.importorskip("transformers")

LENGTH = 16  # position embeddings of texts
TEXTS = ["two dogs run over a meadow", "a cat", "the Café, at 3 o'clock"]
SEP, DEC, ENC = 102, 30522, 30523  # ids of BERT's end token and of BLIP's first tokens
CLIP_IDS = (49406, 49407)


class Theirs:
    """A random model of transformers, saved with its processors, and its inputs for `paths` and TEXTS."""

    def __init__(self, kind: str, seed: int, folder: Path):
        draw = random.Random(f"{kind} {seed}")
        self.kind, self.folder, self.system = kind, folder / "model", CLASSES[kind]
        self.model = saved(kind, _with_whole_vocabulary(config_of(kind, draw)), self.folder, seed)
        self.processor = _image_processor(kind, self.model.config, draw)
        self.processor.save_pretrained(self.folder)
        self.tokenizer = None if self.system == "vit" else _tokenizer(self.system, self.folder)
        self.paths = [_picture(draw, folder / f"photo {i}.png") for i in range(len(TEXTS))]

    def pixels(self, of: slice = slice(None)) -> dict[str, Tensor]:
        return dict(self.processor([Pillow.open(path) for path in self.paths[of]], return_tensors="pt"))

    def text(self, of: slice = slice(None), first: int | None = None) -> dict[str, Tensor]:
        """Token ids; `first`: the first token of BLIP's grounded texts, for which transformers keeps [CLS]."""
        assert self.tokenizer is not None
        text = dict(self.tokenizer(TEXTS[of], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))
        text.pop("token_type_ids", None)
        if first is not None:
            text["input_ids"][:, 0] = first
        return text

    def pairs(self, first: int | None = None) -> list[dict[str, Tensor]]:
        """Each picture with each text, one at a time, as padding images to one size would change ViLT's positions."""
        ones = [slice(i, i + 1) for i in range(len(TEXTS))]
        return [self.pixels(image) | self.text(text, first) for image in ones for text in ones]


def _with_whole_vocabulary(config: dict[str, Any]) -> dict[str, Any]:
    """The config with as many tokens as the tokenizers have, and room for generated texts."""
    if "vision_config" not in config:
        return config | ({"vocab_size": 30522, "max_position_embeddings": LENGTH} if "vocab_size" in config else {})
    text = config["text_config"] | {"max_position_embeddings": LENGTH}
    if "eos_token_id" in text:
        text |= {"vocab_size": 49408, "bos_token_id": CLIP_IDS[0], "eos_token_id": CLIP_IDS[1]}
    else:
        text |= {"vocab_size": 30524, "bos_token_id": DEC, "sep_token_id": SEP, "eos_token_id": SEP, "pad_token_id": 0}
    return config | {"text_config": text}


def _image_processor(kind: str, config: Any, draw: random.Random) -> Any:
    vision = getattr(config, "vision_config", config)
    side, patch = vision.image_size, vision.patch_size
    options: dict[str, Any] = {
        "image_mean": [draw.random() for _ in range(3)],
        "image_std": [0.2 + draw.random() for _ in range(3)],
    }
    options["resample"] = draw.choice((2, 3))
    if kind.startswith("Vilt"):
        size = {"shortest_edge": side if "Images" in kind else patch * draw.choice((3, 4))}
        return transformers.ViltImageProcessorPil(size=size, size_divisor=patch, **options)
    if kind == "CLIPModel":
        size, crop = {"shortest_edge": side + draw.choice((0, 3))}, {"height": side, "width": side}
        return transformers.CLIPImageProcessorPil(size=size, crop_size=crop, **options)
    name = "ViTImageProcessorPil" if kind.startswith("ViT") else "BlipImageProcessorPil"
    return getattr(transformers, name)(size={"height": side, "width": side}, **options)


def _tokenizer(system: str, folder: Path) -> Any:
    """transformers' tokenizer of the bundled vocabulary, saved to the folder."""
    known = vocabulary(CLIP if system == "clip" else BERT)
    if system != "clip":
        (folder / "vocab.txt").write_text("\n".join(known.tokens), encoding="utf-8")
        return transformers.BertTokenizer(str(folder / "vocab.txt"))
    merges = json.loads(known.subwords._pipeline.to_str())["model"]["merges"]  # type: ignore[attr-defined]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ids = dict(zip(known.tokens, range(len(known.tokens)), strict=True))
    ids = {token: i for token, i in ids.items() if i not in CLIP_IDS} | dict(
        zip(("<|startoftext|>", "<|endoftext|>"), CLIP_IDS, strict=True)
    )
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(str(folder))


def _picture(draw: random.Random, path: Path) -> Path:
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(
        0, 256, (draw.randint(20, 60), draw.randint(20, 60), 3)
    )
    Pillow.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def assert_same_directions(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours.norm(dim=1), torch.ones(len(ours)))
    assert F.cosine_similarity(ours, theirs).min() >= 0.9999


def vit_classifier(model: diptych.VLM, theirs: Theirs) -> None:
    logits = theirs.model(**theirs.pixels()).logits
    assert_close(model.loaded.model.classify(model.image_processor(theirs.paths)), logits)
    top, names = logits.softmax(1).topk(2, 1), theirs.model.config.id2label
    for found, values, indices in zip(model.classify(theirs.paths, top_k=2), top.values, top.indices, strict=True):
        assert [one.text for one in found] == [names[i] for i in indices.tolist()]
        assert [one.probability for one in found] == pytest.approx(values.tolist(), abs=1e-4)


def vit(model: diptych.VLM, theirs: Theirs) -> None:
    states = theirs.model(**theirs.pixels()).last_hidden_state
    features = model.features(theirs.paths)
    assert features.image is not None and features.image.spans == {"cls": (0, 1), "patches": (1, states.shape[1])}
    assert_close(features.image.values, states)
    assert_same_directions(model.embed_images(theirs.paths), states.mean(1))


def clip(model: diptych.VLM, theirs: Theirs) -> None:
    out = theirs.model(**theirs.pixels(), **theirs.text())
    assert_same_directions(model.embed_images(theirs.paths), out.image_embeds)
    assert_same_directions(model.embed_texts(TEXTS), out.text_embeds)
    scale = theirs.model.logit_scale.exp()
    assert_close(model.score(theirs.paths, TEXTS) * scale, out.logits_per_image)


def fused_states(model: diptych.VLM, theirs: Theirs) -> list[tuple[Tensor, Any]]:
    """Of each picture with its own text: our fused text states, and the output of transformers."""
    rows = []
    for i, path in enumerate(theirs.paths):
        one = slice(i, i + 1)
        features = model.features(path, TEXTS[i])
        assert features.fused_text is not None
        rows.append((features.fused_text.values, theirs.model(**theirs.pixels(one), **theirs.text(one))))
        assert features.pooled is not None and features.fused_text.mask.all()
        if "pooler_output" in rows[-1][1]:
            assert_close(features.pooled, rows[-1][1].pooler_output)
    return rows


def vilt(model: diptych.VLM, theirs: Theirs) -> None:
    for states, out in fused_states(model, theirs):
        assert_close(states, out.last_hidden_state[:, : states.shape[1]])


def vilt_mlm(model: diptych.VLM, theirs: Theirs) -> None:
    for states, out in fused_states(model, theirs):
        assert_close(model.loaded.heads["mlm"](states), out.logits)


def vilt_vqa(model: diptych.VLM, theirs: Theirs) -> None:
    ones = [slice(i, i + 1) for i in range(len(TEXTS))]
    logits = torch.cat([theirs.model(**theirs.pixels(one), **theirs.text(one)).logits for one in ones])
    names, best = theirs.model.config.id2label, logits.sigmoid().max(1)
    assert_answers(model.answer(theirs.paths, TEXTS), [names[i] for i in best.indices.tolist()], best.values)
    label = names[1]
    chosen = model.answer(theirs.paths, TEXTS, candidates=[label])
    column = max(i for i, name in names.items() if name == label)
    assert_answers(chosen, [label] * len(TEXTS), logits.sigmoid()[:, column])


def assert_answers(found: list[diptych.Prediction], texts: list[str], probabilities: Tensor) -> None:
    assert [one.text for one in found] == texts
    assert [one.probability for one in found] == pytest.approx(probabilities.tolist(), abs=1e-4)


def vilt_nlvr2(model: diptych.VLM, theirs: Theirs) -> None:
    """Each picture beside its mirror image, as transformers takes only pairs of one size."""
    module: Any = model.loaded.module
    for i, path in enumerate(theirs.paths):
        pair = [Pillow.open(path), ImageOps.mirror(Pillow.open(path))]
        pixels = theirs.processor(pair, return_tensors="pt")["pixel_values"][None]
        logits = theirs.model(**theirs.text(slice(i, i + 1)), pixel_values=pixels).logits
        text = module.model.encode_text(model.tokenizer.encode([TEXTS[i]]))
        images = [
            module.model.encode_image(model.image_processor(one)).with_image_index(n) for n, one in enumerate(pair)
        ]
        assert_close(module.logits(tuple(module.model.fuse(text, image) for image in images)), logits)


def vilt_retrieval(model: diptych.VLM, theirs: Theirs) -> None:
    logits = torch.cat([theirs.model(**pair).logits[:, 0] for pair in theirs.pairs()])
    assert_close(model.score(theirs.paths, TEXTS, method="itm"), logits.view(len(TEXTS), -1))


def blip_caption(model: diptych.VLM, theirs: Theirs) -> None:
    for beams in (1, 3):
        ids = theirs.model.generate(**theirs.pixels(), num_beams=beams, do_sample=False, max_length=9)
        texts = [model.tokenizer.decode(row[1:]) for row in ids.tolist()]
        assert model.caption(theirs.paths, num_beams=beams, max_length=9) == texts
        assert any(texts)


def blip_vqa(model: diptych.VLM, theirs: Theirs) -> None:
    for i, path in enumerate(theirs.paths):
        one = slice(i, i + 1)
        inputs = theirs.pixels(one) | theirs.text(one, first=ENC)
        ids = theirs.model.generate(**inputs, num_beams=3, do_sample=False, max_length=10)
        (answer,) = model.answer(path, TEXTS[i])
        assert answer.text == model.tokenizer.decode(ids[0, 1:].tolist())
        question = theirs.model.text_encoder(
            inputs["input_ids"],
            inputs["attention_mask"],
            encoder_hidden_states=theirs.model.vision_model(inputs["pixel_values"]).last_hidden_state,
        )[0]
        logits = theirs.model.text_decoder(ids, encoder_hidden_states=question).logits[:, :-1]
        steps = logits.log_softmax(-1).gather(2, ids[:, 1:, None])
        assert answer.probability == pytest.approx(steps.sum().exp().item(), rel=1e-3)


def blip_retrieval(model: diptych.VLM, theirs: Theirs) -> None:
    cosines = theirs.model(**theirs.pixels(), **theirs.text(), use_itm_head=False).itm_score
    assert_close(model.score(theirs.paths, TEXTS, method="itc"), cosines)
    assert_close(model.embed_images(theirs.paths) @ model.embed_texts(TEXTS).T, cosines)
    logits = torch.cat([theirs.model(**pair).itm_score for pair in theirs.pairs(first=ENC)])
    matched = model.score(theirs.paths, TEXTS, method="itm")
    assert_close(matched, logits.softmax(1)[:, 1].view(len(TEXTS), -1))
    ranked = logits[:, 1] - logits[:, 0] + cosines.flatten()  # the official sum: there is no temperature
    assert_close(model.score(theirs.paths, TEXTS, method="both"), ranked.view(len(TEXTS), -1))


CHECKS: dict[str, Callable[[diptych.VLM, Theirs], None]] = {
    "ViTForImageClassification": vit_classifier,
    "ViTModel": vit,
    "CLIPModel": clip,
    "ViltModel": vilt,
    "ViltForMaskedLM": vilt_mlm,
    "ViltForQuestionAnswering": vilt_vqa,
    "ViltForImagesAndTextClassification": vilt_nlvr2,
    "ViltForImageAndTextRetrieval": vilt_retrieval,
    "BlipForConditionalGeneration": blip_caption,
    "BlipForQuestionAnswering": blip_vqa,
    "BlipForImageTextRetrieval": blip_retrieval,
}


@torch.no_grad()
def checked(kind: str, seed: int, folder: Path) -> None:
    """Checks one random model: loaded as saved by transformers, and again as saved by `VLM.save`."""
    theirs = Theirs(kind, seed, folder)
    files = sorted(theirs.folder.iterdir())
    model = diptych.load(theirs.folder, device="cpu")
    CHECKS[kind](model, theirs)
    assert sorted(theirs.folder.iterdir()) == files  # nothing is written
    CHECKS[kind](diptych.load(model.save(folder / "run"), device="cpu"), theirs)


def test_every_supported_class_is_checked():
    assert CHECKS.keys() == CLASSES.keys()


@pytest.mark.quick("ViTFor*", "ViltForQ*")
@pytest.mark.parametrize("kind", CLASSES)
def test_a_folder_of_each_class_computes_what_transformers_computes(kind: str, tmp_path: Path):
    checked(kind, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_random_folders_of_each_class_compute_what_transformers_computes(kind: str, tmp_path: Path):
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        checked(kind, seed, tmp_path / str(seed))
