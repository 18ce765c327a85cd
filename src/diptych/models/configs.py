"""The configs of all systems: one torch-free dataclass each, in the system's own folder, which its model is built from.

`config.build()` imports torch and returns the model.
"""

from __future__ import annotations

from diptych.config.published import Published
from diptych.encoders.visual_tokenizer_config import VisualTokenizerConfig
from diptych.models.albef import config as albef
from diptych.models.albef.config import ALBEFConfig
from diptych.models.beit3 import config as beit3
from diptych.models.beit3.config import BEiT3Config
from diptych.models.blip import config as blip
from diptych.models.blip.config import BLIPConfig
from diptych.models.clip import config as clip
from diptych.models.clip.config import CLIPConfig, CLIPResNetConfig
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
"""The published facts of each system."""

ImageOnlyModel = ViTConfig | MAEConfig | CrossViTConfig | VisualTokenizerConfig
"""Models without a text encoder."""

ClassifierModel = ViTConfig | CrossViTConfig | BEiT3Config
"""Models that have, or can have, an image classifier."""

ImageTextModel = (
    ALBEFConfig
    | BEiT3Config
    | BLIPConfig
    | CLIPConfig
    | CLIPResNetConfig
    | CoCaConfig
    | SCANConfig
    | ViLBERTConfig
    | ViLTConfig
    | VisualBERTConfig
    | VLMoConfig
    | VSEppConfig
)
"""Models of images and texts."""

PooledImageModel = ALBEFConfig | BLIPConfig | CLIPConfig | CLIPResNetConfig | CoCaConfig | VLMoConfig
"""Dual encoders without a classifier of their own, whose pooled image features a new one reads."""

RegionModel = SCANConfig | ViLBERTConfig | VisualBERTConfig | VSEppConfig
"""Models whose images are regions of a detector."""

Model = ImageOnlyModel | ImageTextModel

__all__ = [
    "PUBLISHED",
    "ALBEFConfig",
    "BEiT3Config",
    "BLIPConfig",
    "CLIPConfig",
    "CLIPResNetConfig",
    "ClassifierModel",
    "CoCaConfig",
    "CrossViTConfig",
    "ImageOnlyModel",
    "ImageTextModel",
    "MAEConfig",
    "Model",
    "PooledImageModel",
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
    "image_encoder_of",
    "max_text_length",
    "model_name",
    "pooled_dim",
    "pooled_image_dim",
    "tokenizer_size",
]  # fmt: skip


def model_name(config: Model) -> str:
    """The model's name in its paper: "ViLT" for a ViLTConfig."""
    return type(config).__name__.removesuffix("Config")


def has_answer_decoder(model: Model) -> bool:
    """Whether the model has a decoder that generates answers (ALBEF, BLIP); others classify among given answers."""
    return (isinstance(model, ALBEFConfig) and model.decoder_depth > 0) or (
        isinstance(model, BLIPConfig) and model.variant == "vqa"
    )


def tokenizer_size(model: Model) -> int:
    """Size of the text tokenizer's vocabulary, without the tokens that the model itself puts first; 0: no text."""
    if isinstance(model, ImageOnlyModel):
        return 0
    if isinstance(model, BLIPConfig):  # [DEC] and [ENC] follow BERT's vocabulary, or replace unused tokens
        appended = [i for i in (model.bos_token_id, model.enc_token_id) if i >= model.vocab_size - 2]
        return model.vocab_size - len(appended)
    return model.vocab_size


def max_text_length(model: ImageTextModel) -> int:
    """Maximum number of tokens of a text; recurrent models have no such limit, and get SCAN's usual 50."""
    return 50 if isinstance(model, SCANConfig | VSEppConfig) else model.text_length


def pooled_dim(model: ImageTextModel) -> int:
    """Width of the pooled features of a pair, which the heads of tasks read."""
    match model:
        case ViLBERTConfig():
            return model.coattention_dim
        case CLIPConfig() | CLIPResNetConfig() | CoCaConfig():
            return model.text_dim
        case BEiT3Config(pooling="both"):
            return 2 * model.dim
    return model.dim


def pooled_image_dim(model: PooledImageModel) -> int:
    """Width of the pooled features of an image."""
    match model:
        case ALBEFConfig() | BLIPConfig():
            return model.image_dim
        case CLIPResNetConfig():
            return model.channels
        case CoCaConfig():  # the attentional pooler's
            return model.text_dim
    return model.dim


def image_encoder_of(model: Model) -> Model:
    """The ViT that an MAE's encoder is, without a classifier; any other model itself.

    Pooled by the mean of the patches, as in MAE's fine-tuning. Differs: the norm after pooling starts as the encoder's
    (the official code starts a new one).
    """
    if not isinstance(model, MAEConfig):
        return model
    return ViTConfig(
        dim=model.dim,
        depth=model.depth,
        num_heads=model.num_heads,
        mlp_dim=model.mlp_dim,
        patch_size=model.patch_size,
        grid=model.grid,
        num_classes=0,
        pooling="average",
    )
