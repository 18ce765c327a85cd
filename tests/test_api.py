"""The Python API on tiny untrained models: inputs, results, errors, saving, and training from Python."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import diptych
from diptych.batch import Image, Text
from diptych.config.data import Embedders
from diptych.config.run import Finetune
from diptych.config.tasks import Captioning, NoOptions, VQAOptions
from diptych.config.tasks import Retrieval as RetrievalEvaluation
from diptych.data.loader import SkipCounter
from diptych.data.sources.base import BadSample, DataError
from diptych.inference.saved_model import RunError
from diptych.runs import build as building
from diptych.runs import finetune
from diptych.runs.recipes import recipe
from diptych.runs.run_folder import read_run
from diptych.tasks.captioning import caption_gallery
from diptych.tasks.definition import Labels
from diptych.tasks.gallery import open_gallery, readable_gallery
from diptych.tasks.operations import OPERATIONS
from diptych.tasks.pair_scores import SCORES, dual_encoder_scorer
from diptych.tasks.retrieval import score_by_similarity
from diptych.tasks.retrieval_metrics import Folds
from tests.models.test_first_step import toy
from tests.runs.tiny_runs import write_model

ANSWERS = ["yes", "no", "a café"]
TEXTS = ["a red square", "two blue circles", "naïve 北京 🎉", "", "one green triangle left of a red circle"]
TRAINING: dict[str, Any] = {
    "batch_size": 4, "workers": 0, "device": "cpu", "precision": "fp32", "log_every": 1,
    "model.dim": 16, "model.depth": 1, "model.num_heads": 2, "model.mlp_dim": 32, "model.text_length": 24,
}  # fmt: skip
"""Settings of a tiny run of vilt.tiny."""


def saved_run(name: str, folder: Path, **model: Any) -> Path:
    """The folder of an untrained run of a recipe, at toy size, on images of 32 x 32 pixels."""
    run = toy(recipe(name))
    images = replace(run.images, shorter_side=32, patch_size=16, square=True, augment=False, crop=0)
    run = replace(run, images=images, data="scenes:8", model=replace(run.model, **model))
    return write_model(folder, run, amplified(building.build(run)))


def amplified(module: torch.nn.Module) -> torch.nn.Module:
    """The module with weights so large that outputs differ between inputs."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return module


