"""From a run to the losses that it trains."""

from __future__ import annotations

from dataclasses import replace

from diptych.data.vocabularies import vocabulary
from diptych.jobs.reading import vocabulary_of
from diptych.objectives.blocks import BlockMasking
from diptych.objectives.codes import MaskedCodes
from diptych.objectives.draws import Hiding, Masking
from diptych.objectives.hard import HardMatching
from diptych.objectives.hiding import RegionMasking
from diptych.objectives.hinge import Hinge
from diptych.objectives.imitation import ClassImitation, GridImitation
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.itm import ImageTextMatching
from diptych.objectives.lm import NextWords
from diptych.objectives.masked_captions import MaskedCaptions
from diptych.objectives.mim import MaskedPixels
from diptych.objectives.mlm import MaskedWords
from diptych.objectives.pretraining import Objective
from diptych.objectives.quantising import CodedFeatures, UnusedCodes
from diptych.objectives.regions import ByContrast, MaskedRegions, Target, by_class, by_feature
from diptych.objectives.wpa import WordPatchAlignment
from diptych.recipes.run import Pretrain

TARGETS: dict[str, Target] = {"classes": by_class, "features": by_feature, "contrast": ByContrast()}
"""What masked regions can be asked for, by its name in recipes."""


def objectives(run: Pretrain, contrasts: tuple[str, ...] = ("contrast",)) -> list[Objective]:
    """The losses whose weight is not 0. `contrasts`: the heads of contrast."""
    chosen = run.objectives
    # a model of another vocabulary may be built, to be compared; `tokenizer_of` refuses to train it
    known = vocabulary_of(run) or vocabulary()
    masking = Masking(known.size, known.mask, chosen.mask_rate, chosen.whole_words)
    regions = RegionMasking()
    hiding = Hiding(masking, regions) if chosen.hide_regions else None
    blocks = BlockMasking(chosen.patch_rate, chosen.block_least)
    beside = regions if chosen.hide_regions else blocks if chosen.codes else None
    hard = HardMatching(
        weight=chosen.itm, head=contrasts[0] if contrasts else "", even=chosen.even, in_rank=chosen.in_rank
    )
    possible: list[Objective] = [
        ImageTextContrast(weight=chosen.itc, heads=contrasts, form=chosen.contrast_form),
        hard if chosen.hard_negatives else ImageTextMatching(weight=chosen.itm, hiding=hiding),
        MaskedWords(masking, weight=chosen.mlm, alone=chosen.alone, beside=beside),
        WordPatchAlignment(weight=chosen.wpa),
        GridImitation(weight=chosen.grid),
        ClassImitation(weight=chosen.classes),
        NextWords(weight=chosen.lm, smoothing=chosen.smoothing),
        MaskedCaptions(replace(masking, ends=True), chosen.smoothing, weight=chosen.captions),
        MaskedRegions(Hiding(masking, regions), TARGETS[chosen.region_target], weight=chosen.regions),
        MaskedPixels(weight=chosen.mim, ratio=chosen.patch_rate),
        MaskedCodes(blocks, weight=chosen.codes, beside=masking),
        MaskedCodes(blocks, "codes_alone", chosen.codes_alone),
        MaskedWords(replace(masking, rate=chosen.alone_rate), "mlm_alone", chosen.mlm_alone, alone=True),
        CodedFeatures(weight=chosen.features),
        Hinge(weight=chosen.hinge, margin=chosen.margin, hardest=chosen.hardest),
    ]
    watched = [UnusedCodes()] if chosen.features else []
    return [o for o in possible if o.weight] + watched
