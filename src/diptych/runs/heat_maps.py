"""Heat maps for the report: the WPA transport plan from the words of a caption to the image patches."""

from __future__ import annotations

import torch
from torch import nn

from diptych.config.run import Finetune, Pretrain
from diptych.data.examples import PairExamples
from diptych.data.sources.base import BadSample, DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.subsets import CaptionSubset
from diptych.inference.saved_model import RunError
from diptych.inference.tokenizer import tokenizer_of
from diptych.models.configs import RegionModel
from diptych.objectives.wpa import WPALoss
from diptych.protocols import FusionEncoder, PartlySupported
from diptych.report import HeatMap
from diptych.tasks.definition import evenly_spaced

MAX_HEAT_MAPS = 6  # in a report


def heat_maps(run: Pretrain | Finetune, model: nn.Module) -> list[HeatMap]:
    """Heat maps of some validation captions over their images.

    The transport plan is that of WPA with the published constants.

    Returns:
        At most `MAX_HEAT_MAPS`. Empty if the model has no fusion or was built without its text encoder, if its image
        input is not pixels in patches, or if the data has no val split of captions.
    """
    unsupported = model.unsupported() if isinstance(model, PartlySupported) else {}
    if not isinstance(model, FusionEncoder) or {"encode_text", "encode_image", "fuse"} & unsupported.keys():
        return []
    if isinstance(run.model, RegionModel) or run.embedders.image != "own":
        return []
    try:
        source, tokenizer = (
            open_captions(run.data, "val", run.layout, min_side=run.images.shorter_side),
            tokenizer_of(run),
        )
    except (DataError, RunError):
        return []
    part = CaptionSubset(source, evenly_spaced(range(len(source)), MAX_HEAT_MAPS), texts=1)
    pairs = PairExamples(part, tokenizer, run.images.without_augmentation(), matching=0.0)
    model.eval()
    return word_patch_maps(model, WPALoss(), pairs, next(model.parameters()).device)


@torch.no_grad()
def word_patch_maps(
    model: FusionEncoder, objective: WPALoss, pairs: PairExamples, device: torch.device
) -> list[HeatMap]:
    """A heat map of the caption's tokens over the image for each readable pair (ViLT, figure 4)."""
    maps = []
    for index in range(len(pairs)):
        try:
            batch = pairs.collate([pairs.load(index, 0, 0)], [index], 0, 0)
            original = pairs.source.image(int(pairs.owner[index]))
        except BadSample:
            continue
        batch = batch.to(device)
        assert batch.text is not None and batch.image is not None
        image = model.encode_image(batch.image)
        grids = [span.grid for span in image.layout.spans if span.grid is not None]
        if not grids:  # CoCa's pooled queries have no position in the image
            return []
        fused = model.fuse(model.encode_text(batch.text), image)
        if fused.text.values.shape[-1] != fused.image.values.shape[-1]:  # WPA needs one width for words and patches
            return []
        transport = objective.transport(fused)
        vocabulary = pairs.tokenizer.vocabulary.tokens
        tokens = [vocabulary[i] for i in batch.text.ids[0, 1 : int(batch.text.mask.sum()) - 1].tolist()]
        plan = transport.plan[0, : len(tokens)].unflatten(1, grids[0]).float().cpu().numpy()  # tokens, rows, columns
        where = pairs.source.where(int(pairs.owner[index]))
        maps.append(HeatMap(original, tokens, plan, float(transport.distance), where))
    return maps
