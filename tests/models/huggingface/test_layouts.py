"""Import from Hugging Face's and JAX's layouts gives the same outputs.

Hugging Face's ViLT has one eps for all its norms (1e-12 by default); ours has 1e-12 in the text embedding and 1e-6 in
the transformer. Both are set to 1e-6 for the comparison.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.checkpoints.adapter import infer_image_num_heads
from diptych.checkpoints.read import WeightsError
from diptych.models.clip import checkpoint as clip
from diptych.models.importing import OfficialCheckpoint, load_official

VIT = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=4,
    layer_norm_eps=1e-6,
)  # fmt: skip
VILT = VIT | dict(vocab_size=50, max_position_embeddings=8, modality_type_vocab_size=2, max_image_length=-1)
EPS = 1e-6


def hugging_face(model: str) -> Any:
    """The transformers module with the classes of a model."""
    return pytest.importorskip(f"transformers.models.{model}.modeling_{model}")


def random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def imported(system: str, state: dict[str, Tensor], folder: Path) -> OfficialCheckpoint:
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, folder / "hf.safetensors")
    return load_official(system, folder / "hf.safetensors", num_heads=3)


def ours(imported_model: OfficialCheckpoint) -> Any:
    """The training step with Hugging Face's single eps in every norm except those of classifiers."""
    step = imported_model.build().eval()
    for name, module in step.named_modules():
        if isinstance(module, nn.LayerNorm) and not name.startswith("head."):
            module.eps = EPS
    return step


def as_saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-6)


@pytest.mark.parametrize("naming", ["in memory", "as saved"])
@pytest.mark.parametrize("head", [False, True])
@torch.no_grad()
def test_vit_from_hugging_face(tmp_path: Path, naming: str, head: bool):
    hf = hugging_face("vit")

    kind = hf.ViTForImageClassification if head else hf.ViTModel
    theirs = random(kind(hf.ViTConfig(**VIT, num_labels=7)))
    if naming == "as saved":
        imported_model = load_official("vit", as_saved(theirs, tmp_path), num_heads=3)
    else:
        imported_model = imported("vit", theirs.state_dict(), tmp_path)
    assert imported_model.task == ("classification" if head else "encoder")
    assert imported_model.ignored.keys() == (set() if head else {"pooler.dense.weight", "pooler.dense.bias"})
    step, pixels = ours(imported_model), torch.randn(2, 3, 16, 16)
    if head:
        assert close(step.model.classify(Image.from_full(pixels)), theirs(pixels).logits)
    else:
        assert close(step.model.encode_image(Image.from_full(pixels)).to_padded(), theirs(pixels).last_hidden_state)


def vilt_inputs(num_images: int = 1) -> tuple[Text, list[Image], dict[str, Tensor]]:
    """Texts of different lengths; images that are not square, so that positions are resized."""
    torch.manual_seed(1)
    lengths = torch.tensor([[8], [3], [5]])
    real = torch.arange(8) < lengths
    text = Text(torch.randint(1, 50, (3, 8)) * real, real)
    pixels = torch.randn(3, num_images, 3, 12, 24)
    inputs = {"input_ids": text.ids, "attention_mask": real.long(), "pixel_values": pixels, "pixel_mask": None}
    inputs["pixel_mask"] = torch.ones(3, 12, 24) if num_images == 1 else torch.ones(3, num_images, 12, 24)
    if num_images == 1:
        inputs["pixel_values"] = pixels[:, 0]
    return text, [Image.from_full(pixels[:, i]) for i in range(num_images)], inputs  # type: ignore[return-value]


@pytest.mark.parametrize("prefix", ["", "vilt."])
@torch.no_grad()
def test_vilt_from_hugging_face(tmp_path: Path, prefix: str):
    hf = hugging_face("vilt")

    theirs = random(hf.ViltModel(hf.ViltConfig(**VILT)))
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    imported_model = imported("vilt", state, tmp_path)
    assert (imported_model.task, imported_model.heads) == ("encoder", [])
    text, (image,), inputs = vilt_inputs()
    model = ours(imported_model).model
    pair, expected = model.fuse(model.encode_text(text), model.encode_image(image)), theirs(**inputs)
    assert close(pair.text.to_padded()[text.mask], expected.last_hidden_state[:, :8][text.mask])
    assert close(pair.pooled, expected.pooler_output)


@torch.no_grad()
def test_vilt_s_heads_from_hugging_face(tmp_path: Path):
    hf = hugging_face("vilt")

    text, (image,), inputs = vilt_inputs()

    def pooled(step: Any) -> Tensor:
        return step.model.fuse(step.model.encode_text(text), step.model.encode_image(image)).pooled

    theirs = random(hf.ViltForQuestionAnswering(hf.ViltConfig(**VILT, num_labels=9)))
    imported_model = load_official("vilt", as_saved(theirs, tmp_path / "vqa"), num_heads=3)
    step = ours(imported_model)
    assert (imported_model.task, imported_model.heads) == ("vqa", ["head"])
    assert close(step.head(pooled(step)), theirs(**inputs).logits)

    theirs = random(hf.ViltForImageAndTextRetrieval(hf.ViltConfig(**VILT)))
    imported_model = load_official("vilt", as_saved(theirs, tmp_path / "rank"), num_heads=3)
    step = ours(imported_model)
    assert (imported_model.task, imported_model.heads) == ("retrieval", ["rank"])
    assert close(step.rank(pooled(step)), theirs(**inputs).logits[:, 0])

    theirs = random(hf.ViltForMaskedLM(hf.ViltConfig(**VILT)))
    imported_model = load_official("vilt", as_saved(theirs, tmp_path / "words"), num_heads=3)
    step = ours(imported_model)
    assert (imported_model.task, imported_model.heads) == ("pretraining", ["heads.mlm"])
    words = step.model.fuse(step.model.encode_text(text), step.model.encode_image(image)).text.to_padded()
    assert close(step.heads["mlm"](words)[text.mask], theirs(**inputs).logits[text.mask])

    config = hf.ViltConfig(**VILT | {"modality_type_vocab_size": 3}, num_images=2, num_labels=2)
    theirs = random(hf.ViltForImagesAndTextClassification(config))
    imported_model = load_official("vilt", as_saved(theirs, tmp_path / "nlvr2"), num_heads=3)
    step = ours(imported_model)
    assert (imported_model.task, imported_model.arguments["num_images"]) == ("nlvr2", 2)
    text, images, inputs = vilt_inputs(2)
    tokens = step.model.encode_text(text)
    pairs = tuple(
        step.model.fuse(tokens, step.model.encode_image(image).with_image_index(slot))
        for slot, image in enumerate(images)
    )
    assert close(step.logits(pairs), theirs(**inputs).logits)