def answering_run(folder: Path, model: Any, answers: list[str]) -> Path:
    like = toy(recipe("vilt.base"))
    images = replace(like.images, shorter_side=32, patch_size=16, square=True, augment=False)
    run = Finetune(
        task="vqa", options=VQAOptions(), model=model, images=images, training=like.training, data="scenes:8"
    )
    return write_model(folder, run, amplified(finetune.build(run, Labels(tuple(answers)))), answers)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> diptych.VLM:
    """A model that embeds, matches and captions."""
    return diptych.load(saved_run("blip.pretrain_14m", tmp_path_factory.mktemp("blip")), device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{name}.png" for name in ("a", "b 10", "naïve 🎉")]
    for path in paths:
        Pillow.fromarray(draw.integers(0, 256, (draw.integers(20, 60), 40, 3), np.uint8)).save(path)
    return paths


def sample_pictures() -> list[Pillow.Image]:
    draw = np.random.default_rng(1)
    return [Pillow.fromarray(draw.integers(0, 256, (40, 30, 3), np.uint8)) for _ in range(10)]


@pytest.mark.slow
def test_the_package_is_imported_fast_and_without_torch():
    """Names are listed, and recipes too, without torch; what needs it imports it with its first use."""
    code = """
import sys, time
start = time.perf_counter()
import diptych
assert time.perf_counter() - start < 0.1
assert set(diptych.__all__) <= set(dir(diptych))
assert "vilt.base" in diptych.list_models("vilt.*") and diptych.VQA().task == "vqa"
assert "torch" not in sys.modules
assert all(getattr(diptych, name) is not None for name in diptych.__all__) and "torch" in sys.modules
try:
    diptych.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch(blip: diptych.VLM, photos: list[Path]):
    images, texts = blip.embed_images(photos, batch_size=2), blip.embed_texts(TEXTS, batch_size=2)
    assert images.shape == (3, 8) and texts.shape == (5, 8) and images.dtype == torch.float32
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(images, torch.cat([blip.embed_images(path) for path in photos]))
    torch.testing.assert_close(texts, torch.cat([blip.embed_texts(text) for text in TEXTS]))
    torch.testing.assert_close(blip.score(photos, TEXTS), images @ texts.T)
    assert images.std(0).max() > 1e-3 and texts.std(0).max() > 1e-3


def test_images_are_given_in_any_form(blip: diptych.VLM, photos: list[Path]):
    expected = blip.embed_images(photos)
    arrays = [np.asarray(Pillow.open(path)) for path in photos]
    for images in (
        photos[0].parent,
        str(photos[0].parent / "*.png"),
        [str(path) for path in photos],
        tuple(Pillow.open(path) for path in photos),
        arrays,
        [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays],
    ):
        torch.testing.assert_close(blip.embed_images(images), expected)
    for mode in ("L", "CMYK", "RGBA", "P", "1"):
        assert blip.embed_images(Pillow.open(photos[0]).convert(mode)).shape == (1, 8)
    assert blip.embed_images(np.zeros((1, 2000, 3), np.uint8)).isfinite().all()


def test_nothing_in_gives_nothing_out(blip: diptych.VLM, photos: list[Path]):
    assert blip.embed_images([]).shape == (0, 8) and blip.embed_texts([]).shape == (0, 8)
    assert blip.score([], ["a"]).shape == (0, 1) and blip.score(photos, []).shape == (3, 0)
    assert blip.caption([]) == []
    with pytest.raises(ValueError, match="at least one image or text"):
        blip.features([], [])


def test_a_broken_image_is_named(blip: diptych.VLM, photos: list[Path], tmp_path: Path):
    (tmp_path / "broken.jpg").write_bytes(photos[0].read_bytes()[:100])
    for call in (blip.embed_images, blip.caption, blip.features):
        with pytest.raises(BadSample, match=r"broken\.jpg: "):
            call([*photos, tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match="nowhere: no such file"):
        blip.embed_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"images\[1\]: expected a uint8 array"):
        blip.embed_images([photos[0], np.zeros((3, 4, 4))])
    with pytest.raises(ValueError, match="batch_size must be at least 1: got 0"):
        blip.embed_images(photos, batch_size=0)


@pytest.fixture(scope="module")
def calls(blip: diptych.VLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A call of every method that takes images: of images and further arguments."""
    folder = tmp_path_factory.mktemp("tasks")
    vqa = diptych.load(answering_run(folder / "vqa", toy(recipe("vilt.base")).model, ANSWERS), device="cpu")
    vit = toy(recipe("vit.distilled"))
    classifier = replace(vit.model, num_classes=3)
    run = Finetune(
        task="classification",
        options=NoOptions(),
        model=classifier,
        images=vit.images,
        training=vit.training,
        data="scenes:8",
    )
    labels = ("a", "b", "c")
    write_model(folder / "vit", run, amplified(finetune.build(run, Labels(labels))), labels)
    vit = diptych.load(folder / "vit", device="cpu")
    return {
        "embed_images": lambda images, **more: blip.embed_images(images, batch_size=2, **more),
        "features": lambda images, **more: blip.features(images, "a red square", **more).pooled,
        "score": lambda images, **more: blip.score(images, TEXTS, "both", **more),
        "scorer": lambda images, **more: blip.scorer(TEXTS, ["itm"])(images, **more)["itm"],
        "caption": lambda images, **more: blip.caption(images, max_length=9, **more),
        "answer": lambda images, **more: vqa.answer(images, "is it red?", **more),
        "classify": lambda images, **more: vit.classify(images, top_k=2, **more),
        "predict": lambda images, **more: vit.predict(images, **more),
    }


def texts_of(result: Any) -> list[str]:
    """The texts of a caption, an answer or the classes of an image."""
    if isinstance(result, dict):
        return [result["class"]]
    return (
        [result] if isinstance(result, str) else [result.text] if hasattr(result, "text") else [c.text for c in result]
    )


def test_every_method_goes_on_without_images_that_cannot_be_read(
    calls: dict[str, Any], photos: list[Path], tmp_path: Path
):
    public = {name: value for name, value in vars(diptych.VLM).items() if not name.startswith("_")}
    methods = {name for name, value in public.items() if "images" in getattr(value, "__annotations__", {})}
    assert calls.keys() == methods | {"scorer"}
    for i, path in enumerate(photos):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes())
    (tmp_path / "1 broken.png").write_bytes(photos[0].read_bytes()[:100])
    (tmp_path / "0 notes.txt").write_text("no photograph")
    paths = diptych.list_images(tmp_path)
    assert [Path(path).name for path in paths] == ["0 notes.txt", "0.png", "1 broken.png", "1.png", "2.png"]
    readable = [1, 3, 4]
    for name, call in calls.items():
        with pytest.raises(BadSample, match=r"notes.txt: .*; to go on without it, pass on_error, as on_error=print"):
            call(tmp_path)
        errors: list[diptych.Skipped] = []
        results, expected = call(tmp_path, on_error=errors.append), call([paths[i] for i in readable])
        assert [(one.id, one.where) for one in errors] == [(0, paths[0]), (2, paths[2])], name
        assert "not a readable image" in errors[0].why and len(results) == 5
        if isinstance(results, torch.Tensor):
            torch.testing.assert_close(results[readable], expected)
            assert results[[0, 2]].isnan().all() and not results[readable].isnan().any()
        else:
            assert results[0] is results[2] is None
            assert [texts_of(results[i]) for i in readable] == [texts_of(one) for one in expected]
        errors.clear()
        if name == "features":
            with pytest.raises(DataError, match="none of 2 images can be read"):
                call([paths[0], paths[2]], on_error=errors.append)
        else:
            nothing = call([paths[0], paths[2]], on_error=errors.append)
            assert nothing == [None, None] if isinstance(nothing, list) else nothing.isnan().all()
            assert len(nothing) == 2 and (isinstance(nothing, list) or nothing.shape[1:] == expected.shape[1:])
        assert [one.id for one in errors] == [0, 1]


