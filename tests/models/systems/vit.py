from __future__ import annotations

import math

from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.tasks.classification import Classification
from tests.models.systems.common import CLASSES, CLASSIFIED, SMALL, Job, System, classify, encode_image

SYSTEMS = {
    "vit": System(
        small=lambda: ViT(ViTConfig(**SMALL, num_classes=CLASSES)),
        full=lambda: ViT(ViTConfig()),
        methods={"encode_image": encode_image, "classify": classify},
        forward=CLASSIFIED,
        jobs={"classification": Job(lambda m: Classification(m, CLASSES), {"classification": math.log(CLASSES)})},
    ),
    "vit, patches averaged": System(
        small=lambda: ViT(ViTConfig(**SMALL, num_classes=CLASSES, pooling="average")),
        full=lambda: ViT(ViTConfig(pooling="average")),
        methods={"encode_image": encode_image, "classify": classify},
        forward=CLASSIFIED,
        jobs={"classification": Job(lambda m: Classification(m, CLASSES), {"classification": math.log(CLASSES)})},
    ),
}
