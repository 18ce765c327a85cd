"""Rows of the benchmark table (`diptych benchmark`): the recipes that are trained, and published results for scale."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = (
    "vsepp.small",
    "scan.small",
    "clip.small",
    "vilt.frozen",
    "visualbert.small",
    "vilbert.small",
    "albef.small",
    "vlmo.small",
    "vlmo.small_text+vlmo.small",
    "blip.small",
    "coca.small",
    "beit3.small",
    "beit3.small_captions",
)
"""Recipes; stages joined by ``+`` are each initialised from the one before."""


@dataclass(frozen=True)
class PublishedRow:
    """Recall at 1, 5 and 10 in percent; BLEU-1 to BLEU-4 in percent, as far as published."""

    system: str
    source: str
    image_to_text: tuple[float, ...] = ()
    text_to_image: tuple[float, ...] = ()
    bleu: tuple[float, ...] = ()


PUBLISHED_ROWS = (
    PublishedRow("DVSA", "Karpathy & Fei-Fei, CVPR 2015", (16.5, 40.6, 54.2), (11.8, 32.1, 44.7)),
    PublishedRow("VSE, OxfordNet", "Kiros et al. 2014", (18.0, 40.9, 55.0), (12.5, 37.0, 51.5)),
    PublishedRow("Fisher vectors, HGLMM", "Klein et al., CVPR 2015", (31.0, 59.3, 73.7), (21.3, 50.0, 64.8)),
    PublishedRow("NIC", "Vinyals et al., CVPR 2015", bleu=(63.0, 41.0, 27.0)),
    PublishedRow("Show, Attend and Tell, hard", "Xu et al., ICML 2015", bleu=(67.0, 45.7, 31.4, 21.3)),
)
"""Results on Flickr8k's 1,000 test photos before transformers, from memory of the papers, not verified here.
Other features, and the test split rather than val: they give the scale, not a ranking.
"""
