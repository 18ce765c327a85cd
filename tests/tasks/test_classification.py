"""Classification by a new linear layer, by prompts, and from an MAE's encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diptych.api import VLM, load
from diptych.batch import Image
from diptych.config.objectives import MIM, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import Classification as Evaluation
from diptych.config.tasks import NoOptions
from diptych.data.sources.labelled import open_labelled
from diptych.inference.saved_model import RunError
from diptych.models.configs import (
    ALBEFConfig,
    BLIPConfig,
    CLIPConfig,
    CLIPResNetConfig,
    MAEConfig,
    Model,
    ViTConfig,
    VLMoConfig,
    image_encoder_of,
)
from diptych.protocols import UnsupportedOperation
from diptych.runs.baselines import baselines
from diptych.runs.finetune import build, inherited, init_from_pretrained
from diptych.runs.recipes import finetuning_recipe, recipe
from diptych.tasks.classification import (
    Classification,
    build_module,
    confusions,
    evaluate,
    with_classifier,
    zero_shot_classifier,
)
from diptych.tasks.definition import Labels, fine_tuning
from tests.runs.tiny_runs import loaded_from, untrained, write_model

CLIP = dict(dim=16, depth=1, num_heads=2, mlp_dim=16, patch_size=8, grid=(4, 4), text_dim=8, text_depth=1)
TOY_CLIP = CLIPConfig(**CLIP, text_num_heads=2, text_mlp_dim=16, vocab_size=30522, text_length=24, embed_dim=8)  # type: ignore[arg-type]
TOY_MAE = MAEConfig(16, 1, 2, 16, 8, (4, 4), 8, 1, 2, 16)
CLASSES = ("cat", "dog", "fire_engine")


def clip_run() -> Pretrain:
    """A CLIP of width 16 for images of 32 pixels."""
    run = recipe("clip.base")
    return replace(run, model=TOY_CLIP, images=replace(run.images, shorter_side=32, patch_size=8), data="scenes:16")


def unit(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.normalize(torch.stack(list(rows)), dim=-1)


def test_zero_shot_is_the_cosine_with_the_mean_of_the_prompts():
    loaded = loaded_from(clip_run(), untrained(clip_run()))
    prompts = ("a photo of a {}.", "the {}")
    vlm = VLM(loaded)
    source = open_labelled("scenes:16", "train")
    images = [source.image(i) for i in range(4)]
    vectors = vlm.embed_images(images)
    texts = [
        unit([vlm.embed_texts(prompt.replace("{}", name.replace("_", " ")))[0] for prompt in prompts]).mean(0)
        for name in CLASSES
    ]
    scale = loaded.heads["itc"].scale().item()  # type: ignore[operator]
    expected = (scale * vectors @ unit(texts).T).softmax(1)
    for row, image in zip(expected, images, strict=True):
        (top,) = vlm.classify(image, labels=CLASSES, prompts=prompts)
        assert [one.text for one in top] == [CLASSES[i] for i in row.argsort(descending=True)]
        assert torch.allclose(torch.tensor([p for _, p in top]), row.sort(descending=True).values, atol=1e-5)
    with pytest.raises(UnsupportedOperation, match="classify: this CLIP has no trained image classifier"):
        vlm.classify(images[0])
    with pytest.raises(RunError, match="two or more different classes, got cat"), torch.no_grad():
        zero_shot_classifier(loaded, ["cat"], prompts)


def test_a_model_without_a_classifier_is_evaluated_zero_shot():
    loaded = loaded_from(clip_run(), untrained(clip_run()))
    with loaded.computing(False):
        result = evaluate(loaded, Evaluation(data="scenes:16", split="train", workers=0))
        two = evaluate(loaded, Evaluation(data="scenes:16", split="train", workers=0, labels="apple, fish, tree"))
    source = open_labelled("scenes:16", "train")
    assert result.metrics["images"] == 16 and result.metrics["chance"] == 1 / len(source.classes)
    assert [row["truth"] for row in result.predictions] == [source.classes[source.label(i)] for i in range(16)]
    assert two.metrics["images"] == sum(source.classes[source.label(i)] in ("apple", "fish", "tree") for i in range(16))
    assert result.resampled is not None and result.resampled.photographs == 16
    assert result.files["confusions.json"] == confusions(result.predictions)
    with pytest.raises(ValueError, match=r"prompts must be texts with \{\}"):
        Evaluation(prompts=("a photo",))


def test_the_most_frequent_confusions_come_first():
    pairs = [("cat", "dog"), ("dog", "cat"), ("cat", "dog"), ("cat", "cat")]
    rows = [{"truth": truth, "class": best, "right": truth == best} for truth, best in pairs]
    assert confusions(rows) == [
        {"truth": "cat", "class": "dog", "images": 2},
        {"truth": "dog", "class": "cat", "images": 1},
    ]


@pytest.mark.parametrize(
    ("model", "dim"),
    [
        (TOY_CLIP, 16),
        (CLIPResNetConfig(2, (1, 1), 2, (4, 4), 8, 1, 2, 8, 40, 8, 8), 16),
        (ALBEFConfig(8, 1, 2, 16, 16, (2, 2), 24, 1, 1, 2, 16, 114, 24, 4), 8),
        (BLIPConfig(image_dim=8, image_depth=1, image_num_heads=2, image_mlp_dim=8, dim=16, depth=1, num_heads=2), 8),
        (VLMoConfig(dim=16, depth=2, num_heads=2, mlp_dim=16, vl_start_layer=1), 16),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_new_head_has_the_width_of_the_pooled_image_features(model: Model, dim: int):
    run = replace(finetuning_recipe("classification", "clip.base"), model=model)
    module = build_module(model.build(), run, Labels(CLASSES), NoOptions())
    assert module.head is not None and module.head.in_features == dim and module.head.out_features == 3
    side = 8 * (getattr(model, "patch_size", 16) // 8) * 4
    image = Image(torch.rand(2, 3, side, side), torch.tensor([[side, side]] * 2))
    assert module.logits(image).shape == (2, 3)


def test_a_vit_starts_from_an_mae_s_encoder(tmp_path: Path):
    before = replace(recipe("mae.small"), model=TOY_MAE, objectives=Objectives(mim=MIM()))
    before = replace(before, images=replace(before.images, shorter_side=32, patch_size=8))
    folder = write_model(tmp_path / "mae", before, untrained(before))
    run = inherited(folder, finetuning_recipe("classification"))
    run = replace(run, model=with_classifier(run.model, Labels(CLASSES)))
    assert run.model == replace(image_encoder_of(TOY_MAE), num_classes=3) and isinstance(run.model, ViTConfig)
    module = build(run, Labels(CLASSES))
    init_from_pretrained(module, folder, run.model, fine_tuning("classification"))
    vit, mae = module.get_submodule("model"), load(folder, device="cpu").loaded.model
    source = open_labelled("scenes:16", "train")
    images = load(folder, device="cpu").image_processor([source.image(0)])
    with torch.no_grad():
        tokens = mae.encode_image(images).select(name="patches").to_padded()
        own = vit.norm(vit.encode_image(images).select(name="patches").to_padded())  # type: ignore[operator]
    assert torch.allclose(tokens, own, atol=1e-6), "the mean is normalised in a ViT that averages"
    assert isinstance(module, Classification) and module.head is None


def test_baselines_are_chance_and_the_most_frequent_class():
    scores = baselines(Evaluation(data="scenes:64", split="train"))
    source = open_labelled("scenes:64", "train")
    labels = [source.label(i) for i in range(64)]
    assert scores["random class"]["accuracy"] == 1 / len(source.classes)
    assert scores["most frequent class of train"]["accuracy"] == max(map(labels.count, labels)) / 64


@pytest.mark.parametrize("name", ["vit.cifar100_b32", "vit.cifar100_l16"])
def test_the_recipes_of_cifar_100_are_maca_s(name: str):
    run = recipe(name, "Finetune")
    optimizer, training, images = run.training.optimizer, run.training, run.images
    expected = {"vit.cifar100_b32": (128, 0.002), "vit.cifar100_l16": (32, 0.004)}[name]
    assert (training.batch_size, optimizer.learning_rate) == expected and training.epochs == 100
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-5)
    assert optimizer.rate_per_epoch and optimizer.final_rate == 0.01 and optimizer.schedule == "cosine"
    assert (images.shorter_side, images.crop, images.random_crop) == (256, 224, 0.08)
    assert images.mean == (0.485, 0.456, 0.406) and run.own_normalization


def tiny(run: Finetune) -> Finetune:
    """The recipe with a ViT of width 16."""
    model = ViTConfig(
        dim=16, depth=1, num_heads=2, mlp_dim=16, patch_size=8, grid=(4, 4), num_classes=5, representation=12
    )
    return replace(run, model=model, images=replace(run.images, shorter_side=40, crop=32, patch_size=8))


def test_maca_s_probe_trains_the_classifier_and_the_layer_before_it_only(tmp_path: Path):
    run = tiny(recipe("vit.cifar100_b32", "Finetune"))
    module = build(run, Labels(CLASSES))
    trained = {name.split(".")[1] for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"head", "representation"}
    model = replace(run.model, num_classes=3)  # type: ignore[type-var]
    before = replace(run, model=model, images=replace(run.images, mean=(0.5,) * 3), recipe="")
    folder = write_model(tmp_path / "in21k", before, build(replace(before, freeze=()), Labels(CLASSES)), CLASSES)
    start = inherited(folder, run, system_recipe=True)
    assert start.images.mean == run.images.mean, "MACA's own normalization, not the checkpoint's"
    assert json.loads((folder / "config.json").read_text())["images"]["mean"] == [0.5] * 3
