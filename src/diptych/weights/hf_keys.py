"""The keys of config.json, for each class of transformers that is imported: the one place that says what happens to each.

Defaults are those of transformers' classes (5.23), which save_pretrained may leave out.
"""

from __future__ import annotations

from diptych.weights.hf_common import ABSENT, COMMON, NO_ATTENTION_DROPOUT
from diptych.weights.hf_rules import (
    Fixed,
    Ignored,
    Read,
    Reported,
    Rule,
    Table,
    activation,
    eps,
    pair,
    patch,
    rate,
    whole,
)

ENDS = {49408: (49407, 2), 30524: (102,)}
"""Where a text ends, by the size of the bundled vocabulary: its last piece's id, or what stands for it in transformers (2: the
largest id).
"""


def _sizes(prefix: str = "", depth: int = 12, heads: int = 12, width: int = 768, hidden: int = 3072) -> dict[str, Rule]:
    return {
        "hidden_size": Read(f"{prefix}width", width, whole, in_shapes=True),
        "num_hidden_layers": Read(f"{prefix}depth", depth, whole, in_shapes=True),
        "num_attention_heads": Read(f"{prefix}heads", heads, whole),
        "intermediate_size": Read(f"{prefix}hidden", hidden, whole, in_shapes=True),
    }


def _pictures(size: int, side: int) -> dict[str, Rule]:
    """`image_size` becomes the position grid, with the patch (weights.hf_config)."""
    return {
        "image_size": Read("image_size", size, pair),
        "patch_size": Read("patch", side, patch, in_shapes=True),
        "num_channels": Fixed((3,)),
    }


def _words(length: str, words: int, most: int) -> dict[str, Rule]:
    return {
        "vocab_size": Read("vocabulary", words, whole, in_shapes=True),
        "max_position_embeddings": Read(length, most, whole, in_shapes=True),
    }


_BERT = {
    "hidden_act": Read("activation", "gelu", activation),
    "hidden_dropout_prob": Read("dropout", 0.0, rate),
    "attention_probs_dropout_prob": NO_ATTENTION_DROPOUT,
    "layer_norm_eps": Read("eps", 1e-12, eps),
}
BERT: Table = (
    COMMON
    | _sizes()
    | _words("text_length", 30522, 512)
    | _BERT
    | {
        "type_vocab_size": Fixed((2,)),
        "layer_norm_eps": Ignored("weights that begin a training learn the model's own"),
        "classifier_dropout": Ignored("of heads, which stay behind"),
        **dict.fromkeys(
            (
                "directionality",
                "pooler_fc_size",
                "pooler_num_attention_heads",
                "pooler_num_fc_layers",
                "pooler_size_per_head",
                "pooler_type",
            ),
            Ignored("of the pooler, which stays behind"),
        ),
    }
)
_VIT = COMMON | _sizes() | _BERT | {"qkv_bias": Fixed((True,))}
VIT: Table = (
    _VIT
    | _pictures(224, 16)
    | {
        "encoder_stride": Ignored("of the decoder for masked images, which no imported class has"),
        **dict.fromkeys(("pooler_output_size", "pooler_act"), Ignored("of the pooler, which is left out")),
    }
)
VILT: Table = (
    _VIT
    | _pictures(384, 32)
    | _words("text_length", 30522, 40)
    | {
        "type_vocab_size": Fixed((2,)),
        "modality_type_vocab_size": Read("modalities", 2, whole),
        "max_image_length": Fixed((-1,)),
        "num_images": Ignored("the shapes of NLVR2's head give it; the other classes read one picture"),
        "problem_type": Ignored("of the loss: VQA's is binary cross entropy in transformers too"),
        "classifier_dropout": Ignored("of older files: the class does not read it"),
    }
)
_OTHER_CLASS = Ignored("of a class that stands by itself: the projection of the two towers is given outside")
CLIP: Table = COMMON | {
    "projection_dim": Read("joint", 512, whole, in_shapes=True),
    **dict.fromkeys(("text_config", "vision_config", "text_config_dict", "vision_config_dict"), Ignored("nested")),
}


def _clip_tower(prefix: str, width: int, hidden: int, heads: int) -> dict[str, Rule]:
    return (
        COMMON
        | _sizes(prefix, heads=heads, width=width, hidden=hidden)
        | {
            "hidden_act": Read(f"{prefix}activation", "quick_gelu", activation),
            "layer_norm_eps": Read(f"{prefix}eps", 1e-5, eps),
            "attention_dropout": NO_ATTENTION_DROPOUT,
            "projection_dim": _OTHER_CLASS,
        }
    )


CLIP_TEXT: Table = (
    _clip_tower("text_", 512, 2048, 8)
    | _words("text_length", 49408, 77)
    | {"eos_token_id": Read("end", 49407, lambda value: value)}
)
CLIP_IMAGE: Table = _clip_tower("", 768, 3072, 12) | _pictures(224, 32)

_ONLY_BLIP_MODEL = Ignored("of BlipModel, which is not imported")
BLIP: Table = COMMON | {
    "image_text_hidden_size": Read("joint", 256, whole, in_shapes=True),
    "projection_dim": _ONLY_BLIP_MODEL,
    "label_smoothing": Ignored("the class reads text_config's"),
    **dict.fromkeys(("text_config", "vision_config"), Ignored("nested")),
    **dict.fromkeys(("text_config_dict", "vision_config_dict"), ABSENT),
}
BLIP_TEXT: Table = (
    COMMON
    | _sizes(heads=8)
    | _words("text_length", 30524, 512)
    | _BERT
    | {
        "bos_token_id": Read("begin", 30522, lambda value: value),
        "sep_token_id": Read("end", 102, lambda value: value),
        "encoder_hidden_size": Ignored("the class takes vision_config's hidden_size in its place"),
        "projection_dim": _ONLY_BLIP_MODEL,
        "is_decoder": Fixed((True,)),
        "label_smoothing": Reported(
            (0.1,), "fine-tuning smooths by the recipe's 0.1 here; outputs are the same"
        ),
        "type_vocab_size": Ignored("of older files: the class has no segments"),
    }
)  # fmt: skip
BLIP_IMAGE: Table = (
    COMMON
    | _sizes("image_")
    | _pictures(384, 16)
    | {
        "hidden_act": Read("image_activation", "gelu", activation),
        "layer_norm_eps": Read("image_eps", 1e-5, eps),
        "attention_dropout": NO_ATTENTION_DROPOUT,
        "projection_dim": _ONLY_BLIP_MODEL,
        "qkv_bias": Fixed((True,)),
    }
)
