"""The keys that any config.json of transformers may carry."""

from __future__ import annotations

from diptych.weights.hf_rules import Fixed, Ignored, Reported, Rule

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