def test_an_image_that_is_paired_with_several_texts_is_reported_once(
    blip: diptych.VLM, calls: dict[str, Any], photos: list[Path], tmp_path: Path
):
    (tmp_path / "broken.png").write_bytes(photos[0].read_bytes()[:100])
    errors: list[diptych.Skipped] = []
    features = blip.features([photos[0], tmp_path / "broken.png"], TEXTS[:2], on_error=errors.append)
    assert [one.where for one in errors] == [str(tmp_path / "broken.png")]
    for states in (features.image, features.text, features.fused_text):
        assert states is not None and states.mask.any(1).tolist() == [True, False] and not states.values[1].any()
    with pytest.raises(BadSample, match=r"broken\.png: [^;]*$"):  # the only image: there is nothing to go on with
        blip.features(tmp_path / "broken.png", TEXTS)
    errors.clear()
    with pytest.raises(DataError, match="none of"):
        blip.features(tmp_path / "broken.png", TEXTS * 20, on_error=errors.append)  # of several batches
    assert len(errors) == 1


def test_texts_are_of_any_length_but_valid_unicode(blip: diptych.VLM):
    with pytest.raises(ValueError, match=r"texts\[0\]: not valid Unicode"):
        blip.embed_texts("\ud800")
    assert blip.embed_texts("word " * 10_000).isfinite().all()
    with pytest.raises(ValueError, match="not valid Unicode"):
        blip.caption([], "\ud800")
    with pytest.raises(ValueError, match="batch_size must be at least 1: got -1"):
        blip.embed_texts(["a", "b"], batch_size=-1)


def test_scores_are_those_that_evaluation_ranks_by(blip: diptych.VLM):
    config = RetrievalEvaluation(
        data="scenes:8", split="train", gallery=4, captions=1, rerank=100, workers=0, device="cpu"
    )
    gallery = readable_gallery(open_gallery(config, 32), counter := SkipCounter(0.0))
    scorer = dual_encoder_scorer(blip.loaded)
    assert scorer is not None
    with torch.no_grad():
        ranked = score_by_similarity(blip.loaded, config, scorer, gallery, Folds(gallery.source, 1), counter)
    pictures = [gallery.source.image(i) for i in range(4)]
    torch.testing.assert_close(blip.score(pictures, gallery.texts, "both"), ranked.scores.image_to_text)
    assert ranked.before_reranking is not None
    torch.testing.assert_close(blip.score(pictures, gallery.texts), ranked.before_reranking)
    matched = blip.score(pictures, gallery.texts, "itm")
    log_odds = ranked.scores.image_to_text - scorer.scale * ranked.before_reranking
    torch.testing.assert_close(matched, log_odds.sigmoid(), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="method must be one of itc, itm, both: got 'itn'; did you mean itm"):
        blip.score(pictures, "a", "itn")


