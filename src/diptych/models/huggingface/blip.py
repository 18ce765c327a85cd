"""Conversion between BLIP and Hugging Face's classes for captioning, VQA and retrieval, in both directions.

They compute the same with the config written here, which overrides two defaults: eps 1e-6 in the image encoder (default
1e-5) and label smoothing 0.1 (default none). The LM head is tied to the word embedding in both.

Differs, whatever the config: they use the first token of a text unchanged, where the official code puts [DEC] or
[ENC]; texts end at id 102, BERT's [SEP]; the VQA loss is a mean over tokens without the weights of the answers;
images are square; the answer decoder attends to the padding of a batch's shorter questions, whatever the mask
(transformers 5.23; the official code does so in generation, but not in training or ranking); and the decoder's
cross-attention has the width of the image tokens, though a VQA decoder attends to the question, so that VQA can be
exported only if both have the same width. Their retrieval class has no momentum model, queue or temperature: its
weights are imported as "matching", the official BLIP_ITM.
"""

from __future__ import annotations

from torch import Tensor

from diptych.checkpoints.adapter import Arguments, Exported, State, config_of, count_layers, square_side
from diptych.checkpoints.huggingface.rules import hf_activation
from diptych.checkpoints.mapping import KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.read import WeightsError
from diptych.models.blip.config import LABEL_SMOOTHING, BLIPConfig

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
    """Hugging Face's names of the image encoder, and the official ones; text names are the same in both."""
    blocks = {
        f"encoder.layers.{i}.{theirs}": f"blocks.{i}.{name}" for i in range(depth) for theirs, name in BLOCK.items()
    }
    return KeyMapping(prefixed(IMAGE, "visual_encoder.", OUTSIDE | blocks))


def official(state: State) -> dict[str, Tensor]:
    """A state of one of Hugging Face's classes under official names. Raises WeightsError for unknown names."""
    names = _image(count_layers(state, f"{IMAGE}encoder.layers", "layer_norm1.weight"))
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(IMAGE)}
    return rest | names.from_official({name: tensor for name, tensor in state.items() if name not in rest})


def blip(arguments: Arguments, task: str, official: State) -> Exported:
    """The export to Hugging Face's class for the task.

    Raises:
        WeightsError: there is no class for the task, or it does not support these sizes.
    """
    if task not in CLASSES:
        raise WeightsError(f"transformers has no class for BLIP's {task}; there are: {', '.join(CLASSES)}")
    sizes = vars(config_of(BLIPConfig, arguments))
    if task == "vqa" and sizes["image_dim"] != sizes["dim"]:
        raise WeightsError(
            f"Hugging Face's {CLASSES[task]} needs equal widths of image and text tokens; "
            f"this model has image_dim {sizes['image_dim']} and dim {sizes['dim']}"
        )
    side = square_side(sizes["grid"], "BLIP")
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
        "label_smoothing": LABEL_SMOOTHING,
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
    vision = {name: tensor for name, tensor in official.items() if name.startswith("visual_encoder.")}
    named = _image(sizes["image_depth"]).to_official(vision)
    named |= {name: tensor for name, tensor in official.items() if name.startswith(TEXTS)}
    left_out = dict.fromkeys(n.partition(".")[0] for n in official if n not in vision and n not in named)
    return config, named, [f"{part} ({_reason(part)})" for part in left_out]


def _reason(part: str) -> str:
    """Why a part of an official checkpoint is not exported."""
    if part.endswith("_m"):
        return "the momentum model, needed only to continue training"
    return "the temperature: their class returns plain cosines" if part == "temp" else "the momentum model's queue"
