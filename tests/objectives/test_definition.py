"""Definitions of objectives: one for each field, what each needs, and a new one added by its settings and one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import diptych.objectives
from diptych.cli.arguments import apply_overrides
from diptych.config.choices import fill
from diptych.config.objectives import (
    ITC,
    ITM,
    MLM,
    BlockMasking,
    HardNegatives,
    MaskedCodes,
    MaskedCodesImageOnly,
    NoImage,
    Objectives,
    RandomNegatives,
    RegionMasking,
    WordRegionMasking,
)
from diptych.config.validation import Weight, settings
from diptych.data.tokenizers.tokenizer import vocabulary
from diptych.inference.saved_model import RunError
from diptych.objectives import definition
from diptych.objectives.definition import Setup, any_needs, definitions, losses_of, losses_that_train, needs_of
from diptych.objectives.masked_codes import add_code_head
from diptych.objectives.pretraining import Objective
from diptych.runs.build import build
from diptych.runs.recipes import recipe
from tests.models.test_first_step import batch, toy

ALL = fill(Objectives())
SETUP = Setup(vocabulary().size, vocabulary().mask)


def test_every_objective_has_a_definition_and_a_loss_of_its_name_and_weight():
    assert [*definitions()] == [field.name for field in fields(Objectives)]
    for name, objective in ALL.present().items():
        heavier = replace(objective, weight=3.0)
        loss, *metrics = definitions()[name].losses(heavier, SETUP)
        assert isinstance(loss, Objective) and (loss.name, loss.weight) == (name, 3.0)
        assert all(metric.weight == 0 for metric in metrics)


def test_every_setting_of_an_objective_changes_its_losses_needs_or_heads():
    others = {"weight": 2.0, "rate": 0.31, "form": "sigmoid", "target": "nce", "label_smoothing": 0.3, "margin": 0.7}
    others |= {"word_rate": 0.31, "codebook_size": 9, "grad_cache_size": 5, "patches": BlockMasking(rate=0.31)}
    others |= {"negatives": HardNegatives(), "image": NoImage(), "masking": WordRegionMasking(word_rate=0.31)}
    for name, objective in ALL.present().items():
        for field in fields(objective):
            value = others.get(field.name, not getattr(objective, field.name))
            changed = replace(objective, **{field.name: value})
            of = definitions()[name]
            before, after = ((of.losses(one, SETUP), of.needs(one)) for one in (objective, changed))
            assert before != after, f"{name}.{field.name} has no effect"


def test_needs_follow_the_settings():
    random, hard = (
        needs_of(Objectives(itm=ITM()))["itm"],
        needs_of(Objectives(itm=ITM(negatives=HardNegatives())))["itm"],
    )
    assert random.mismatched_pairs and not hard.mismatched_pairs
    assert random.other is None and hard.other is not None and hard.other.name == "itc"
    masked = Objectives(itm=ITM(negatives=RandomNegatives(masking=WordRegionMasking())))
    assert any_needs(masked, lambda needs: needs.regions) and not any_needs(
        Objectives(itm=ITM()), lambda needs: needs.regions
    )
    assert not any_needs(Objectives(mlm=MLM(image=NoImage())), lambda needs: needs.image)
    assert any_needs(Objectives(mlm=MLM(image=RegionMasking())), lambda needs: needs.regions)
    assert any_needs(Objectives(mlm=MLM(image=BlockMasking())), lambda needs: needs.masks_patches)
    assert needs_of(Objectives(itc=ITC(grad_cache_size=8)))["itc"].grad_cache_size == 8
    assert needs_of(Objectives()) == {} and not any_needs(Objectives(), lambda needs: needs.text)


def test_losses_that_share_settings_share_one_encoding():
    patches = BlockMasking(rate=0.3)
    objectives = Objectives(mlm=MLM(rate=0.5, image=patches), masked_codes=MaskedCodes(patches=patches, word_rate=0.5))
    mlm, codes = losses_of(objectives, SETUP)
    assert mlm.masking == codes.text_masking and mlm.image_masking == codes.blocks  # type: ignore[attr-defined]


def test_hard_negatives_are_sampled_by_the_first_itc_head():
    (loss,) = losses_of(
        Objectives(itm=ITM(negatives=HardNegatives(0.1, local_only=True))), replace(SETUP, itc_heads=("a", "b"))
    )
    assert (loss.head, loss.uniform_mix, loss.local_negatives) == ("a", 0.1, True)  # type: ignore[attr-defined]


def test_tasks_name_the_losses_that_train_for_them():
    assert losses_that_train("captioning") == {"lm", "masked_captions"}
    assert losses_that_train("retrieval") == {"itc", "triplet"} and losses_that_train("matching") == {"itm"}


def test_two_losses_of_one_head_need_one_codebook():
    model, heads = SimpleNamespace(dim=4), nn.ModuleDict()
    add_code_head(MaskedCodes(codebook_size=7), model, heads)
    add_code_head(MaskedCodesImageOnly(codebook_size=7), model, heads)
    with pytest.raises(ValueError, match="their codebook_size is 7 and 9"):
        add_code_head(MaskedCodesImageOnly(codebook_size=9), model, heads)


def test_masked_regions_need_a_model_of_regions():
    run = toy(recipe("vilt.tiny"))
    masked_pairs = ITM(negatives=RandomNegatives(masking=WordRegionMasking()))
    for objectives in (Objectives(mlm=MLM(image=RegionMasking())), Objectives(itm=masked_pairs)):
        with pytest.raises(RunError, match="masks detected regions, and this ViLT reads pixels; set objectives"):
            build(replace(run, objectives=objectives))


@settings("objectives.brightness")
class Brightness:
    """The mean brightness of images: a toy."""

    weight: Weight = 1.0


@settings("objectives")
class MoreObjectives(Objectives):
    brightness: Brightness | None = None


FILE = """
from dataclasses import dataclass