def test_captions_are_those_that_evaluation_scores(blip: diptych.VLM):
    config = Captioning(data="scenes:8", split="train", gallery=4, max_length=9, workers=0, device="cpu")
    gallery = readable_gallery(open_gallery(config, 32), counter := SkipCounter(0.0))
    pictures = [gallery.source.image(i) for i in range(4)]
    with torch.no_grad():
        captions = caption_gallery(blip.loaded, config, gallery, counter)[1]
    assert blip.caption(pictures, max_length=9) == captions and any(captions)
    assert [blip.caption(picture, max_length=9)[0] for picture in pictures] == captions


def test_captions_are_several_sampled_or_prompted(blip: diptych.VLM, photos: list[Path]):
    several = blip.caption(photos, num_captions=3, max_length=9)
    assert [texts[0] for texts in several] == blip.caption(photos, max_length=9)
    assert all(len(texts) == 3 and len(set(texts)) > 1 for texts in several)
    sampled = blip.caption(photos, top_p=0.9, num_captions=2, max_length=9, seed=1)
    assert sampled == blip.caption(photos, top_p=0.9, num_captions=2, max_length=9, seed=1)
    assert sampled != blip.caption(photos, top_p=0.9, num_captions=2, max_length=9, seed=2)
    seeded = blip.caption(photos, top_p=0.9, max_length=9, seed=[3, 4, 5])
    assert seeded[::-1] == blip.caption(photos[::-1], top_p=0.9, max_length=9, seed=[5, 4, 3])
    with pytest.raises(ValueError, match="got 3 images and 2 seeds"):
        blip.caption(photos, top_p=0.9, seed=[3, 4])
    greedy = blip.caption(photos, num_beams=1, max_length=9)
    assert blip.caption(photos, top_p=1e-9, max_length=9) == greedy != blip.caption(photos, top_p=1.0, max_length=9)
    prompted = blip.caption(photos, "a red", num_beams=1, max_length=9)
    assert len(prompted) == 3 and not any("a red" in caption for caption in prompted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_captions": 4}, "beam search finds num_beams = 3 captions, fewer than num_captions = 4"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], or None"),
        ({"num_beams": 0}, "num_beams must be at least 1: got 0"),
        ({"prompt": "a red circle", "max_length": 4}, r"the prompt of 4 tokens .* fills max_length 4"),
    ],
)
def test_options_of_captions_out_of_range_are_refused(
    options: Any, message: str, blip: diptych.VLM, photos: list[Path]
):
    with pytest.raises(ValueError, match=message):
        blip.caption(photos, **options)


def test_features_name_their_tokens_and_are_paired(blip: diptych.VLM, photos: list[Path]):
    features = blip.features(photos, TEXTS[:3])
    assert features.image is not None and features.fused_text is not None and features.text is not None
    assert features.image.spans == {"cls": (0, 1), "patches": (1, 5)} and features.image["patches"].shape == (3, 4, 24)
    assert list(features.text.spans) == ["cls", "words"] and features.text.mask.any(1).all()
    assert not features.text.values[~features.text.mask].any()
    assert features.pooled is not None and features.pooled.shape == (3, 16)
    one = blip.features(photos[1], TEXTS[1])
    assert one.fused_text is not None
    torch.testing.assert_close(one.fused_text.values[0], features.fused_text.values[1][: one.fused_text.mask.shape[1]])
    many = blip.features(photos[1], TEXTS)
    assert many.pooled is not None and many.pooled.shape == (5, 16) and many.image is not None
    torch.testing.assert_close(many.image.values[0], features.image.values[1])
    assert blip.features(photos).text is None and blip.features(texts=TEXTS).image is None
    with pytest.raises(ValueError, match="as many texts as images, or one of either: got 3 images and 2 texts"):
        blip.features(photos, TEXTS[:2])
    with pytest.raises(KeyError, match="no tokens called 'regions'; there are cls, patches"):
        features.image["regions"]


def test_images_of_different_sizes_are_padded(tmp_path: Path):
    run = toy(recipe("vilt.base"))
    run = replace(run, images=replace(run.images, shorter_side=32, patch_size=16, augment=False))
    model = diptych.load(write_model(tmp_path / "run", run, building.build(run)), device="cpu")
    pictures = [Pillow.new("RGB", (32, 32), "red")] * 33 + [Pillow.new("RGB", (48, 32), "blue")]
    states = model.features(pictures, "a red square").image
    assert states is not None and states.mask.sum(1).tolist() == [5] * 33 + [7]


