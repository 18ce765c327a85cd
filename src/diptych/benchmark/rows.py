"""The rows of the table of what every system learns (`diptych benchmark`): recipes, one behind the other where a run starts from
another.
"""

from __future__ import annotations

ROWS = (
    "vsepp.small", "scan.small", "clip.small", "vilt.frozen", "visualbert.small", "vilbert.small", "albef.small",
    "vlmo.small", "vlmo.small_words+vlmo.small", "blip.small", "coca.small", "beit3.small",
    "beit3.small_captions",
)  # fmt: skip
