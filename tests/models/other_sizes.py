"""Examples of checkpoints with unusual sizes: systems of one encoder or one stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Arguments = dict[str, Any]


@dataclass
class Example:
    """A checkpoint to generate and import. `heads`: shapes of the task's heads by our weight names."""

    system: str
    task: str
    arguments: Arguments
    config: Arguments
    heads: dict[str, tuple[int, ...]] = field(default_factory=dict)


def none(*names: str) -> dict[str, tuple[int, ...]]:
    """Heads whose sizes follow from the model's."""
    return {f"heads.{name}.": (1,) for name in names}


VIT: list[tuple[Arguments, Arguments]] = [
    ({"dim": 24, "depth": 3, "num_heads": 1, "mlp_dim": 56, "patch_size": 4, "grid": (3, 5)},
     {"num_heads": 1, "img_size": [12, 20], "patch_size": 4}),
    ({"dim": 30, "depth": 11, "num_heads": 6, "mlp_dim": 33, "patch_size": 3, "grid": (2, 2)}, {"num_heads": 6}),
]  # fmt: skip


def vits() -> list[Example]:
    (first, one), (second, two) = VIT
    decoder = {"decoder_dim": 20, "decoder_depth": 1, "decoder_num_heads": 5, "decoder_mlp_dim": 20}
    other = {"decoder_dim": 12, "decoder_depth": 3, "decoder_num_heads": 1, "decoder_mlp_dim": 9}
    return [
        Example("vit", "classification", first | {"num_classes": 7, "representation": 0, "pooling": "cls"}, one),
        Example("vit", "classification", second | {"num_classes": 2, "representation": 11, "pooling": "average"}, two),
        Example("vit", "encoder", second | {"num_classes": 0, "representation": 0, "pooling": "cls"}, two),
        Example("mae", "pretraining", first | decoder, one | {"decoder_num_heads": 5}),
        Example("mae", "pretraining", second | {"dim": 36} | other, two | {"decoder_num_heads": 1}),
    ]


def vilts() -> list[Example]:
    examples = []
    for (shape, config), words in zip(
        VIT, ({"vocab_size": 61, "text_length": 5}, {"vocab_size": 35, "text_length": 23}), strict=True
    ):
        official = {"num_attention_heads": shape["num_heads"], "patch_size": shape["patch_size"]}
        official |= {"image_size_of_pos_embed": config["img_size"]} if "img_size" in config else {}
        model, pair = shape | words | {"num_images": 1}, shape | words | {"num_images": 2}
        examples += [
            Example("vilt", "pretraining", model, official, none("itm", "mlm")),
            Example("vilt", "pretraining", model, official, none("itm")),
            Example("vilt", "vqa", model, official, {"head.answers.weight": (13, 2 * shape["dim"])}),
            Example("vilt", "nlvr2", pair, official),
            Example("vilt", "retrieval", model, official),
            Example("vilt", "encoder", model, official),
        ]
    return examples


def vlmos() -> list[Example]:
    first: Arguments = {
        "dim": 24,
        "depth": 3,
        "num_heads": 1,
        "mlp_dim": 50,
        "vl_start_layer": 1,
        "patch_size": 4,
        "grid": (2, 3),
    }
    first |= {
        "vocab_size": 41,
        "text_length": 9,
        "num_images": 1,
        "relative_position": True,
        "layer_scale": 0.1,
        "num_itc_branches": 2,
    }
    one = {"heads": 1, "max_text_len_of_initckpt": 9, "image_size": [8, 12], "patch_size": 4}
    second: Arguments = {
        "dim": 30,
        "depth": 7,
        "num_heads": 6,
        "mlp_dim": 33,
        "vl_start_layer": 6,
        "patch_size": 3,
        "grid": (5, 1),
    }
    second |= {
        "vocab_size": 29,
        "text_length": 17,
        "num_images": 1,
        "relative_position": False,
        "layer_scale": 0.0,
        "num_itc_branches": 2,
    }
    two = {"heads": 6, "max_text_len_of_initckpt": 21, "image_size": [15, 3], "patch_size": 3}
    square = first | {"grid": (4, 4)}
    square_config = one | {"image_size": 16}
    heads = none("itm", "mlm", "itc", "itc_vl")
    examples = [Example("vlmo", "pretraining", square | {"vl_start_layer": 3}, square_config, none("mlm"))]
    pairs: list[tuple[Arguments, Arguments]] = [(first, one), (second, two), (square, square_config)]
    for model, config in pairs:
        examples += [
            Example("vlmo", "pretraining", model, config, heads),
            Example("vlmo", "vqa", model, config, {"head.answers.weight": (5, 2 * model["dim"])}),
            Example("vlmo", "nlvr2", model | {"num_images": 2}, config),
            Example("vlmo", "retrieval", model | {"num_itc_branches": 1}, config),
        ]
    return examples


def recurrent() -> list[Example]:
    first = {"feature_dim": 14, "dim": 10, "vocab_size": 21, "word_dim": 6, "depth": 1}
    second = {"feature_dim": 9, "dim": 22, "vocab_size": 17, "word_dim": 3, "depth": 3}
    return [Example("vsepp", "pretraining", sizes, {"margin": 0.2}) for sizes in (first, second)] + [
        Example("scan", "pretraining", sizes | {"bidirectional": True}, {}) for sizes in (first, second)
    ]


def crossvits() -> list[Example]:
    first = {
        "image_sizes": (20, 18), "patch_sizes": (5, 9), "dims": (18, 20), "num_heads": (3, 1), "mlp_dims": (19, 60),
        "stages": ((2, 1, 3), (1, 3, 0)), "stem": False, "num_classes": 5,
    }  # fmt: skip
    second = {
        "image_sizes": (36, 32), "patch_sizes": (12, 16), "dims": (24, 16), "num_heads": (1, 2), "mlp_dims": (48, 20),
        "stages": ((1, 1, 0),), "stem": True, "num_classes": 2,
    }  # fmt: skip
    return [
        Example(
            "crossvit", "classification", x, {"num_heads": list(x["num_heads"]), "patch_size": list(x["patch_sizes"])}
        )
        for x in (first, second)
    ]


def beits() -> list[Example]:
    examples = []
    for (shape, config), depth in zip(VIT, (3, 5), strict=True):
        official = {"encoder_attention_heads": shape["num_heads"], "special_ids": {"mask": 27}}
        official |= {name: config[name] for name in ("img_size", "patch_size") if name in config}
        model = shape | {"depth": depth, "vocab_size": 28, "text_length": 6, "pooling": "both", "mask_token_id": 27}
        model |= {"final_norm": depth == 3, "num_classes": 0, "with_decoder": False}
        examples += [
            Example(
                "beit3", "vqa", model | {"pooling": "image"}, official, {"head.answers.weight": (9, 2 * shape["dim"])}
            ),
            Example("beit3", "nlvr2", model, official),
            Example("beit3", "classification", model | {"num_classes": 3, "final_norm": False}, official),
            Example("beit3", "captioning", model | {"with_decoder": True}, official),
            Example("beit3", "retrieval", model, official),
        ]
    return examples