def test_a_classifier_of_answers_chooses_among_its_own(tmp_path: Path, photos: list[Path]):
    model = diptych.load(answering_run(tmp_path / "vqa", toy(recipe("vilt.base")).model, ANSWERS), device="cpu")
    questions = ["is it red?", "how many?", "where?"]
    answers = model.answer(photos, questions)
    assert all(one.text in ANSWERS and 0 < one.probability < 1 for one in answers)
    each = [model.answer(photos[0], questions[0], candidates=[answer])[0] for answer in ANSWERS]
    assert max(each, key=lambda one: one.probability).text == answers[0].text
    assert [one.text for one in each] == ANSWERS
    assert len(model.answer(photos, "where?")) == len(model.answer(photos[0], questions)) == 3
    assert model.answer(photos[0], questions)[1] == pytest.approx(model.answer(photos[0], questions[1])[0])
    with pytest.raises(ValueError, match=r"'yess' is none of the model's 3 answers; did you mean yes\?"):
        model.answer(photos[0], "?", candidates=["yess"])
    with pytest.raises(ValueError, match="expected at least one answer"):
        model.answer(photos[0], "?", candidates=[])


@pytest.mark.slow
def test_a_decoder_of_answers_generates_or_ranks(tmp_path: Path, photos: list[Path]):
    config: Any = replace(toy(recipe("blip.pretrain_14m")).model, variant="vqa")
    model = diptych.load(answering_run(tmp_path / "vqa", config, []), device="cpu")
    generated = model.answer(photos, ["is it red?", "how many circles are there in it?", "where?"])
    assert generated[1] == pytest.approx(model.answer(photos[1], "how many circles are there in it?")[0])
    assert all(0 < one.probability <= 1 for one in generated)
    ranked = [model.answer(photos[0], "where?", candidates=["left", "right"])[0] for _ in range(2)]
    assert ranked[0] == ranked[1] and ranked[0].text in ("left", "right") and ranked[0].probability >= 0.5
    again = model.answer(photos[0], "where?", candidates=["left", "right", "right", "RIGHT", "left", "left"])[0]
    assert again == pytest.approx(ranked[0]), "a candidate given twice does not share its probability"
    saved = diptych.load(answering_run(tmp_path / "with answers", config, ["left", "right"]), device="cpu")
    assert saved.answer(photos[0], "where?")[0].text in ("left", "right")


def test_what_a_model_cannot_do_is_said_in_one_sentence(tmp_path: Path, photos: list[Path], blip: diptych.VLM):
    vilt = diptych.load(saved_run("vilt.base", tmp_path / "vilt"), device="cpu")
    able = {name for name in OPERATIONS if vilt.can(name)}
    assert able == {"features", "fuse", "score", "itm", "ground"} and not vilt.can("both")
    assert {name for name in OPERATIONS if not blip.can(name)} == {"answer", "classify", "predict"} and blip.can("both")
    calls: dict[str, Any] = {
        "embed_images": lambda: vilt.embed_images(photos),
        "embed_texts": lambda: vilt.embed_texts("a"),
        "itc": lambda: vilt.score(photos, "a"),
        "caption": lambda: vilt.caption(photos),
        "answer": lambda: vilt.answer(photos, "a"),
        "classify": lambda: vilt.classify(photos),
        "zero_shot": lambda: vilt.classify(photos, labels=["a", "b"]),
        "predict": lambda: vilt.predict(photos),
    }
    assert calls.keys() == OPERATIONS.keys() - able
    public = {name: value for name, value in vars(diptych.VLM).items() if not name.startswith("_")}
    methods = {name for name, value in public.items() if "images" in getattr(value, "__annotations__", {})}
    assert methods <= OPERATIONS.keys(), "can() answers for every method that takes images"
    for name, call in calls.items():
        with pytest.raises(diptych.UnsupportedOperation) as raised:
            call()
        message = str(raised.value)
        assert message.startswith(f"{name}: this ViLT ") and OPERATIONS[name].others in message and "\n" not in message
    with pytest.raises(ValueError, match="operation must be one of embed_images"):
        vilt.can("dance")
    image_only = diptych.load(saved_run("vit.distilled", tmp_path / "vit"), device="cpu")
    assert image_only.embed_images(photos).shape == (3, 16) and not image_only.can("embed_texts")


