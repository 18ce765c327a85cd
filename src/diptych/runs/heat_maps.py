"""Where a model looks: the transport plan from words to patches, as maps over the photograph."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from diptych.config.run import Finetune, Pretrain
from diptych.data.examples import PairExamples
from diptych.data.sources.base import BadSample, DataError
from diptych.data.sources.captions import open_captions
from diptych.models.configs import RegionModel
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.wpa import WPA
from diptych.protocols import FusionEncoder, PartlySupported
from diptych.report import HeatMap
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import evenly_spaced
from diptych.runs.scoring.gallery import Part
from diptych.runs.tokenizer import tokenizer_of

MAPS = 6  # pictures with heat maps in a report


def heat_maps(run: Pretrain | Finetune, module: nn.Module) -> list[HeatMap]:
    """Maps of some held-out captions over their pictures, by the transport that the run was trained with (else by the
    published one); none where the model does not fuse, or was built without its text encoder, or sees no pixels in patches, or
    the data holds no val split of captions.
    """
    model = module.model
    lacks = model.unsupported() if isinstance(model, PartlySupported) else {}
    if not isinstance(model, FusionEncoder) or {"encode_text", "encode_image", "fuse"} & lacks.keys():
        return []
    if isinstance(run.model, RegionModel) or run.embedders.image != "own":
        return []
    try:
        source, tokenizer = open_captions(run.data, "val", least=run.images.shorter_side), tokenizer_of(run)
    except (DataError, RunError):
        return []
    some = Part(source, evenly_spaced(range(len(source)), MAPS), texts=1)
    pairs = PairExamples(some, tokenizer, replace(run.images, augment=False), matching=0.0)
    module.eval()
    return word_patch_maps(model, alignment(module), pairs)


def alignment(module: nn.Module) -> WPA:
    """The training objective's own, with its constants."""
    chosen = module.objectives if isinstance(module, Pretraining) else ()
    return next((o for o in chosen if isinstance(o, WPA)), WPA())


@torch.no_grad()
def word_patch_maps(model: FusionEncoder, objective: WPA, pairs: PairExamples) -> list[HeatMap]:
    """A heat map for each pair that can be read: its caption's words over its picture (ViLT, figure 4)."""
    maps = []
    for index in range(len(pairs)):
        try:
            batch = pairs.collate([pairs.load(index, 0, 0)], [index], 0, 0)
            picture = pairs.source.image(int(pairs.owner[index]))
        except BadSample:
            continue
        device = next(iter(model.parameters())).device  # type: ignore[attr-defined]
        batch = batch.to(device)
        assert batch.text is not None and batch.image is not None
        image = model.encode_image(batch.image)
        grids = [span.grid for span in image.layout.spans if span.grid is not None]
        if not grids:  # CoCa's queries lie nowhere
            return []
        fused = model.fuse(model.encode_text(batch.text), image)
        if fused.text.values.shape[-1] != fused.image.values.shape[-1]:  # words and patches cannot be compared
            return []
        found = objective.transport(fused)
        known = pairs.tokenizer.vocabulary.pieces
        pieces = [known[i] for i in batch.text.ids[0, 1 : int(batch.text.mask.sum()) - 1].tolist()]
        plan = found.plan[0, : len(pieces)].unflatten(1, grids[0]).float().cpu().numpy()
        maps.append(HeatMap(picture, pieces, plan, float(found.distance), pairs.source.where(int(pairs.owner[index]))))
    return maps
