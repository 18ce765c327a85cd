"""Suggestions for names that do not exist: other libraries' names of settings, and the nearest spelling.

Every message that suggests a name takes it from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice

OTHER_NAMES = {
    "optimizer.learning_rate": "lr learning_rate base_lr peak_lr max_lr",
    "optimizer.weight_decay": "wd weight_decay decay l2",
    "optimizer.warmup": "warmup warmup_steps warmup_ratio warmup_iters num_warmup_steps",
    "optimizer.schedule": "scheduler lr_scheduler lr_scheduler_type lr_schedule sched",
    "optimizer.max_grad_norm": (
        "grad_clip clip_grad max_grad_norm gradient_clip gradient_clip_val grad_clip_norm clip_grad_norm"
    ),
    "optimizer.name": "optim opt optimizer_type optimizer_name",
    "optimizer.final_rate": "min_lr min_lr_ratio eta_min lrf final_lr",
    "optimizer.layer_decay": "layer_decay llrd layerwise_decay layer_lr_decay layer_wise_decay",
    "optimizer.part_rates": "head_lr_multiplier head_lr lr_mult lr_multiplier param_groups",
    "optimizer.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "optimizer.eps": "adam_epsilon epsilon",
    "batch_size": "batch bs bsz train_batch_size per_device_train_batch_size global_batch_size",
    "steps": "max_steps num_steps iters iterations max_iters total_steps",
    "epochs": "epoch num_epochs num_train_epochs max_epochs total_epochs",
    "keep_best": "monitor save_best metric_for_best_model load_best_model_at_end",
    "stop_after": "early_stop early_stopping early_stopping_patience",
    "grad_accum": "accumulate gradient_accumulation_steps accum accum_freq accumulate_grad_batches accumulation_steps",
    "precision": "amp fp16 bf16 fp32 dtype mixed_precision half",
    "workers": "num_workers dataloader_num_workers nw",
    "device": "gpu gpus cuda cpu accelerator",
    "seed": "random_seed manual_seed random_state",
    "parallel": "fsdp ddp strategy",
    "activation_checkpointing": "recompute gradient_checkpointing grad_checkpointing",
    "checkpoint_every": "save_every save_steps save_freq save_interval save_frequency",
    "evaluate_every": "eval_every eval_steps eval_freq val_every val_frequency eval_interval",
    "log_every": "log_steps logging_steps log_interval print_freq log_freq",
    "init_from": "start pretrained init resume checkpoint ckpt load weights model_name_or_path",
    "out": "output output_dir out_dir save_dir save_path run_dir",
    "data": "dataset data_dir data_path train_data dataset_name train_file root",
    "images.shorter_side": "image_size img_size imgsz resolution input_size image_res size side",
    "model.patch_size": "patch_size",
    "model.dim": "hidden_size dim embed_dim d_model hidden_dim",
    "model.depth": "layers num_layers num_hidden_layers n_layer",
    "model.num_heads": "num_heads num_attention_heads n_head nhead",
    "model.mlp_dim": "intermediate_size mlp_dim ffn_dim",
    "model.vocab_size": "vocab_size",
    "model.text_length": "max_length max_len context_length max_text_len max_seq_length",
    "model.dropout": "drop_rate hidden_dropout_prob",
    "model.drop_path": "drop_path drop_path_rate",
    "objectives.mlm.rate": "mlm_probability mask_prob mask_rate mlm_prob",
    "objectives.mim.rate": "mask_ratio",
    "objectives.lm.label_smoothing": "label_smoothing",
    "num_beams": "beams beam_size",
    "max_length": "longest max_new_tokens",
    "vocabulary": "vocab vocab_file tokenizer_path",
}
"""Our settings, and their names in other libraries. For suggestions only: the other names are not accepted."""


SIMILARITY = 0.4
"""Share of letters in common (difflib's ratio) from which a name is suggested."""
MAX_NAMES, MAX_CHARS = 5000, 200  # names that are compared, and characters of each: a folder may have millions of files


def nearest_names(name: str, known: Iterable[str], max_names: int = 1, similarity: float = SIMILARITY) -> list[str]:
    """The names of `known` most similar to `name`, the nearest first; case, "_" and "-" are ignored."""
    spelled: dict[str, str] = {}
    for candidate in islice(known, MAX_NAMES):
        spelled.setdefault(_letters(candidate), candidate)
    return [spelled[match] for match in get_close_matches(_letters(name), list(spelled), max_names, similarity)]


def _letters(name: str) -> str:
    return re.sub("[_-]", "", name[:MAX_CHARS]).lower()


def suggest_name(name: str, known: Iterable[str], max_names: int = 1) -> str:
    """``"; did you mean …?"`` with the names nearest to `name`; ``""`` if none is near.

    A name of other characters than letters, digits and ``._-*/`` is quoted, so that none acts on a terminal.
    """
    near = [each if re.fullmatch(r"[\w.*/-]+", each) else repr(each) for each in nearest_names(name, known, max_names)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def suggest_setting(name: str, known: Sequence[str]) -> str:
    """``"; did you mean …?"`` for a setting, or its flag, that does not exist.

    In this order: settings that other libraries call by this name, settings that end in it, and the nearest spelling.
    """
    same = _same_meaning(bare(name), known) or _same_meaning(bare(name).rpartition(".")[2], known)
    if not same:
        return suggest_name(name, known)
    return f"; did you mean {' or '.join(same[:3])}?"


def _same_meaning(name: str, known: Sequence[str]) -> list[str]:
    """The settings of `known` that other libraries call `name`, else those whose last part is `name`."""
    same = [setting for setting in known if name in OTHER_NAMES.get(bare(setting), "").split()]
    return same or [setting for setting in known if bare(setting).rpartition(".")[2] == name]


def bare(flag: str) -> str:
    """The name of a setting without the dashes of its flag."""
    return flag.removeprefix("--").replace("-", "_").lower()