def test_models_of_a_detector_refuse_pixels_and_name_the_file(tmp_path: Path, photos: list[Path]):
    regions = tmp_path / "regions"
    regions.mkdir()
    for path in photos[:2]:
        boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 20]], np.float32)
        features = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
        np.savez(regions / f"{path.stem}.npz", features=features, boxes=boxes, image_w=40, image_h=40)
    run = toy(recipe("vsepp.flickr30k"))
    run = replace(run, embedders=Embedders(image=str(regions), feature_dim=8))
    model = diptych.load(write_model(tmp_path / "run", run, building.build(run)), device="cpu")
    assert model.embed_images(photos[:2]).shape == (2, 16) and model.score(photos[:2], TEXTS[:2]).shape == (2, 2)
    with pytest.raises(
        diptych.UnsupportedOperation, match=r"images\[0\]: this VSEpp takes no pixels, .*regions by the"
    ):
        model.embed_images([Pillow.open(photos[0])])
    assert model.embed_images([]).shape == (0, 16)
    with pytest.raises(BadSample, match="no regions of this image"):
        model.embed_images(photos[2])


def test_a_saved_model_is_loaded_again_as_it_was(blip: diptych.VLM, photos: list[Path], tmp_path: Path):
    folder = blip.save(tmp_path / "saved")
    again = diptych.load(folder, device="cpu")
    assert again.loaded.saved == blip.loaded.saved
    torch.testing.assert_close(again.embed_images(photos), blip.embed_images(photos), rtol=0, atol=0)
    assert again.caption(photos) == blip.caption(photos)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    for out in (folder, blip.loaded.folder):
        assert out is not None
        with pytest.raises(RunError, match="contains a model: give another folder"):
            blip.save(out)


def test_a_copied_run_without_its_log_is_evaluated_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = saved_run("clip.base", tmp_path / "run")
    (folder / "run.json").unlink(missing_ok=True)
    with pytest.raises(RunError, match=r"has no run\.json that names the data .*: give --data"):
        diptych.evaluate(folder, "retrieval", device="cpu")
    row = {"step": 1, "itc": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    diptych.evaluate(folder, "retrieval", data="scenes:8", split="train", workers=0, device="cpu", gallery=4)
    assert "could not be made" not in capsys.readouterr().err
    assert "a saved model (pretraining)" in (folder / "report.html").read_text(encoding="utf-8")


def test_bf16_is_near_fp32(blip: diptych.VLM, photos: list[Path]):
    half = diptych.VLM(blip.loaded, dtype=torch.bfloat16)
    near = half.embed_images(photos)
    assert not torch.allclose(near, blip.embed_images(photos), atol=1e-5, rtol=0), "computed in bf16"
    assert near.dtype == torch.float32 and (near * blip.embed_images(photos)).sum(1).min() > 0.99
    with pytest.raises(ValueError, match=r"got torch\.float16"):
        diptych.VLM(blip.loaded, dtype=torch.float16)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path):
    expected = r"expected a run folder \(config.json, model.safetensors\) or a Hugging Face folder"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.pth").write_bytes(b"")
    with pytest.raises(RunError, match=f"nowhere: no such folder; {expected}"):
        diptych.load(tmp_path / "nowhere")
    with pytest.raises(RunError, match=rf"file\.pth: a file; {expected}"):
        diptych.load(tmp_path / "file.pth")
    with pytest.raises(RunError, match=f"empty: {expected}.*found nothing; .*diptych import"):
        diptych.load(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "siglip"}')
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        Exception, match="model_type is 'siglip'; expected one of vit, vilt, clip, blip, of the classes"
    ):
        diptych.load(tmp_path / "empty")


