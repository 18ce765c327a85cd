"""The first training step of every recipe, with its objectives, teacher and heads, at toy size."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.batch import Batch, Image, ImageKeys, Matching, Regions, Text
from diptych.config.data import CLIP_MEAN, CLIP_STD, HALF, Embedders
from diptych.config.objectives import (
    ITC,
    ITM,
    LM,
    HardNegatives,
    MaskedCodes,
    MaskedCodesImageOnly,
    MaskedRegions,
    Objectives,
)
from diptych.config.run import Pretrain, Teacher
from diptych.encoders.efficientnet import FrozenCNN, TeacherFeatures
from diptych.inference.embedders import reads_regions
from diptych.inference.saved_model import RunError
from diptych.models.configs import (
    BEiT3Config,
    BLIPConfig,
    SCANConfig,
    VisualBERTConfig,
    VisualTokenizerConfig,
    VSEppConfig,
)
from diptych.objectives.definition import any_needs, definitions
from diptych.protocols import student_of
from diptych.runs import build as building
from diptych.runs.recipes import recipe, recipes
from diptych.training.checkpoint import save_weights
from tests.runs.tiny_runs import write_model

VOCABULARY, FEATURE_DIM, REGION_CLASSES = (
    114,
    8,
    5,
)  # the vocabulary of the built-in scenes; features and classes of a region
CODES = 7
TOY: dict[str, Any] = {
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 32,
    "image_dim": 24,
    "image_depth": 1,
    "image_num_heads": 2,
    "image_mlp_dim": 32,
    "text_dim": 16,
    "text_depth": 1,
    "text_num_heads": 2,
    "text_mlp_dim": 32,
    "fusion_depth": 1,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "decoder_mlp_dim": 32,
    "coattention_dim": 16,
    "coattention_num_heads": 2,
    "schedule": ((1, 0),),
    "embed_dim": 8,
    "num_queries": 3,
    "pool_num_heads": 2,
    "patch_size": 16,
    "grid": (2, 2),
    "text_length": 24,
    "word_dim": 8,
    "feature_dim": FEATURE_DIM,
    "num_region_targets": REGION_CLASSES,
    "vocab_size": VOCABULARY,
}
B = 4


def toy(run: Pretrain) -> Pretrain:
    """The same run at toy size; frozen features are in the batch, so that no frozen network is needed."""
    model = run.model
    size = {field.name: TOY[field.name] for field in fields(model) if field.name in TOY}
    if isinstance(model, BLIPConfig):
        size |= {"vocab_size": VOCABULARY + 2, "bos_token_id": VOCABULARY, "enc_token_id": VOCABULARY + 1}
    if isinstance(model, BEiT3Config):
        size |= {"mask_token_id": 4}
    if isinstance(model, VisualTokenizerConfig):
        size |= {"num_codes": CODES, "code_dim": 4, "feature_dim": FrozenCNN.width}
    if not getattr(model, "decoder_depth", 1):  # an ALBEF without an answer decoder
        size["decoder_depth"] = 0
    if hasattr(model, "vl_start_layer"):
        size["vl_start_layer"] = 2 if model.vl_start_layer >= model.depth else 1  # type: ignore[union-attr]
    embed = Embedders("own" if run.embedders.image == "own" else "there", feature_dim=FEATURE_DIM)
    teacher = replace(run.teacher, queue_size=min(run.teacher.queue_size, 8))
    objectives = with_codes(run.objectives, CODES)
    return replace(run, model=replace(model, **size), embedders=embed, teacher=teacher, objectives=objectives)


def with_codes(objectives: Objectives, codebook_size: int) -> Objectives:
    """The objectives, those of visual tokens with a codebook of another size."""
    changed = {
        name: replace(settings, codebook_size=codebook_size)
        for name, settings in objectives.present().items()
        if hasattr(settings, "codebook_size")
    }
    return replace(objectives, **changed)


def batch(run: Pretrain) -> Batch:
    draw = torch.Generator().manual_seed(0)
    ids = torch.cat(
        [torch.full((B, 1), 2), torch.randint(10, VOCABULARY, (B, 6), generator=draw), torch.full((B, 1), 3)], 1
    )
    text = Text(ids, torch.ones_like(ids, dtype=torch.bool))
    image = Image.from_full(torch.randn(B, 3, 32, 32, generator=draw))
    labels = {"image": torch.arange(B)}
    inputs = Batch(
        0, 0, torch.arange(B), text=text if any_needs(run.objectives, lambda needs: needs.text) else None, labels=labels
    )
    if not any_needs(run.objectives, lambda needs: needs.image):
        return inputs
    matched = torch.tensor([True, False, True, False])
    if not reads_regions(run):
        return replace(inputs, image=image, matching=Matching(image, matched))
    boxes, real = torch.rand(B, 3, 5, generator=draw), torch.ones(B, 3, dtype=torch.bool)
    classes = torch.full((B, 3, REGION_CLASSES), 1 / REGION_CLASSES)
    regions = Regions(torch.randn(B, 3, FEATURE_DIM, generator=draw), boxes, real, classes)
    regions = (
        regions if isinstance(run.model, SCANConfig | VisualBERTConfig | VSEppConfig) else regions.with_whole_image()
    )
    return replace(inputs, regions=regions, matching=Matching(regions, matched))


class FakeCNN(FrozenCNN):
    """Replaces the CNN, which is an optional dependency."""

    stride = 16

    def __init__(self) -> None:
        pass

    def __call__(self, image: Image, keys: ImageKeys | None = None) -> TeacherFeatures:
        rows, columns = (side // self.stride for side in image.pixels.shape[-2:])
        draw = torch.Generator().manual_seed(1)
        return TeacherFeatures(
            torch.randn(B, rows, columns, self.width, generator=draw), torch.randn(B, self.num_classes, generator=draw)
        )


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run folder of a visual tokenizer all of whose codes are in use."""
    monkeypatch.setattr(building, "frozen_cnn", FakeCNN)
    run = toy(recipe("beit3.small_visual_tokenizer"))
    module = building.build(run)
    module.get_buffer("model.codebook.idle").zero_()
    return str(write_model(tmp_path, run, module))


