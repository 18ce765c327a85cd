"""Sizes are inferred from files: generated golden folders of every system and task, with unusual sizes.

Odd depths, one head and several, a schedule that is not the last layers, images that are not square. A folder's config
has only what cannot be inferred from shapes, in the format of the published goldens.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.checkpoints.nested_state_dicts import split_by_modality
from diptych.models.importing import ADAPTERS
from diptych.utils.state_dict import tied_weights
from tests.models.other_sizes import VIT, Arguments, Example, beits, crossvits, none, recurrent, vilts, vits, vlmos
from tests.parity.golden_case import read_golden


def vilberts() -> list[Example]:
    first = {
        "dim": 18, "depth": 7, "num_heads": 3, "mlp_dim": 25, "image_dim": 20, "image_depth": 3, "image_num_heads": 1,
        "image_mlp_dim": 31, "coattention_dim": 12, "coattention_num_heads": 2, "schedule": ((1, 0), (3, 1), (5, 2)),
        "feature_dim": 11, "num_region_targets": 8, "vocab_size": 37, "text_length": 13, "num_tasks": 0,
    }  # fmt: skip
    second = first | {
        "dim": 22, "depth": 1, "num_heads": 1, "image_depth": 5, "image_num_heads": 5, "coattention_num_heads": 6,
        "schedule": ((0, 4),), "feature_dim": 9, "num_region_targets": 9,
    }  # fmt: skip
    examples, pretraining = [], ("mlm", "regions", "itm")
    for model in (first, second):
        config = {
            "num_attention_heads": model["num_heads"], "v_num_attention_heads": model["image_num_heads"],
            "bi_num_attention_heads": model["coattention_num_heads"],
            "t_biattention_id": [t for t, _ in model["schedule"]],
            "v_biattention_id": [v for _, v in model["schedule"]],
        }  # fmt: skip
        answers = {"vqa": 14, "gqa": 6, "nlvr2": 2}
        heads = {f"heads.{name}.answers.weight": (n, 1) for name, n in answers.items()}
        heads |= {"heads.entailment.weight": (3, 1)} | none("choice", "grounding", "word", *pretraining)
        examples += [
            Example("vilbert", "pretraining", model, config, none(*pretraining)),
            Example("vilbert", "tasks", model, config, heads),
            Example("vilbert", "tasks", model | {"num_tasks": 4}, config, heads),
        ]
    return examples


IMAGES = [
    ({"image_dim": 18, "image_depth": 3, "image_num_heads": 1, "image_mlp_dim": 40, "patch_size": 4, "grid": (3, 2)},
     {"heads": 1, "image_size": [12, 8], "patch_size": 4}),
    ({"image_dim": 20, "image_depth": 1, "image_num_heads": 5, "image_mlp_dim": 21, "patch_size": 5, "grid": (3, 3)},
     {"heads": 5, "image_size": 15, "patch_size": 5}),
]  # fmt: skip


def albefs() -> list[Example]:
    texts = (
        {
            "dim": 16,
            "text_depth": 1,
            "fusion_depth": 3,
            "num_heads": 2,
            "mlp_dim": 17,
            "vocab_size": 33,
            "text_length": 9,
        },
        {
            "dim": 14,
            "text_depth": 3,
            "fusion_depth": 1,
            "num_heads": 1,
            "mlp_dim": 50,
            "vocab_size": 20,
            "text_length": 31,
        },
    )
    examples = []
    for (image, vision), text, classes in zip(IMAGES, texts, (2, 5), strict=True):
        model = image | text | {"num_images": 1, "decoder_depth": 0}
        config = {"vision": vision, "text": {"num_attention_heads": text["num_heads"]}}
        queue: dict[str, tuple[int, ...]] = {"queue.image": (6 + classes, 11)}
        examples += [
            Example("albef", "pretraining", model | {"embed_dim": 11}, config, queue),
            Example("albef", "retrieval", model | {"embed_dim": 11}, config, queue),
            Example("albef", "entailment", model, config, {"student.head.2.weight": (classes, text["dim"])}),
            Example("albef", "vqa", model | {"decoder_depth": 3}, config),
            Example("albef", "nlvr2", model | {"num_images": 2}, config),
            Example("albef", "assignment", model | {"num_images": 2, "embed_dim": 7}, config),
        ]
    return examples


def blips() -> list[Example]:
    texts = (
        {
            "dim": 16,
            "depth": 5,
            "num_heads": 1,
            "mlp_dim": 17,
            "vocab_size": 33,
            "text_length": 9,
            "bos_token_id": 3,
            "enc_token_id": 30,
        },
        {
            "dim": 14,
            "depth": 1,
            "num_heads": 7,
            "mlp_dim": 50,
            "vocab_size": 20,
            "text_length": 31,
            "bos_token_id": 18,
            "enc_token_id": 19,
        },
    )
    examples = []
    for (image, vision), text in zip(IMAGES, texts, strict=True):
        ids = {"bos_DEC": text["bos_token_id"], "ENC": text["enc_token_id"]}
        config = {"vision": vision, "text": {"num_attention_heads": text["num_heads"]}, "special_ids": ids}
        for task in ("pretraining", "retrieval", "caption", "vqa", "nlvr2"):
            more: Arguments = {"average_image_attention": min(3, text["depth"])} if task == "nlvr2" else {}
            more |= {"embed_dim": 11} if task in ("pretraining", "retrieval") else {}
            examples.append(
                Example("blip", task, image | text | {"variant": task} | more, config, {"queue.image": (7, 11)})
            )
    return examples


def clips() -> list[Example]:
    text = {
        "text_dim": 21,
        "text_depth": 3,
        "text_num_heads": 7,
        "text_mlp_dim": 23,
        "vocab_size": 31,
        "text_length": 5,
    }
    image = VIT[0][0] | {"dim": 128, "num_heads": 2}
    wide = image | {"dim": 96, "num_heads": 1, "grid": (2, 2)}
    config: Arguments = {"transformer_heads": 7, "vision_heads": "vision_width // 64"}
    nested: Arguments = {
        "quick_gelu": False, "vision_cfg": {"head_width": 5, "image_size": [6, 9], "patch_size": 3},
        "text_cfg": {"heads": 7}, "multimodal_cfg": {"heads": 3},
    }  # fmt: skip
    other = VIT[1][0] | {"grid": (2, 3)}
    resnet = {"dim": 8, "depths": (1, 3, 2, 1), "num_heads": 4, "grid": (3, 3)}
    coca = other | text | {
        "num_queries": 4, "pool_num_heads": 7, "decoder_depth": 3, "decoder_num_heads": 3, "decoder_mlp_dim": 15,
        "embed_dim": 21,
    }  # fmt: skip
    pooled = nested | {"vision_cfg": nested["vision_cfg"] | {"attn_pooler_heads": 7}}
    square: Arguments = {
        "vision_cfg": {"head_width": 5, "image_size": 6, "attn_pooler_heads": 1},
        "text_cfg": {"heads": 1},
    }
    square |= {"multimodal_cfg": {"heads": 7}}
    quick = {"embed_dim": 13, "activation": "quick_gelu"}
    one_head = {"grid": (2, 2), "pool_num_heads": 1, "text_num_heads": 1, "decoder_num_heads": 7}
    return [
        Example("clip", "pretraining", image | {"grid": (3, 3)} | text | quick, config),
        Example("clip", "pretraining", wide | text | {"text_num_heads": 1} | quick, config | {"transformer_heads": 1}),
        Example("open_clip", "pretraining", other | text | {"embed_dim": 9, "activation": "gelu"}, nested),
        Example("clip_resnet", "pretraining", resnet | text | quick, config | {"vision_heads": 4}),
        Example("coca", "pretraining", coca | {"activation": "gelu", "pad_token_id": 3}, pooled | {"pad_id": 3}),
        Example("coca", "pretraining", coca | one_head | {"activation": "gelu", "pad_token_id": 0}, square),
    ]


EXAMPLES = [
    *vits(), *vilts(), *vlmos(), *recurrent(), *vilberts(), *crossvits(), *beits(), *albefs(), *blips(), *clips(),
]  # fmt: skip


def random_state(example: Example) -> dict[str, Tensor]:
    """Random weights of a step of these sizes, in our names."""
    heads = {name: torch.empty(shape) for name, shape in example.heads.items()}
    step = ADAPTERS[example.system].build(example.arguments, example.task, heads)
    again = tied_weights(step)
    state = {name: tensor for name, tensor in step.state_dict().items() if name not in again}
    generator = torch.Generator().manual_seed(len(state))
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.quick("*-encoder*", "vit-*", "mae-*", "vsepp*", "clip-*")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.system}-{example.task}")
def test_sizes_and_weights_are_inferred_from_the_files(example: Example, tmp_path: Path):
    state = random_state(example)
    official = ADAPTERS[example.system].names(example.arguments, example.task).to_official(state)
    torch.save(
        {"model": split_by_modality({name: tensor.contiguous() for name, tensor in official.items()})},
        tmp_path / "checkpoint.pth",
    )
    save_file({"out.x": torch.zeros(1)}, tmp_path / "case.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(example.config))
    imported = read_golden(tmp_path).imported
    assert (imported.system, imported.task) == (example.system, example.task)
    assert imported.arguments == example.arguments
    assert imported.state.keys() == state.keys()
    assert all(torch.equal(imported.state[name], tensor) for name, tensor in state.items())
    back = imported.names.to_official(imported.state)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in official.items())
    assert imported.build() is not None


def test_every_system_has_an_example():
    assert {example.system for example in EXAMPLES} == set(ADAPTERS)
