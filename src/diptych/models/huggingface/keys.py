"""The rule for every key of config.json, for each class of transformers that can be imported.

Defaults are those of transformers' classes (5.23), which save_pretrained may omit.
"""

from __future__ import annotations

from diptych.checkpoints.huggingface.rules import (
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
    positive_int,
    rate,
)

_SAVED = Ignored("states how, or by what version, the weights were saved")
_OUTPUT = Ignored("selects extra outputs of the class")
_INITIALISATION = Ignored("initialises weights, which the file replaces")
_GENERATION = Ignored("a default of generate(), which the recipe or the command line sets here")
_IDS = Ignored("an id of a special token, which is read from the vocabulary here")
_LABELS = Ignored("read by HFConfig.labels")
ABSENT = Fixed((None,))
NO_ATTENTION_DROPOUT = Reported((0, 0.0), "attention has no dropout here, which matters only for fine-tuning")

COMMON: dict[str, Rule] = {
    **dict.fromkeys(
        ("transformers_version", "torch_dtype", "dtype", "_name_or_path", "name_or_path", "_commit_hash", "torchscript",
         "use_bfloat16", "tf_legacy_loss", "tokenizer_class", "prefix", "task_specific_params", "finetuning_task"),
        _SAVED,
    ),
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate"),
        _OUTPUT,
    ),
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "chunk_size_feed_forward",
         "gradient_checkpointing"),
        Ignored("selects an implementation of the same computation"),
    ),
    **dict.fromkeys(("initializer_range", "initializer_factor", "logit_scale_init_value"), _INITIALISATION),
    **dict.fromkeys(
        ("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample",
         "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
         "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
         "num_beams", "num_return_sequences", "remove_invalid_values", "repetition_penalty", "suppress_tokens",
         "temperature", "top_k", "top_p", "typical_p", "use_cache"),
        _GENERATION,
    ),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id", "pad_token_id"), _IDS),
    **dict.fromkeys(("id2label", "label2id", "num_labels"), _LABELS),
    **dict.fromkeys(("model_type", "architectures"), Ignored("checked by HFConfig.check")),
    "problem_type": Fixed((None, "single_label_classification")),
    "is_encoder_decoder": Fixed((False,)),
    "is_decoder": Fixed((False,)),
    "add_cross_attention": Fixed((False,)),
    "tie_encoder_decoder": Fixed((False,)),
    "tie_word_embeddings": Ignored("an LM head in the file is loaded; a tied one is not in it"),
    "cross_attention_hidden_size": ABSENT,
    "quantization_config": ABSENT,
    "per_layer_config": ABSENT,
    "pruned_heads": Fixed(({}, None)),
    "position_embedding_type": Fixed(("absolute",)),
    "dropout": Ignored("in older files only: the class does not read it"),
}  # fmt: skip
"""Keys that any config may have."""


LARGEST = 2
"""The ``eos_token_id`` that means "the largest id" in transformers' CLIP; any other is the id itself."""
ENDS = {49408: (49407, LARGEST), 30524: (102,)}
"""By size of the bundled vocabulary: the id of its end token, and values that mean the same in transformers."""


def _sizes(
    prefix: str = "", depth: int = 12, num_heads: int = 12, dim: int = 768, mlp_dim: int = 3072
) -> dict[str, Rule]:
    return {
        "hidden_size": Read(f"{prefix}dim", dim, positive_int, in_shapes=True),
        "num_hidden_layers": Read(f"{prefix}depth", depth, positive_int, in_shapes=True),
        "num_attention_heads": Read(f"{prefix}num_heads", num_heads, positive_int),
        "intermediate_size": Read(f"{prefix}mlp_dim", mlp_dim, positive_int, in_shapes=True),
    }


def _images(size: int, side: int) -> dict[str, Rule]:
    """The keys of image sizes; HFConfig derives the position grid from `image_size` and `patch_size`."""
    return {
        "image_size": Read("image_size", size, pair),
        "patch_size": Read("patch_size", side, patch, in_shapes=True),
        "num_channels": Fixed((3,)),
    }


