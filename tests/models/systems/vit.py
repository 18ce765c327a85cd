from __future__ import annotations

import math

from diptych.models.vit.model import ViT
from diptych.tasks.classification import Classification
from tests.models.systems.common import CLASSES, SMALL, Job, System, classify, encode_image

SYSTEMS = {
    "vit": System(
        small=lambda: ViT(**SMALL, num_classes=CLASSES),
        full=lambda: ViT(),
        verbs={"encode_image": encode_image, "classify": classify},
        jobs={"classification": Job(lambda m: Classification(m, CLASSES), {"classification": math.log(CLASSES)})},
    ),
    "vit, patches averaged": System(
        small=lambda: ViT(**SMALL, num_classes=CLASSES, pooling="average"),
        full=lambda: ViT(pooling="average"),
        verbs={"encode_image": encode_image, "classify": classify},
        jobs={"classification": Job(lambda m: Classification(m, CLASSES), {"classification": math.log(CLASSES)})},
    ),
}
