"""Weights that are cast once give the values that autocast gives."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from diptych.modules.block import PostNormBlock, PreNormBlock
from diptych.modules.precision import CastWeights
from diptych.modules.tokens import Span, Tokens

BF16 = torch.autocast("cpu", torch.bfloat16)


class Encoder(nn.Module):
    """A stack of blocks, and a head, whose weights stay fp32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([PreNormBlock(8, 2, 16), PostNormBlock(8, 2, 16)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = Tokens.from_padded(x, torch.ones(x.shape[:2], dtype=torch.bool), Span("text", "words", x.shape[1]))
        for block in self.blocks:
            tokens = block(tokens)
        with torch.autocast("cpu", enabled=False):
            return self.head(tokens.first().float())


def qkv(encoder: Encoder, block: int) -> nn.Linear:
    return cast(nn.Linear, encoder.blocks[block].get_submodule("attention.qkv"))


def test_weights_are_cast_once_and_again_after_a_change():
    encoder, x = Encoder().eval().requires_grad_(False), torch.randn(2, 3, 8)
    weights = CastWeights(encoder)
    with BF16:
        wanted = encoder(x)
    for _ in range(2):
        with BF16, weights.used("cpu"):
            assert torch.equal(encoder(x), wanted)
            first = qkv(encoder, 0).weight
            assert first.dtype == torch.bfloat16 and encoder.head.weight.dtype == torch.float32
    assert qkv(encoder, 0).weight.dtype == torch.float32
    with BF16, weights.used("cpu"):
        assert qkv(encoder, 0).weight is first, "cast once"
    for parameter in encoder.parameters():
        parameter.mul_(1.5)
    with BF16:
        changed = encoder(x)
    with BF16, weights.used("cpu"):
        assert torch.equal(encoder(x), changed) and not torch.equal(changed, wanted)
    qkv(encoder, 0).weight = nn.Parameter(torch.zeros(24, 8), requires_grad=False)
    with BF16:
        changed = encoder(x)
    with BF16, weights.used("cpu"):
        assert torch.equal(encoder(x), changed), "a new parameter"


def test_own_weights_come_back_after_an_error_and_outside_autocast_nothing_is_cast():
    encoder = Encoder().requires_grad_(False)
    before, weights = copy.deepcopy(encoder.state_dict()), CastWeights(encoder)
    with pytest.raises(ZeroDivisionError), BF16, weights.used("cpu"), weights.used("cpu"):
        assert encoder.state_dict()["blocks.0.attention.qkv.weight"].dtype == torch.bfloat16
        raise ZeroDivisionError
    for name, value in encoder.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])
    with weights.used("cpu"):
        assert qkv(encoder, 0).weight.dtype == torch.float32


def test_weights_that_get_gradients_are_left_to_autocast():
    encoder, x = Encoder(), torch.randn(2, 3, 8)
    encoder.blocks[1].requires_grad_(False)
    with BF16, CastWeights(encoder).used("cpu"):
        assert qkv(encoder, 0).weight.dtype == torch.float32
        assert qkv(encoder, 1).weight.dtype == torch.bfloat16
        loss = encoder(x).sum()
    loss.backward()
    assert qkv(encoder, 0).weight.grad is not None
    assert qkv(encoder, 1).weight.grad is None


def by_fused_optimizer(encoder: nn.Module) -> None:
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(encoder.parameters(), lr=0.1, fused=True).step()


def in_data(encoder: nn.Module) -> None:
    for parameter in encoder.parameters():
        parameter.data.mul_(1.5)


def by_new_data(encoder: nn.Module) -> None:
    for parameter in encoder.parameters():
        parameter.data = 1.5 * parameter.data


@pytest.mark.parametrize("change", [by_fused_optimizer, in_data, by_new_data])
@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_changes_that_autograd_does_not_count(
    change: Callable[[nn.Module], None], without_gradients: Callable[[], torch.no_grad]
):
    encoder, x = Encoder().eval(), torch.randn(2, 3, 8)
    weights = CastWeights(encoder)
    with without_gradients(), BF16, weights.used("cpu"):
        before = encoder(x).clone()
    change(encoder)
    with torch.no_grad(), BF16:
        wanted = encoder(x)
    with torch.no_grad(), BF16, weights.used("cpu"):
        assert torch.equal(encoder(x), wanted) and not torch.equal(wanted, before)


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        encoder, x = Encoder().eval(), torch.randn(2, 3, 8)
        with BF16:
            wanted = encoder(x)
        with BF16, CastWeights(encoder).used("cpu"):
            assert torch.equal(encoder(x), wanted)


def test_a_thread_that_leaves_first_takes_no_weight_from_another():
    encoder = Encoder().requires_grad_(False)
    weights, inside, leave = CastWeights(encoder), threading.Event(), threading.Event()

    def other() -> None:
        with torch.autocast("cpu", torch.bfloat16), weights.used("cpu"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with BF16, weights.used("cpu"):
        thread.start()
        assert inside.wait(10)
    assert qkv(encoder, 0).weight.dtype == torch.bfloat16
    leave.set()
    thread.join()
    assert qkv(encoder, 0).weight.dtype == torch.float32
    copied = copy.deepcopy(weights)
    assert copied._layers[0] is not weights._layers[0]