def test_a_projection_without_its_key_is_named(tmp_path: Path):
    hf = hugging_face("vilt")

    state = hf.ViltModel(hf.ViltConfig(**VILT)).state_dict()
    del state["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(WeightsError, match=r"missing weights: transformer\.blocks\.1\.attn\.key\.weight"):
        imported("vilt", state, tmp_path)


def test_two_weights_with_one_official_name_raise(tmp_path: Path):
    hf = hugging_face("vilt")
    state = hf.ViltModel(hf.ViltConfig(**VILT)).state_dict()
    state["vilt.layernorm.weight"] = state["layernorm.weight"]
    with pytest.raises(WeightsError, match=r"layernorm\.weight is there twice"):
        imported("vilt", state, tmp_path)


def flax(state: dict[str, Tensor], num_heads: int) -> dict[str, np.ndarray]:
    """A state under timm's names as the JAX code (vision_transformer) saves it in .npz files."""
    width = state["cls_token"].shape[-1]
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(sum(name.endswith("norm1.weight") for name in state)):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for a, b in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}/{b}/scale"], arrays[f"{theirs}/{b}/bias"] = (
                state[f"{ours}.{a}.weight"],
                state[f"{ours}.{a}.bias"],
            )
        for a, b in (("mlp.fc1", "MlpBlock_3/Dense_0"), ("mlp.fc2", "MlpBlock_3/Dense_1")):
            arrays[f"{theirs}/{b}/kernel"], arrays[f"{theirs}/{b}/bias"] = (
                state[f"{ours}.{a}.weight"].T,
                state[f"{ours}.{a}.bias"],
            )
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for part, weight, bias in zip(
            ("query", "key", "value"),
            state[f"{ours}.attn.qkv.weight"].chunk(3),
            state[f"{ours}.attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            arrays[f"{attention}/{part}/kernel"] = weight.T.reshape(width, num_heads, -1)
            arrays[f"{attention}/{part}/bias"] = bias.reshape(num_heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(num_heads, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def test_vit_from_jax_has_its_number_of_heads_and_equals_timm_s(tmp_path: Path, vit_folder: Path):
    state = torch.load(vit_folder / "checkpoint.pth", weights_only=True)
    np.savez(tmp_path / "vit.npz", **flax(state, 4))  # type: ignore[arg-type]
    imported_model, expected = (
        load_official("vit", tmp_path / "vit.npz"),
        load_official("vit", vit_folder / "checkpoint.pth", 4),
    )
    assert imported_model.arguments == expected.arguments
    assert imported_model.state.keys() == expected.state.keys()
    assert all(torch.equal(imported_model.state[name], expected.state[name]) for name in expected.state)


def test_a_jax_file_with_unknown_weights_or_shapes_raises(tmp_path: Path, vit_folder: Path):
    arrays = flax(torch.load(vit_folder / "checkpoint.pth", weights_only=True), 4)
    np.savez(tmp_path / "vit.npz", **(arrays | {"extra/kernel": np.zeros((48, 48), np.float32)}))  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="unexpected weights: extra/kernel"):
        load_official("vit", tmp_path / "vit.npz")
    arrays["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "vit.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="shapes fit no layout"):
        load_official("vit", tmp_path / "vit.npz")


@pytest.mark.parametrize(
    ("dim", "num_heads"), [(192, 3), (768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16), (1792, 16)]
)
def test_published_widths_have_their_published_heads(dim: int, num_heads: int):
    """ViT-H, -g, -G and -e have heads wider than 64; a text tower of 1280 (CLIP bigG's) has 20."""
    for heads in (None, num_heads // 2 or 1):
        assert infer_image_num_heads(dim, {"heads": heads}, "num_heads", "heads") == (heads or num_heads)
    image = {
        "visual.conv1.weight": torch.empty(dim, 3, 2, 2, device="meta"),
        "visual.positional_embedding": torch.empty(5, dim, device="meta"),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": torch.empty(8, dim, device="meta"),
    }
    assert clip.image_shape(image, {})["num_heads"] == num_heads
    text = {
        "token_embedding.weight": torch.empty(9, 1280, device="meta"),
        "positional_embedding": torch.empty(5, 1280, device="meta"),
        "transformer.resblocks.0.mlp.c_fc.weight": torch.empty(8, 1280, device="meta"),
        "text_projection": torch.empty(1280, 4, device="meta"),
    }
    assert clip.text_shape(text, {})["text_num_heads"] == 20
