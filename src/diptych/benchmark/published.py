"""Published rows on Flickr8k's 1,000 test photos, of the years before transformers: from memory of the papers, not verified
here. Other features, other photos than val: they tell the scale, not a rank.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Recall at 1, 5 and 10 in percent; BLEU-1 to BLEU-4, as far as they were told."""

    system: str
    source: str
    image_to_text: tuple[float, ...] = ()
    text_to_image: tuple[float, ...] = ()
    bleu: tuple[float, ...] = ()


ROWS = (
    Row("DVSA", "Karpathy & Fei-Fei, CVPR 2015", (16.5, 40.6, 54.2), (11.8, 32.1, 44.7)),
    Row("VSE, OxfordNet", "Kiros et al. 2014", (18.0, 40.9, 55.0), (12.5, 37.0, 51.5)),
    Row("Fisher vectors, HGLMM", "Klein et al., CVPR 2015", (31.0, 59.3, 73.7), (21.3, 50.0, 64.8)),
    Row("NIC", "Vinyals et al., CVPR 2015", bleu=(63.0, 41.0, 27.0)),
    Row("Show, Attend and Tell, hard", "Xu et al., ICML 2015", bleu=(67.0, 45.7, 31.4, 21.3)),
)
