"""Cross entropy with a teacher's soft targets (ALBEF, section 3.3), and over a vocabulary in chunks of rows.

For why the chunked loss exists see docs/decisions/0010-words-some-at-a-time.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diptych.modules.heads import MLMHead


class SoftTargets(NamedTuple):
    """A teacher's logits, and their weight `alpha` in the targets."""

    logits: Float[Tensor, "*n classes"]
    alpha: float


def soft_cross_entropy(
    logits: Float[Tensor, "*n classes"], targets: Float[Tensor, "*n classes"]
) -> Float[Tensor, "*n"]:
    """Cross entropy of each row with a target distribution."""
    return -(logits.float().log_softmax(-1) * targets).sum(-1)


def distilled_loss(
    hard: Float[Tensor, ""], logits: Float[Tensor, "n classes"], soft: SoftTargets | None
) -> Float[Tensor, ""]:
    """(1 − α) · `hard`, the loss of the labels, + α · the loss of the teacher's targets; without a teacher `hard`.

    Source: ALBEF, equation 7. Losses are summed over rows.
    """
    if soft is None:
        return hard
    distilled = soft_cross_entropy(logits, soft.logits.detach().float().softmax(-1)).sum()
    return (1 - soft.alpha) * hard + soft.alpha * distilled


CHUNK_SIZE = 256
"""Rows per chunk: the fastest of 64 to 1,024 on a CPU with 192 channels; 31 MB of logits at 30,522 words."""


def chunked_cross_entropy(
    head: MLMHead | nn.Linear, rows: Float[Tensor, "t d"], words: Int[Tensor, " t"], smoothing: float = 0.0
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The summed cross entropy of `head`'s logits with the target words, and the number of correct predictions.

    `smoothing`: the share of each label that is spread evenly over all words, the target included.

    Logits are computed a chunk of rows at a time and turned into their gradient at once, so that memory does not grow
    with rows times vocabulary. Not twice differentiable.
    Source: Wijmans et al. 2024; Hsu et al. 2024.
    """
    if isinstance(head, MLMHead):
        rows, weight, bias = head.transform(rows), head.decoder.weight, head.bias
    else:
        weight, bias = head.weight, head.bias
    device_type = rows.device.type
    if torch.is_autocast_enabled(device_type):  # matrix products in low precision, as in nn.Linear; the rest in float32
        rows = rows.to(torch.get_autocast_dtype(device_type))
    with torch.autocast(device_type, enabled=False):
        losses: tuple[Tensor, Tensor] = _Losses.apply(rows, weight, bias, words, smoothing, torch.is_grad_enabled())
    return losses


def output_layer(head: nn.Module) -> MLMHead | nn.Linear:
    """`head`, checked to be one that `chunked_cross_entropy` takes. Raises TypeError."""
    if not isinstance(head, MLMHead | nn.Linear):
        raise TypeError(f"expected an MLMHead or a linear layer over the vocabulary, got {type(head).__name__}")
    return head


def vocab_size_of(head: MLMHead | nn.Linear) -> int:
    """The number of words that `head` gives logits of."""
    return (head.decoder if isinstance(head, MLMHead) else head).out_features


class _Losses(torch.autograd.Function):
    """The chunked loss; `forward` already computes the gradients, for a loss gradient of 1."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, words: Tensor, smoothing: float, grad_enabled: bool
    ) -> tuple[Tensor, Tensor]:
        needs_grad = [grad_enabled and needed for needed in ctx.needs_input_grad[:3]]
        exact = torch.promote_types(rows.dtype, torch.float32)
        weight = weight.to(rows.dtype)  # here, so that its gradient is not rounded to this precision
        loss, correct = rows.new_zeros((), dtype=exact), words.new_zeros(())
        grad_rows = torch.empty_like(rows) if needs_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if needs_grad[1] and not len(rows) else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and needs_grad[2] else None
        for start in range(0, len(rows), CHUNK_SIZE):
            chunk, targets = rows[start : start + CHUNK_SIZE], words[start : start + CHUNK_SIZE, None]
            scores = (chunk @ weight.T).to(exact)
            if bias is not None:
                scores += bias
            best, predicted = scores.max(1, keepdim=True)
            correct += (predicted == targets).sum()
            scores -= best
            labels = (1 - smoothing) * scores.gather(1, targets).sum()
            if smoothing:
                labels += smoothing * scores.mean(1).sum()
            p = scores.exp_()
            mass = p.sum(1, keepdim=True)
            loss += mass.log().sum() - labels
            if not any(needs_grad):
                continue
            error = p.div_(mass).sub_(smoothing / p.shape[1])
            error.scatter_add_(1, targets, torch.full_like(mass, smoothing - 1))
            if grad_bias is not None:
                grad_bias += error.sum(0)
            error = error.to(rows.dtype)
            if grad_rows is not None:
                grad_rows[start : start + CHUNK_SIZE] = error @ weight
            if needs_grad[1] and grad_weight is None:  # the first chunk: no zeros to write and to add to
                grad_weight = (error.T @ chunk).to(exact)
            elif grad_weight is not None and exact == rows.dtype:
                torch.addmm(grad_weight, error.T, chunk, out=grad_weight)
            elif grad_weight is not None:
                grad_weight += error.T @ chunk
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if g is None else g * grad_loss for g in ctx.saved_tensors)
        return (*grads, None, None, None)