def test_create_model_takes_recipes_sizes_and_overrides():
    small = {"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "vocab_size": 114}
    model = diptych.create_model("vilt_base_patch16_64", **small)
    pixels, ids = torch.randn(2, 3, 64, 64), torch.randint(5, 114, (2, 7))
    out: Any = model.eval()(pixels, ids)
    again: Any = model(Image.from_full(pixels), Text(ids, torch.ones_like(ids, dtype=torch.bool)))
    assert out.pooled.shape == (2, 16) and torch.equal(out.pooled, again.pooled)
    assert torch.equal(out.pooled, model(image=pixels, text=ids).pooled)
    assert out.image.mask.shape[1] == 17  # 4 x 4 patches and the class token
    assert "vilt.base" in diptych.list_models() and diptych.list_models("clip.*") == [
        "clip.base",
        "clip.cifar100_probe",
        "clip.small",
    ]
    for name, message in {
        "vilt.bsae": r"no model 'vilt.bsae'; did you mean vilt.base",
        "vilt_base": r"no model 'vilt_base'; did you mean vilt.base",
        "scan_flickr30k_patch16_64": "has no patches",
    }.items():
        with pytest.raises(RunError, match=message):
            diptych.create_model(name)
    with pytest.raises(ValueError, match=r"no setting 'num_head'; did you mean num_heads\?"):
        diptych.create_model("vilt.base", num_head=2)
    with pytest.raises(ValueError, match=r"model\.depth must be in \[1, 512\]: got 0"):
        diptych.create_model("vilt.base", depth=0)
    with pytest.raises(ValueError, match="64, must be a multiple of the patch size, 15"):
        diptych.create_model("vilt_base_patch15_64")


@pytest.mark.slow
def test_pairs_from_python_are_trained_on(tmp_path: Path):
    pictures = sample_pictures()
    pairs = [
        (picture, [f"a {word} square", "a thing"]) for picture, word in zip(pictures, ["red", "blue"] * 5, strict=True)
    ]
    model = diptych.train("vilt.tiny", pairs, tmp_path / "run", steps=2, **TRAINING)
    assert model.can("itm") and model.score(pictures[0], "a red square", "itm").shape == (1, 1)
    again = diptych.train("vilt.tiny", pairs, tmp_path / "run", steps=2, **TRAINING)  # it has finished
    assert again.loaded.saved == model.loaded.saved
    with pytest.raises(RunError, match="was trained on pairs passed from Python"):
        diptych.evaluate(tmp_path / "run")
    metrics = diptych.evaluate(tmp_path / "run", data="scenes:8", split="train", gallery=4, workers=0, device="cpu")
    assert 0 <= metrics["matching accuracy"] <= 1


@pytest.mark.slow
def test_a_path_is_trained_on_and_evaluated(tmp_path: Path):
    model = diptych.train("vilt.tiny", "scenes:20", tmp_path / "run", steps=2, **TRAINING)
    run, facts = read_run(tmp_path / "run")
    assert run.training.steps == 2 and facts["chance_losses"].keys() >= {"itm", "mlm"}
    assert (model.loaded.saved.recipe, model.loaded.saved.heads) == ("vilt.tiny", ("itm", "mlm"))
    evaluation = RetrievalEvaluation(gallery=4, captions=1, workers=0, device="cpu")
    metrics = diptych.evaluate(tmp_path / "run", evaluation, split="train")
    assert metrics["images"] == 4 and metrics == diptych.evaluate(tmp_path / "run", evaluation, split="train")
    more = {name: value for name, value in TRAINING.items() if not name.startswith("model")}
    answering = diptych.train("vqa", "scenes:20", tmp_path / "vqa", steps=1, init_from=str(tmp_path / "run"), **more)
    assert answering.can("answer")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no pairs: expected a sequence"),
        ([("a.jpg", "text", 3)], r"pairs\[0\]: expected \(image, caption\) or \(image, \[captions\]\), got 3 items"),
        ([(np.zeros((4, 4, 3), np.uint8), 3)], r"pairs\[0\]: expected a caption or a list of captions, got 3"),
        ([(np.zeros((4, 4)), "text")], r"pairs\[0\]: the image: expected a uint8 array"),
        ([("nowhere.jpg", "text")], r"pairs\[0\]: nowhere.jpg: no such file"),
    ],
)
def test_what_is_no_pair_is_named(pairs: Any, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        diptych.train("vilt.tiny", pairs, tmp_path / "run", steps=2, **TRAINING)


def test_settings_that_do_not_exist_are_suggested(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no setting 'lr'; did you mean optimizer.learning_rate\?"):
        diptych.train("vilt.tiny", "scenes:8", tmp_path / "run", lr=1e-3)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate must be in"):
        diptych.train("vilt.tiny", "scenes:8", tmp_path / "run", 2, **{"optimizer.learning_rate": -1.0})
    with pytest.raises(ValueError, match=r"no setting 'reranks'; did you mean rerank\?"):
        diptych.evaluate(saved_run("vilt.base", tmp_path / "vilt"), "retrieval", reranks=3)
    with pytest.raises(ValueError, match="rerank is a setting of retrieval, and the task is matching"):
        diptych.evaluate(tmp_path / "vilt", rerank=3)
    with pytest.raises(RunError, match=r"no model 'vilt.tny'; did you mean vilt.tiny"):
        diptych.train("vilt.tny", "scenes:8", tmp_path / "run")
    with pytest.raises(RunError, match="vqa needs init_from"):
        diptych.train("vqa", "scenes:8", tmp_path / "run")


PAGE = Path(__file__).parents[1] / "docs" / "python-api.md"
MARK = "<!-- reference -->\n"


def test_a_scorer_encodes_texts_once_and_images_once_for_all_methods(
    blip: diptych.VLM, photos: list[Path], monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    for name in ("encode_text", "encode_image"):
        encode = getattr(blip.model, name)
        monkeypatch.setattr(blip.model, name, lambda x, name=name, encode=encode: calls.append(name) or encode(x))
    score = blip.scorer(TEXTS, list(SCORES))
    scores = [score(photo) for photo in photos]
    assert calls.count("encode_text") == 1 and calls.count("encode_image") == len(photos)
    for method in SCORES:
        together = torch.cat([one[method] for one in scores])
        torch.testing.assert_close(together, blip.score(photos, TEXTS, method), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("status", "error"), [(130, KeyboardInterrupt), (3, SystemExit)])
def test_training_ended_by_a_signal_raises_keyboard_interrupt(
    status: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def end(*_: Any) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("diptych.api.pretrain", end)
    with pytest.raises(error):
        diptych.train("vilt.tiny", "scenes:20", tmp_path, steps=1)


def test_the_paths_of_a_folder_are_listed_in_the_order_of_its_vectors(tmp_path: Path):
    for name in ("10.jpg", "2.jpg", "b/1.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).touch()
        else:
            Pillow.new("RGB", (8, 8)).save(tmp_path / name)
    names = [Path(path).relative_to(tmp_path).as_posix() for path in diptych.list_images(tmp_path)]
    assert set(names) == {"10.jpg", "2.jpg", "b/1.png", "notes.txt"}
    assert names.index("2.jpg") < names.index("10.jpg")
    with pytest.raises(diptych.DataError, match="nowhere"):
        diptych.list_images(tmp_path / "nowhere")


def reference() -> str:
    """The reference of docs/python-api.md: each public name with its parameters and its docstring."""
    public = {name: getattr(diptych, name) for name in diptych.__all__ if name != "__version__"}
    public |= {f"VLM.{name}": value for name, value in vars(diptych.VLM).items() if not name.startswith("_")}
    order = sorted(public, key=lambda name: (name.startswith("VLM"), name if "." not in name else "VLM"))
    return "\n".join(entry(name, public[name]) for name in order)


def entry(name: str, value: Any) -> str:
    value = getattr(value, "fget", None) or getattr(value, "func", value)
    is_attribute = isinstance(vars(diptych.VLM).get(name.removeprefix("VLM.")), property | cached_property)
    heading = f"### `{name}{parameters(value) if inspect.isfunction(value) and not is_attribute else ''}`"
    return f"{heading}\n\n{as_markdown(inspect.getdoc(value) or '')}\n"


def parameters(function: Any) -> str:
    """The parameters with their defaults, without types."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def as_markdown(docstring: str) -> str:
    """A docstring's paragraphs, its Args as a list."""
    blocks: list[str] = []
    for paragraph in docstring.split("\n\n"):
        if not paragraph.startswith("Args:\n"):
            blocks.append(fill(" ".join(paragraph.split()), 118, break_on_hyphens=False))
            continue
        arguments = re.split(r"\n {4}(?=\w+: )", paragraph.removeprefix("Args:"))[1:]
        items = [re.sub(r"^(\w+): ", r"- `\1`: ", " ".join(argument.split())) for argument in arguments]
        blocks.append("\n".join(fill(item, 118, subsequent_indent="  ", break_on_hyphens=False) for item in items))
    return "\n\n".join(blocks)


def test_the_page_describes_every_public_name_as_its_docstring_does():
    written = PAGE.read_text(encoding="utf-8").partition(MARK)[2]
    assert written == reference(), "run: python -m tests.test_api"
    assert reference().count("### ") == len(diptych.__all__) - 1 + sum(not n.startswith("_") for n in vars(diptych.VLM))
    documented = [name for name in inspect.signature(diptych.VLM.caption).parameters if name not in ("self", "images")]
    assert all(f"- `{name}`: " in reference() for name in documented)


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + reference(), encoding="utf-8")
