"""Optional dataclasses and unions of dataclasses on the command line: added, removed, chosen, listed, refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

import pytest

from diptych.cli import main
from diptych.cli.arguments import apply_overrides, flags
from diptych.cli.errors import UsageError
from diptych.config.choices import choices_of, fill
from diptych.config.objectives import (
    ITC,
    ITM,
    LM,
    MLM,
    BlockMasking,
    HardNegatives,
    MaskedRegions,
    NoImage,
    Objectives,
    RandomNegatives,
    RegionMasking,
    WordRegionMasking,
)
from diptych.config.run import Pretrain
from diptych.runs.recipes import recipe

TINY = recipe("vilt.tiny").objectives  # itm, mlm at a rate of 0.5, wpa


def set_by(line: str, name: str = "vilt.tiny") -> Objectives:
    return apply_overrides(recipe(name), line.split(), f"pretrain {name}").objectives


@pytest.mark.parametrize(
    ("line", "objectives"),
    [
        ("", TINY),
        ("--objectives.itc default", replace(TINY, itc=ITC())),
        ("--objectives.itc=default", replace(TINY, itc=ITC())),
        ("--objectives.lm.label_smoothing 0.1", replace(TINY, lm=LM(label_smoothing=0.1))),
        ("--objectives.itc.form=sigmoid --objectives.itc.weight 2", replace(TINY, itc=ITC(weight=2.0, form="sigmoid"))),
        ("--objectives.mlm.weight 2", replace(TINY, mlm=MLM(weight=2.0, rate=0.5))),
        ("--objectives.mlm default", replace(TINY, mlm=MLM())),
        ("--objectives.mlm.weight 2 --objectives.mlm default", replace(TINY, mlm=MLM(weight=2.0))),
        ("--objectives.mlm none --objectives.wpa=none", Objectives(itm=ITM())),
        ("--objectives.mlm default --objectives.mlm none", replace(TINY, mlm=None)),
        ("--objectives.itm.negatives HardNegatives", replace(TINY, itm=ITM(negatives=HardNegatives()))),
        (
            "--objectives.itm.negatives.uniform_mix 0.1 --objectives.itm.negatives HardNegatives",
            replace(TINY, itm=ITM(negatives=HardNegatives(uniform_mix=0.1))),
        ),
        ("--objectives.mlm.image NoImage", replace(TINY, mlm=MLM(rate=0.5, image=NoImage()))),
        (
            "--objectives.mlm.image BlockMasking --objectives.mlm.image.rate 0.3",
            replace(TINY, mlm=MLM(rate=0.5, image=BlockMasking(rate=0.3))),
        ),
        (
            "--objectives.itm.negatives.masking.word_rate 0.2",
            replace(TINY, itm=ITM(negatives=RandomNegatives(masking=WordRegionMasking(word_rate=0.2)))),
        ),
        (
            "--objectives.masked_regions.masking.regions.rate 0.3",
            replace(TINY, masked_regions=MaskedRegions(masking=WordRegionMasking(regions=RegionMasking(rate=0.3)))),
        ),
    ],
)
def test_objectives_are_added_removed_and_chosen(line: str, objectives: Objectives):
    assert set_by(line) == objectives


def test_a_choice_within_an_absent_dataclass_adds_it():
    assert set_by("--objectives.itm.negatives HardNegatives", "clip.small").itm == ITM(negatives=HardNegatives())
    assert set_by("--objectives.itm.negatives.uniform_mix 0.1", "albef.pretrain_4m").itm == ITM(
        negatives=HardNegatives(uniform_mix=0.1)
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--objectives.mlmm none", "there is no --objectives.mlmm; did you mean --objectives.mlm?"),
        ("--objectives.mlm.rat 0.3", "there is no --objectives.mlm.rat; did you mean --objectives.mlm.rate?"),
        ("--objectives.itc.rate 0.3", "there is no --objectives.itc.rate; did you mean "),
        ("--mlm_probability 0.3", "did you mean --objectives.mlm.rate?"),
        (
            "--objectives.mlm 0",
            "--objectives.mlm: expected none or default, got '0' (its settings: --objectives.mlm.weight, "
            "--objectives.mlm.rate, ",
        ),
        ("--objectives.mlm", "--objectives.mlm: expected none or default, got nothing"),
        ("--objectives.mlm --objectives.itc default", "--objectives.mlm: expected none or default, got nothing"),
        (
            "--objectives.itm.negatives hard",
            "expected RandomNegatives or HardNegatives, got 'hard'; did you mean HardN",
        ),
        (
            "--objectives.itm.negatives.uniform_mix 0.1",
            "--objectives.itm.negatives.uniform_mix is a setting of HardNegatives, and --objectives.itm.negatives is "
            "RandomNegatives: give --objectives.itm.negatives HardNegatives",
        ),
        (
            "--objectives.mlm.image.rate 0.1",
            "is a setting of RegionMasking or BlockMasking, and --objectives.mlm.image is FullImage",
        ),
        (
            "--objectives.itm none --objectives.itm.weight 2",
            "--objectives.itm.weight is a setting of --objectives.itm, which is none: remove one of the two flags",
        ),
        ("--objectives.mlm.rate 2", "objectives.mlm.rate must be in (0, 1]: got 2.0"),
        ("--objectives.itc.weight 0", "objectives.itc.weight must be in (0, 1000000.0]: got 0.0"),
        ("--objectives.itc.form softmx", "--objectives.itc.form: expected one of softmax, sigmoid, got 'softmx'"),
        ("--model CLIPConfig", "there is no --model; did you mean "),
    ],
)
def test_errors_say_what_is_expected_and_which_flag_to_give(line: str, message: str):
    with pytest.raises((UsageError, ValueError)) as error:
        set_by(line)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.slow
def test_help_lists_every_setting_of_every_objective_with_its_meaning_and_default(capsys):
    assert main(["pretrain", "albef.pretrain_4m", "--help"]) == 0
    text = capsys.readouterr().out
    entries = dict(re.findall(r"^  (--\S+) .*\n((?: {8}.*\n)+)", text, re.MULTILINE))
    assert set(flags(recipe("albef.pretrain_4m"))) <= {flag.replace("--", "--training.", 1) for flag in entries} | set(
        entries
    )
    assert all(re.search(r"\(default:", help_text) for help_text in entries.values())
    assert "(default: none)" in entries["--objectives.lm"] and "as below" in entries["--objectives.mlm"]
    assert "HardNegatives: In-batch negatives" in " ".join(entries["--objectives.itm.negatives"].split())
    assert "(default: HardNegatives)" in " ".join(entries["--objectives.itm.negatives"].split())
    assert text.count("--objectives.mlm.image.rate ") == 2, "of masked regions, and of masked patches"
    titles = re.findall(r"^ (\S+) options$", text, re.MULTILINE)
    assert titles.index("model") < titles.index("objectives.itc") < titles.index("objectives.triplet")
    assert titles.index("training") < titles.index("objectives.itc"), (
        "what all runs share first, then pre-training's own"
    )
    assert len(titles) == len(set(titles))


def test_a_required_union_is_no_choice_and_fill_adds_every_absent_dataclass():
    assert "model" not in choices_of(Pretrain)
    assert choices_of(ITM).keys() == {"negatives"}
    assert [*choices_of(Objectives)["itc"]] == ["none", "default"]
    filled = fill(TINY)
    assert filled.present().keys() == {field.name for field in fields(Objectives)} and filled.mlm == TINY.mlm


@dataclass(frozen=True)
class Incomplete:
    size: int


@dataclass(frozen=True)
class Holder:
    part: Incomplete | None = None


def test_a_dataclass_without_all_defaults_cannot_be_added():
    assert choices_of(Holder) == {}
