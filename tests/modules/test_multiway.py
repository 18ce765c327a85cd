"""Modality experts: which expert processes which token, against a loop over samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diptych.modules.multiway import ModalityFFN, MoMEBlock, MoMEFusion, prefix_causal_mask
from diptych.modules.pool import Pooler
from diptych.modules.position import RelativePositions
from diptych.modules.tokens import Layout, Span, Tokens, packing

WIDTH, HEADS, GRID, LENGTH = 8, 2, (2, 2), 6


def text_and_image(text_length: int = 4) -> tuple[Tokens, Tokens]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(text_length) < torch.tensor([4, 2])[:, None]
    words = torch.randn(2, text_length, WIDTH, generator=generator, dtype=torch.float64)
    text = Tokens.from_padded(words, mask, Span("text", "cls", 1), Span("text", "words", text_length - 1))
    patches = torch.randn(2, 5, WIDTH, generator=generator, dtype=torch.float64)
    mask = torch.ones(2, 5, dtype=torch.bool)
    image = Tokens.from_padded(patches, mask, Span("image", "cls", 1), Span("image", "patches", 4, grid=GRID))
    return text, image


def transformer(vl_start_layer: int = 2, depth: int = 3, relative: bool = True) -> MoMEFusion:
    torch.manual_seed(0)
    blocks = nn.ModuleList(MoMEBlock(WIDTH, HEADS, 16, i >= vl_start_layer, 0.5) for i in range(depth))
    positions = RelativePositions(depth, HEADS, GRID, LENGTH) if relative else None
    model = MoMEFusion(blocks, nn.LayerNorm(WIDTH), Pooler(WIDTH), positions).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    return model


def block_by_loop(block: MoMEBlock, x: Tensor, experts: list[nn.Module], bias: Tensor | None) -> Tensor:
    """The block for one unpadded sample (n, d), given the expert of each token."""
    attention = block.attention
    first, second = block.add_attended.scale, block.add_fed.scale
    assert attention.query_bias is not None and attention.value_bias is not None
    assert first is not None and second is not None
    weights = attention.qkv.weight.chunk(3)
    q, k, v = (block.norm(x) @ w.T for w in weights)
    q, v = q + attention.query_bias, v + attention.value_bias
    heads = []
    for h, columns in enumerate(torch.arange(WIDTH).chunk(HEADS)):
        scores = q[:, columns] @ k[:, columns].T / len(columns) ** 0.5
        scores = scores if bias is None else scores + bias[h]
        heads.append(scores.softmax(1) @ v[:, columns])
    x = x + first * attention.out(torch.cat(heads, 1))
    return x + second * torch.stack([expert(token) for expert, token in zip(experts, x, strict=True)])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.filterwarnings("ignore:attention with a mask or bias")
def test_fusion_uses_modality_experts_first_and_vision_language_experts_last(packed: bool, relative: bool):
    model = transformer(relative=relative)
    with packing(packed):
        text, image = text_and_image()
    pair = model(text, image)
    both = Tokens.concat(text, image)
    biases = [None] * 3 if model.positions is None else model.positions(both.layout)
    for i, (words, patches) in enumerate(zip(*(samples(side) for side in (text, image)), strict=True)):
        x, columns = torch.cat([words, patches]), both.mask[i].nonzero().squeeze(1)
        for block, bias in zip(model.blocks, biases, strict=True):
            assert isinstance(block, MoMEBlock)
            experts: list[nn.Module] = [block.modality_ffn.text] * len(words) + [block.modality_ffn.image] * len(
                patches
            )
            if block.vl_ffn is not None:
                experts = [block.vl_ffn] * len(x)
            x = block_by_loop(block, x, experts, None if bias is None else bias[:, columns][:, :, columns])
        x = model.norm(x)
        torch.testing.assert_close(samples(pair.text)[i], x[: len(words)])
        torch.testing.assert_close(samples(pair.image)[i], x[len(words) :])
        torch.testing.assert_close(pair.pooled[i], model.pooler(x[:1])[0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.filterwarnings("ignore:attention with a mask or bias")
def test_one_modality_runs_through_both_kinds_of_experts_from_the_first_block_with_both(packed: bool):
    model = transformer(vl_start_layer=1)
    with packing(packed):
        sides = text_and_image()
    for tokens in sides:
        unimodal, fused = model.forward_unimodal_and_fused(tokens)
        assert torch.equal(unimodal.values, model.encode_unimodal(tokens).values)
        assert model.positions is not None
        biases = model.positions(tokens.layout)
        x = model.blocks[0](tokens, biases[0])
        for block, bias in zip(list(model.blocks)[1:], biases[1:], strict=True):
            x = block(x, bias, fused=True)
        torch.testing.assert_close(fused.values, model.norm(x.values))
        assert not torch.allclose(fused.values, unimodal.values)


def test_without_vision_language_experts_both_outputs_are_equal():
    text, _ = text_and_image()
    unimodal, fused = transformer(vl_start_layer=3).forward_unimodal_and_fused(text)
    assert torch.equal(unimodal.values, fused.values)


def test_an_expert_processes_its_modality_only():
    text, image = text_and_image()
    experts = ModalityFFN(nn.Linear(WIDTH, 3).double(), nn.Linear(WIDTH, 3).double())
    both = experts(Tokens.concat(text, image))
    torch.testing.assert_close(both.select("text").values, experts.text(text.values))
    torch.testing.assert_close(both.select("image").values, experts.image(image.values))
    torch.testing.assert_close(experts(image).values, experts.image(image.values))


def samples(tokens: Tokens) -> list[Tensor]:
    return list(tokens.pack().values.split(tokens.layout.lengths))


def test_the_causal_mask_lets_images_attend_to_images_and_words_to_earlier_words():
    text = Layout(torch.ones(1, 2, dtype=torch.bool), (Span("text", "words", 2),))
    image = Layout(torch.ones(1, 3, dtype=torch.bool), (Span("image", "patches", 3),))
    assert prefix_causal_mask(text, image).int().tolist() == [
        [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1],
    ]  # fmt: skip
