from __future__ import annotations

from torch import nn

from diptych.models.mae.model import MAE
from diptych.objectives.mim import MIM
from diptych.objectives.pretraining import Pretraining
from tests.models.systems.common import GRID, PATCH, Job, System, encode_image

SYSTEMS = {
    "mae": System(
        small=lambda: MAE(
            32, 2, 4, 64, PATCH, GRID, decoder_dim=64, decoder_depth=1, decoder_num_heads=4, decoder_mlp_dim=64
        ),
        full=lambda: MAE(),
        verbs={"encode_image": encode_image},
        jobs={"pretraining": Job(lambda m: Pretraining(m, nn.ModuleDict(), [MIM()]), {"mim": 1.0}, exempt={})},
    ),
}