@pytest.mark.quick("*.small", "*.tiny")
@pytest.mark.parametrize("name", recipes())
def test_every_recipe_takes_its_first_step(name: str, tokenizer: str):
    run = replace(toy(recipe(name)), visual_tokenizer=tokenizer)
    module = building.with_teacher(building.build(run), run).train()
    losses = module(batch(run))
    assert module.weights.keys() <= losses.keys()
    total = torch.stack([weight * losses[loss] for loss, weight in module.weights.items()]).sum()
    assert total.isfinite() and total > 0
    total.backward()
    learning = [p for p in student_of(module).parameters() if p.requires_grad]
    assert sum(p.grad is not None and bool(p.grad.any()) for p in learning) > len(learning) / 2
    assert all(p.grad is None for p in module.parameters() if not p.requires_grad)


def test_the_visual_tokenizer_gets_pixels_normalised_as_in_its_training(tokenizer: str):
    run = replace(toy(recipe("beit3.small_masked_data")), visual_tokenizer=tokenizer)
    frozen = building.frozen_tokenizer(replace(run, images=replace(run.images, mean=CLIP_MEAN, std=CLIP_STD)))
    assert (frozen.input_norm, frozen.trained_norm) == ((CLIP_MEAN, CLIP_STD), (HALF, HALF))


def test_a_run_on_codes_names_a_visual_tokenizer_with_that_many_codes(tokenizer: str):
    run = replace(toy(recipe("beit3.small_masked_data")), visual_tokenizer=tokenizer)
    with pytest.raises(RunError, match="name the run that trained one"):
        building.build(replace(run, visual_tokenizer=""))
    with pytest.raises(RunError, match="has 7 codes"):
        building.build(replace(run, objectives=with_codes(run.objectives, 9)))