import torch

from diptych.objectives.definition import Definition, Needs
from diptych.protocols import PatchEncoder
from tests.objectives.test_definition import Brightness


@dataclass(frozen=True)
class BrightnessLoss:
    name: str = "brightness"
    weight: float = 1.0

    def num_terms(self, views):
        return {self.name: torch.tensor(float(len(views.batch)))}

    def loss_sums(self, views):
        return {self.name: views.image.mean().square().mean(1).sum()}

    def chance_loss(self, statistics):
        return None


DEFINITION = Definition(
    Brightness,
    needs=lambda _: Needs((PatchEncoder,), text=False),
    losses=lambda brightness, _: [BrightnessLoss(weight=brightness.weight)],
)
"""


@pytest.fixture
def one_more_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A field more in `Objectives`, and a file more in objectives/."""
    (tmp_path / "brightness.py").write_text(FILE)
    monkeypatch.setattr(diptych.objectives, "__path__", [*diptych.objectives.__path__, str(tmp_path)])
    monkeypatch.setattr(definition, "Objectives", MoreObjectives)
    definitions.cache_clear()
    yield
    definitions.cache_clear()


@pytest.mark.slow
def test_an_objective_is_added_by_its_settings_and_one_file(one_more_file: None):
    run = toy(recipe("vilt.tiny"))
    run = replace(run, objectives=MoreObjectives(mlm=run.objectives.mlm))
    run = apply_overrides(run, ["--objectives.brightness.weight", "2"], "pretrain")
    assert run.objectives == MoreObjectives(mlm=MLM(rate=0.5), brightness=Brightness(2.0))
    module = build(run)
    losses = module(batch(run))
    assert module.weights == {"mlm": 1.0, "brightness": 2.0} and losses["brightness"] > 0
    torch.stack([weight * losses[name] for name, weight in module.weights.items()]).sum().backward()
    with pytest.raises(RunError, match="a SCAN cannot be trained with brightness: it has no tokens of image patches"):
        build(replace(toy(recipe("scan.small")), objectives=MoreObjectives(brightness=Brightness())))


def test_a_field_without_a_definition_raises(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(definition, "Objectives", MoreObjectives)
    with pytest.raises(
        LookupError, match=r"objectives.brightness: no file in objectives/ has a Definition\(Brightness"
    ):
        definitions.__wrapped__()
