"""BLIP and Hugging Face's classes for captions, questions and retrieval, both ways.

They compute the same from the config written here, which sets what their defaults have otherwise: eps 1e-6 in the image
encoder (1e-5 by default) and label smoothing 0.1 (none). The word head repeats the embedding in both.

Known differences that no config removes: they take a text's first token as it is given, where the official code puts
[DEC] or [ENC]; texts end at id 102, BERT's [SEP]; VQA's loss is a mean over pieces without the answers' weights; pictures
are square; the answers' decoder reads the padding behind a batch's shorter questions, whatever mask it is given
(transformers 5.23; the official code does so when it generates, not when it trains or ranks); and the decoder's keys and
values are as wide as the picture's tokens, though a VQA decoder reads the question's, so that VQA has a place there only
where both are of one width. Their retrieval class has no momentum model, queue or temperature: what it holds comes back
as "matching", the official BLIP_ITM.
"""

from __future__ import annotations

from inspect import signature

from torch import Tensor

from diptych.checkpoints.adapter import Arguments, Exported, State, count, square
from diptych.checkpoints.huggingface.rules import hf_activation
from diptych.checkpoints.mapping import KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.read import WeightsError
from diptych.models.blip.checkpoint import SMOOTHING
from diptych.models.blip.model import BLIP

CLASSES = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "retrieval": "BlipForImageTextRetrieval",
    "matching": "BlipForImageTextRetrieval",
}
IMAGE, TEXTS = "vision_model.", ("text_encoder.", "text_decoder.", "vision_proj.", "text_proj.", "itm_head.")
OUTSIDE = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    **weight_and_bias("embeddings.patch_embedding", "patch_embed.proj"),
    **weight_and_bias("post_layernorm", "norm"),
}
BLOCK = {
    **weight_and_bias("layer_norm1", "norm1"),
    **weight_and_bias("self_attn.qkv", "attn.qkv"),
    **weight_and_bias("self_attn.projection", "attn.proj"),
    **weight_and_bias("layer_norm2", "norm2"),
    **weight_and_bias("mlp.fc1", "mlp.fc1"),
    **weight_and_bias("mlp.fc2", "mlp.fc2"),
}
SEP = 102


def _image(depth: int) -> KeyMapping:
    """Their names of the image encoder, and the official ones; the text's are the official ones."""
    blocks = {
        f"encoder.layers.{i}.{theirs}": f"blocks.{i}.{name}" for i in range(depth) for theirs, name in BLOCK.items()
    }
    return KeyMapping(prefixed(IMAGE, "visual_encoder.", OUTSIDE | blocks))


def official(state: State) -> dict[str, Tensor]:
    """A state of one of their classes under official names. Raises WeightsError naming what has no place."""
    names = _image(count(state, f"{IMAGE}encoder.layers", "layer_norm1.weight"))
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(IMAGE)}
    return rest | names.from_official({name: tensor for name, tensor in state.items() if name not in rest})


def blip(arguments: Arguments, task: str, official: State) -> Exported:
    """For the class of the task. Raises WeightsError where there is none, or it cannot hold a model of these sizes."""
    if task not in CLASSES:
        raise WeightsError(f"transformers has no class for BLIP's {task}; there are: {', '.join(CLASSES)}")
    sizes = {name: p.default for name, p in signature(BLIP).parameters.items()} | dict(arguments)
    if task == "vqa" and sizes["image_dim"] != sizes["dim"]:
        raise WeightsError(
            f"in Hugging Face's {CLASSES[task]} questions are as wide as pictures: one with pictures of "
            f"{sizes['image_dim']} and texts of {sizes['dim']} has no place there"
        )
    side = square(sizes["grid"], "BLIP")
    image = {
        "model_type": "blip_vision_model",
        "hidden_size": sizes["image_dim"],
        "num_hidden_layers": sizes["image_depth"],
        "num_attention_heads": sizes["image_num_heads"],
        "intermediate_size": sizes["image_mlp_dim"],
        "image_size": side * sizes["patch_size"],
        "patch_size": sizes["patch_size"],
        "layer_norm_eps": sizes["image_eps"],
        "hidden_act": hf_activation(sizes["image_activation"]),
        "attention_dropout": 0.0,
    }
    text = {
        "model_type": "blip_text_model",
        "hidden_size": sizes["dim"],
        "encoder_hidden_size": sizes["image_dim"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": sizes["mlp_dim"],
        "vocab_size": sizes["vocab_size"],
        "max_position_embeddings": sizes["text_length"],
        "layer_norm_eps": sizes["eps"],
        "hidden_act": hf_activation(sizes["activation"]),
        "hidden_dropout_prob": sizes["dropout"],
        "attention_probs_dropout_prob": 0.0,
        "label_smoothing": SMOOTHING,
        "bos_token_id": sizes["bos_token_id"],
        "eos_token_id": SEP,
        "sep_token_id": SEP,
        "pad_token_id": 0,
    }
    config = {
        "model_type": "blip",
        "architectures": [CLASSES[task]],
        "image_text_hidden_size": sizes["embed_dim"],
        "tie_word_embeddings": True,
        "vision_config": image,
        "text_config": text,
    }
    pictures = {name: tensor for name, tensor in official.items() if name.startswith("visual_encoder.")}
    named = _image(sizes["image_depth"]).to_official(pictures)
    named |= {name: tensor for name, tensor in official.items() if name.startswith(TEXTS)}
    left = dict.fromkeys(n.partition(".")[0] for n in official if n not in pictures and n not in named)
    return config, named, [f"{part} ({_why(part)})" for part in left]


def _why(part: str) -> str:
    """Why a part of an official checkpoint has no place in their classes."""
    if part.endswith("_m"):
        return "the momentum model, by which alone training goes on"
    return "the temperature: their class gives cosines as they are" if part == "temp" else "the momentum model's queue"
