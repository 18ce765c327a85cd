"""The keys that any config.json of transformers may carry.

What becomes of each key of config.json, for each class of transformers that is imported: all of them are listed here.

Defaults are those of transformers' classes (5.23), which save_pretrained may leave out.
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
    rate,
    whole,
)

_SAVED = Ignored("says how or by what version the weights were saved")
_OUTPUT = Ignored("says which extra outputs the class returns")
_FIRST = Ignored("draws the first weights, which the file replaces")
_GENERATED = Ignored("a default of generate(), which the recipe or the command line sets here")
_IDS = Ignored("an id of a special token, which the vocabulary gives here")
_LABELS = Ignored("read with the weights (weights.hf_config)")
ABSENT = Fixed((None,))
NO_ATTENTION_DROPOUT = Reported((0, 0.0), "attention has no dropout here, which matters only for fine-tuning")

COMMON: dict[str, Rule] = {
    **dict.fromkeys(
        ("transformers_version", "torch_dtype", "dtype", "_name_or_path", "name_or_path", "_commit_hash", "torchscript",
         "use_bfloat16", "tf_legacy_loss", "tokenizer_class", "prefix", "task_specific_params", "finetuning_task"),
        _SAVED,
    ),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate"), _OUTPUT),
    **dict.fromkeys(("attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "chunk_size_feed_forward", "gradient_checkpointing"),
                    Ignored("chooses how to compute the same numbers")),
    **dict.fromkeys(("initializer_range", "initializer_factor", "logit_scale_init_value"), _FIRST),
    **dict.fromkeys(
        ("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample",
         "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
         "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
         "num_beams", "num_return_sequences", "remove_invalid_values", "repetition_penalty", "suppress_tokens",
         "temperature", "top_k", "top_p", "typical_p", "use_cache"),
        _GENERATED,
    ),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id", "pad_token_id"), _IDS),
    **dict.fromkeys(("id2label", "label2id", "num_labels"), _LABELS),
    **dict.fromkeys(("model_type", "architectures"), Ignored("checked with the weights (weights.hf_config)")),
    "problem_type": Fixed((None, "single_label_classification")),
    "is_encoder_decoder": Fixed((False,)),
    "is_decoder": Fixed((False,)),
    "add_cross_attention": Fixed((False,)),
    "tie_encoder_decoder": Fixed((False,)),
    "tie_word_embeddings": Ignored("a word head that is tied is not in the file; one that is there is read"),
    "cross_attention_hidden_size": ABSENT,
    "quantization_config": ABSENT,
    "per_layer_config": ABSENT,
    "pruned_heads": Fixed(({}, None)),
    "position_embedding_type": Fixed(("absolute",)),
    "dropout": Ignored("of older files: the class does not read it"),
}  # fmt: skip
"""What every config may carry."""


LARGEST = 2
"""An ``eos_token_id`` that transformers' CLIP takes for "the largest id"; any other is looked for as itself."""
ENDS = {49408: (49407, LARGEST), 30524: (102,)}
"""Where a text ends, by the size of the bundled vocabulary: its last piece's id, or what stands for it in transformers."""


def _sizes(
    prefix: str = "", depth: int = 12, num_heads: int = 12, dim: int = 768, mlp_dim: int = 3072
) -> dict[str, Rule]:
    return {
        "hidden_size": Read(f"{prefix}dim", dim, whole, in_shapes=True),
        "num_hidden_layers": Read(f"{prefix}depth", depth, whole, in_shapes=True),
        "num_attention_heads": Read(f"{prefix}num_heads", num_heads, whole),
        "intermediate_size": Read(f"{prefix}mlp_dim", mlp_dim, whole, in_shapes=True),
    }


def _pictures(size: int, side: int) -> dict[str, Rule]:
    """`image_size` becomes the position grid, with the patch (weights.hf_config)."""
    return {
        "image_size": Read("image_size", size, pair),
        "patch_size": Read("patch_size", side, patch, in_shapes=True),
        "num_channels": Fixed((3,)),
    }


def _words(length: str, words: int, most: int) -> dict[str, Rule]:
    return {
        "vocab_size": Read("vocab_size", words, whole, in_shapes=True),
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
    "projection_dim": Read("embed_dim", 512, whole, in_shapes=True),
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
CLIP_IMAGE: Table = _clip_tower("", 768, 3072, 12) | _pictures(224, 32)

_ONLY_BLIP_MODEL = Ignored("of BlipModel, which is not imported")
BLIP: Table = COMMON | {
    "image_text_hidden_size": Read("embed_dim", 256, whole, in_shapes=True),
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
