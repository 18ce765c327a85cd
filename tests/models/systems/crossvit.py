from __future__ import annotations

import math
from typing import Any

from diptych.models.crossvit.config import CrossViTConfig
from diptych.models.crossvit.model import CrossViT
from diptych.tasks.classification import Classification
from tests.models.systems.common import CLASSES, CLASSIFIED, Job, System, classify

SMALL: dict[str, Any] = dict(
    image_sizes=(24, 32),
    patch_sizes=(12, 16),
    dims=(16, 32),
    num_heads=(2, 4),
    mlp_dims=(32, 64),
    stages=((1, 2, 0), (1, 1, 0)),
    num_classes=CLASSES,
)
BASE: dict[str, Any] = dict(dims=(384, 768), num_heads=(12, 12), mlp_dims=(1536, 3072), stages=((1, 4, 0),) * 3)
EXEMPT = {r"attention\.key\.bias": "adds the same to every score of a query, which softmax does not see"}
JOBS = {
    "classification": Job(lambda m: Classification(m, CLASSES), {"classification": math.log(CLASSES)}, exempt=EXEMPT)
}

SYSTEMS = {
    "crossvit": System(
        small=lambda: CrossViT(CrossViTConfig(**SMALL)),
        full=lambda: CrossViT(CrossViTConfig(**BASE)),
        methods={"classify": classify},
        forward=CLASSIFIED,
        jobs=JOBS,
    ),
    "crossvit, stem": System(
        small=lambda: CrossViT(CrossViTConfig(**SMALL, stem=True)),
        full=lambda: CrossViT(CrossViTConfig(**BASE, stem=True)),
        methods={"classify": classify},
        forward=CLASSIFIED,
        jobs=JOBS,
    ),
}
