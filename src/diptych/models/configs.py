"""The settings of all systems: one dataclass each, its fields the model's arguments, in the system's own folder. `build` imports torch,
and not before.
"""

from __future__ import annotations

from diptych.config.published import Published
from diptych.models.albef import config as albef
from diptych.models.albef.config import ALBEF
from diptych.models.beit3 import config as beit3
from diptych.models.beit3.config import BEiT3, VisualTokenizer
from diptych.models.blip import config as blip
from diptych.models.blip.config import BLIP
from diptych.models.clip import config as clip
from diptych.models.clip.config import CLIP
from diptych.models.coca import config as coca
from diptych.models.coca.config import CoCa
from diptych.models.crossvit import config as crossvit
from diptych.models.crossvit.config import CrossViT
from diptych.models.mae import config as mae
from diptych.models.mae.config import MAE
from diptych.models.scan import config as scan
from diptych.models.scan.config import SCAN
from diptych.models.vilbert import config as vilbert
from diptych.models.vilbert.config import ViLBERT
from diptych.models.vilt import config as vilt
from diptych.models.vilt.config import ViLT
from diptych.models.visualbert import config as visualbert
from diptych.models.visualbert.config import VisualBERT
from diptych.models.vit import config as vit
from diptych.models.vit.config import ViT
from diptych.models.vlmo import config as vlmo
from diptych.models.vlmo.config import VLMo
from diptych.models.vsepp import config as vsepp
from diptych.models.vsepp.config import VSEpp

PUBLISHED: dict[str, Published] = {
    "vit": vit.PUBLISHED,
    "crossvit": crossvit.PUBLISHED,
    "mae": mae.PUBLISHED,
    "clip": clip.PUBLISHED,
    "vsepp": vsepp.PUBLISHED,
    "scan": scan.PUBLISHED,
    "vilbert": vilbert.PUBLISHED,
    "visualbert": visualbert.PUBLISHED,
    "vilt": vilt.PUBLISHED,
    "albef": albef.PUBLISHED,
    "vlmo": vlmo.PUBLISHED,
    "blip": blip.PUBLISHED,
    "coca": coca.PUBLISHED,
    "beit3": beit3.PUBLISHED,
}
"""What was published of each system."""

ImageOnlyModel = ViT | MAE | CrossViT | VisualTokenizer
"""Models that read no text."""

ClassifierModel = ViT | CrossViT | BEiT3
"""Models that have, or can have, a classifier of images."""

ImageTextModel = ALBEF | BEiT3 | BLIP | CLIP | CoCa | SCAN | ViLBERT | ViLT | VisualBERT | VLMo | VSEpp
"""Models that read image and text."""

RegionModel = SCAN | ViLBERT | VisualBERT | VSEpp
"""Models that read what a detector saw."""

Model = ImageOnlyModel | ImageTextModel

__all__ = [
    "ALBEF",
    "BLIP",
    "CLIP",
    "MAE",
    "PUBLISHED",
    "SCAN",
    "BEiT3",
    "ClassifierModel",
    "CoCa",
    "CrossViT",
    "ImageOnlyModel",
    "ImageTextModel",
    "Model",
    "RegionModel",
    "VLMo",
    "VSEpp",
    "ViLBERT",
    "ViLT",
    "ViT",
    "VisualBERT",
    "VisualTokenizer",
    "has_answer_decoder",
    "max_text_length",
    "pooled_dim",
    "tokenizer_size",
]  # fmt: skip


def has_answer_decoder(model: Model) -> bool:
    """Whether it has a decoder that answers questions (ALBEF, BLIP): others choose among given answers."""
    return (isinstance(model, ALBEF) and model.decoder_depth > 0) or (
        isinstance(model, BLIP) and model.variant == "vqa"
    )


def tokenizer_size(model: Model) -> int:
    """How many pieces of text a model knows, not counting those that it begins texts with itself; 0: it reads none."""
    if isinstance(model, ImageOnlyModel):
        return 0
    if isinstance(model, BLIP):  # [DEC] and [ENC] stand behind BERT's pieces, or in the place of unused ones
        behind = [i for i in (model.bos_token_id, model.enc_token_id) if i >= model.vocab_size - 2]
        return model.vocab_size - len(behind)
    return model.vocab_size


def max_text_length(model: ImageTextModel) -> int:
    """How many pieces of a text a model reads at most; recurrent ones have no such bound, and get SCAN's usual 50."""
    return 50 if isinstance(model, SCAN | VSEpp) else model.text_length


def pooled_dim(model: ImageTextModel) -> int:
    """The width of the summary of a pair, which heads of tasks read."""
    match model:
        case ViLBERT():
            return model.coattention_dim
        case CLIP() | CoCa():
            return model.text_dim
        case BEiT3(pooling="both"):
            return 2 * model.dim
    return model.dim