def test_a_collapsed_visual_tokenizer_raises(tokenizer: str):
    module = building.build(toy(recipe("beit3.small_visual_tokenizer")))
    idle = module.get_buffer("model.codebook.idle").zero_()
    idle[1:] = 10
    save_weights(Path(tokenizer), module)
    with pytest.raises(RunError, match="codebook has collapsed"):
        building.build(replace(toy(recipe("beit3.small_masked_data")), visual_tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("name", "objectives", "message"),
    [
        ("clip.small", Objectives(itm=ITM()), "a CLIP cannot be trained with itm: it has no fusion of text and image"),
        (
            "vilt.tiny",
            Objectives(itc=ITC()),
            "a ViLT cannot be trained with itc: it has no separate image and text features",
        ),
        ("visualbert.small", Objectives(masked_regions=MaskedRegions()), "no head 'regions'"),
        (
            "vlmo.small",
            Objectives(itm=ITM(negatives=HardNegatives())),
            "hard negatives of itm are sampled by itc similarity",
        ),
        ("scan.small", Objectives(lm=LM()), r"it has no autoregressive text decoder \(blip, coca have one\)"),
        (
            "vilt.tiny",
            Objectives(masked_codes_image_only=MaskedCodesImageOnly()),
            "a ViLT cannot be trained with masked_codes_image_only: it has no encoder of masked images",
        ),
        (
            "vlmo.base",
            Objectives(masked_codes_image_only=MaskedCodesImageOnly()),
            "this VLMo has no mask token for masked patches: set model.with_mask_token True",
        ),
        ("vlmo.tiny", Objectives(masked_codes=MaskedCodes()), "this VLMo has no mask token"),
        (
            "beit3.small",
            Objectives(masked_codes_image_only=MaskedCodesImageOnly()),
            'this BEiT3 has frozen image features: set embedders.image to "own"',
        ),
    ],
)
def test_objectives_that_a_model_lacks_are_a_one_line_error(name: str, objectives: Objectives, message: str):
    with pytest.raises(RunError, match=message) as error:
        building.build(replace(toy(recipe(name)), objectives=objectives))
    assert "\n" not in str(error.value)


def test_regions_are_not_blended():
    with pytest.raises(RunError, match="mixgen blends pixels, and this CLIP reads region features; set mixgen to 0"):
        building.build(replace(toy(recipe("clip.small")), mixgen=0.25))


def variants() -> list[Any]:
    """Every recipe, BLIP's in each of its variants, and an ALBEF with two images and an answer decoder."""
    params = [pytest.param(name, {}, id=name) for name in recipes()]
    params += [
        pytest.param("blip.pretrain_14m", {"variant": variant}, id=f"blip {variant}")
        for variant in ("retrieval", "caption", "vqa", "nlvr2")
    ]
    return [*params, pytest.param("albef.pretrain_4m", {"num_images": 2, "decoder_depth": 1}, id="albef two images")]


@pytest.mark.quick("vilt.tiny", "blip *")
@pytest.mark.parametrize(("name", "others"), variants())
@pytest.mark.slow
def test_every_loss_takes_a_step_or_raises_when_the_run_is_built(name: str, others: dict, tokenizer: str):
    run = toy(recipe(name))
    run = replace(run, model=replace(run.model, **others), visual_tokenizer=tokenizer, heads=("*",), teacher=Teacher())
    taken = 0
    for loss, definition in definitions().items():
        one_loss = replace(run, objectives=with_codes(Objectives(**{loss: definition.settings()}), CODES))
        try:
            module = building.build(one_loss).train()
        except RunError as error:
            assert f"set objectives.{loss} to none" in str(error) or 'set embedders.image to "own"' in str(error)
            continue
        module(batch(one_loss))[loss].backward()
        taken += 1
    assert taken


@pytest.mark.parametrize("variant", ["retrieval", "nlvr2"])
def test_captioning_without_a_decoder_names_the_variant_to_set(variant: str):
    run = toy(recipe("blip.pretrain_14m"))
    setting = "set model.variant to 'pretraining' or 'caption', or set objectives.lm to none"
    message = f"no text decoder .variant '{variant}'.: {setting}"
    with pytest.raises(RunError, match=message):
        building.build(replace(run, model=replace(run.model, variant=variant), objectives=Objectives(lm=LM())))


def test_frozen_parameters_require_no_gradient():
    run = replace(toy(recipe("vlmo.small_text")), freeze=("transformer.blocks.*.norm",))
    model = building.build(run).get_submodule("model")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"transformer.blocks.{i}.norm.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    with pytest.raises(
        RunError, match=r"no part of the VLMo is called 'nothing'; its parts are .*transformer.*--heads"
    ):
        building.build(replace(run, freeze=("nothing",)))
