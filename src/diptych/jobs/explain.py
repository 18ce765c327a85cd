"""Where a model looks: the transport plan from words to patches, as maps over the photograph."""

from __future__ import annotations

import torch

from diptych.data.examples import PairExamples
from diptych.data.source import BadSample
from diptych.data.wordpiece import vocabulary
from diptych.models.verbs import Fuses
from diptych.objectives.wpa import WordPatchAlignment
from diptych.report import HeatMap

ALIGNMENT = WordPatchAlignment()


@torch.no_grad()
def word_patch_maps(model: Fuses, pairs: PairExamples, indices: list[int]) -> list[HeatMap]:
    """A heat map for each example that can be read: its caption's words over its picture (ViLT, figure 4)."""
    maps = []
    for index in indices:
        try:
            batch = pairs.collate([pairs.load(index, 0, 0)], [index], 0, 0)
            picture = pairs.source.image(int(pairs.owner[index]))
        except BadSample:
            continue
        device = next(iter(model.parameters())).device  # type: ignore[attr-defined]
        batch = batch.to(device)
        assert batch.text is not None and batch.image is not None
        image = model.encode_image(batch.image)
        found = ALIGNMENT.transport(model.fuse(model.encode_text(batch.text), image))
        (grid,) = (span.grid for span in image.layout.spans if span.grid is not None)
        pieces = [vocabulary()[i] for i in batch.text.ids[0, 1 : int(batch.text.real.sum()) - 1].tolist()]
        plan = found.plan[0, : len(pieces)].unflatten(1, grid).float().cpu().numpy()
        maps.append(HeatMap(picture, pieces, plan, float(found.distance), pairs.source.where(int(pairs.owner[index]))))
    return maps
