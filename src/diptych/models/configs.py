"""The settings of all systems: one dataclass each, its fields the model's arguments, in the system's own folder. `build` imports torch,
and not before.
"""

from __future__ import annotations

from diptych.config.published import Published
from diptych.models.albef import config as albef
from diptych.models.albef.config import ALBEFConfig
from diptych.models.beit3 import config as beit3
from diptych.models.beit3.config import BEiT3Config, VisualTokenizerConfig
from diptych.models.blip import config as blip
from diptych.models.blip.config import BLIPConfig
from diptych.models.clip import config as clip
from diptych.models.clip.config import CLIPConfig
from diptych.models.coca import config as coca
from diptych.models.coca.config import CoCaConfig
from diptych.models.crossvit import config as crossvit
from diptych.models.crossvit.config import CrossViTConfig
from diptych.models.mae import config as mae
from diptych.models.mae.config import MAEConfig
from diptych.models.scan import config as scan
from diptych.models.scan.config import SCANConfig
from diptych.models.vilbert import config as vilbert
from diptych.models.vilbert.config import ViLBERTConfig
from diptych.models.vilt import config as vilt
from diptych.models.vilt.config import ViLTConfig
from diptych.models.visualbert import config as visualbert
from diptych.models.visualbert.config import VisualBERTConfig
from diptych.models.vit import config as vit
from diptych.models.vit.config import ViTConfig
from diptych.models.vlmo import config as vlmo
from diptych.models.vlmo.config import VLMoConfig
from diptych.models.vsepp import config as vsepp
from diptych.models.vsepp.config import VSEppConfig

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

ImageOnlyModel = ViTConfig | MAEConfig | CrossViTConfig | VisualTokenizerConfig
"""Models that read no text."""

ClassifierModel = ViTConfig | CrossViTConfig | BEiT3Config
"""Models that have, or can have, a classifier of images."""

ImageTextModel = (
    ALBEFConfig
    | BEiT3Config
    | BLIPConfig
    | CLIPConfig
    | CoCaConfig
    | SCANConfig
    | ViLBERTConfig
    | ViLTConfig
    | VisualBERTConfig
    | VLMoConfig
    | VSEppConfig
)
"""Models that read image and text."""

RegionModel = SCANConfig | ViLBERTConfig | VisualBERTConfig | VSEppConfig
"""Models that read what a detector saw."""

Model = ImageOnlyModel | ImageTextModel

__all__ = [
    "PUBLISHED",
    "ALBEFConfig",
    "BEiT3Config",
    "BLIPConfig",
    "CLIPConfig",
    "ClassifierModel",
    "CoCaConfig",
    "CrossViTConfig",
    "ImageOnlyModel",
    "ImageTextModel",
    "MAEConfig",
    "Model",
    "RegionModel",
    "SCANConfig",
    "VLMoConfig",
    "VSEppConfig",
    "ViLBERTConfig",
    "ViLTConfig",
    "ViTConfig",
    "VisualBERTConfig",
    "VisualTokenizerConfig",
    "has_answer_decoder",
    "max_text_length",
    "model_name",
    "pooled_dim",
    "tokenizer_size",
]  # fmt: skip


def model_name(config: Model) -> str:
    """The model's name, as its paper has it: "ViLT" of a ViLTConfig."""
    return type(config).__name__.removesuffix("Config")


def has_answer_decoder(model: Model) -> bool:
    """Whether it has a decoder that answers questions (ALBEF, BLIP): others choose among given answers."""
    return (isinstance(model, ALBEFConfig) and model.decoder_depth > 0) or (
        isinstance(model, BLIPConfig) and model.variant == "vqa"
    )


def tokenizer_size(model: Model) -> int:
    """How many pieces of text a model knows, not counting those that it begins texts with itself; 0: it reads none."""
    if isinstance(model, ImageOnlyModel):
        return 0
    if isinstance(model, BLIPConfig):  # [DEC] and [ENC] stand behind BERT's pieces, or in the place of unused ones
        behind = [i for i in (model.bos_token_id, model.enc_token_id) if i >= model.vocab_size - 2]
        return model.vocab_size - len(behind)
    return model.vocab_size


def max_text_length(model: ImageTextModel) -> int:
    """How many pieces of a text a model reads at most; recurrent ones have no such bound, and get SCAN's usual 50."""
    return 50 if isinstance(model, SCANConfig | VSEppConfig) else model.text_length


def pooled_dim(model: ImageTextModel) -> int:
    """The width of the summary of a pair, which heads of tasks read."""
    match model:
        case ViLBERTConfig():
            return model.coattention_dim
        case CLIPConfig() | CoCaConfig():
            return model.text_dim
        case BEiT3Config(pooling="both"):
            return 2 * model.dim
    return model.dim