def _words(length: str, words: int, most: int) -> dict[str, Rule]:
    return {
        "vocab_size": Read("vocab_size", words, positive_int, in_shapes=True),
        "max_position_embeddings": Read(length, most, positive_int, in_shapes=True),
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
        "classifier_dropout": Ignored("of heads, which are not loaded"),
        **dict.fromkeys(
            (
                "directionality",
                "pooler_fc_size",
                "pooler_num_attention_heads",
                "pooler_num_fc_layers",
                "pooler_size_per_head",
                "pooler_type",
            ),
            Ignored("of the pooler, which is not loaded"),
        ),
    }
)
_VIT = COMMON | _sizes() | _BERT | {"qkv_bias": Fixed((True,))}
VIT: Table = (
    _VIT
    | _images(224, 16)
    | {
        "encoder_stride": Ignored("of the masked image modelling decoder, which no supported class has"),
        **dict.fromkeys(("pooler_output_size", "pooler_act"), Ignored("of the pooler, which is not loaded")),
    }
)
VILT: Table = (
    _VIT
    | _images(384, 32)
    | _words("text_length", 30522, 40)
    | {
        "type_vocab_size": Fixed((2,)),
        "modality_type_vocab_size": Read("modalities", 2, positive_int),
        "max_image_length": Fixed((-1,)),
        "num_images": Ignored("inferred from the shapes of NLVR2's head; the other classes take one image"),
        "problem_type": Ignored("of the loss: VQA has binary cross-entropy in transformers too"),
        "classifier_dropout": Ignored("in older files only: the class does not read it"),
    }
)
_OTHER_CLASS = Ignored("of a class of one encoder alone: CLIPModel reads projection_dim at the top level")
CLIP: Table = COMMON | {
    "projection_dim": Read("embed_dim", 512, positive_int, in_shapes=True),
    **dict.fromkeys(("text_config", "vision_config", "text_config_dict", "vision_config_dict"), Ignored("nested")),
}


def _clip_tower(prefix: str, dim: int, mlp_dim: int, num_heads: int) -> dict[str, Rule]:
    return (
        COMMON
        | _sizes(prefix, num_heads=num_heads, dim=dim, mlp_dim=mlp_dim)
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
CLIP_IMAGE: Table = _clip_tower("", 768, 3072, 12) | _images(224, 32)

_ONLY_BLIP_MODEL = Ignored("of BlipModel, which is not supported")
BLIP: Table = COMMON | {
    "image_text_hidden_size": Read("embed_dim", 256, positive_int),
    "projection_dim": _ONLY_BLIP_MODEL,
    "label_smoothing": Ignored("the class reads text_config's"),
    **dict.fromkeys(("text_config", "vision_config"), Ignored("nested")),
    **dict.fromkeys(("text_config_dict", "vision_config_dict"), ABSENT),
}
BLIP_TEXT: Table = (
    COMMON
    | _sizes(num_heads=8)
    | _words("text_length", 30524, 512)
    | _BERT
    | {
        "bos_token_id": Read("bos_token_id", 30522, lambda value: value),
        "sep_token_id": Read("end", 102, lambda value: value),
        "encoder_hidden_size": Ignored("replaced by vision_config's hidden_size in the class"),
        "projection_dim": _ONLY_BLIP_MODEL,
        "is_decoder": Fixed((True,)),
        "label_smoothing": Reported((0.1,), "the recipe's label smoothing, 0.1, is used here; outputs are the same"),
        "type_vocab_size": Ignored("in older files only: the class has no segment embedding"),
    }
)
BLIP_IMAGE: Table = (
    COMMON
    | _sizes("image_")
    | _images(384, 16)
    | {
        "hidden_act": Read("image_activation", "gelu", activation),
        "layer_norm_eps": Read("image_eps", 1e-5, eps),
        "attention_dropout": NO_ATTENTION_DROPOUT,
        "projection_dim": _ONLY_BLIP_MODEL,
        "qkv_bias": Fixed((True,)),
    }
)
