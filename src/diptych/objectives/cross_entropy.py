"""Targets that a teacher softens: what a momentum model says is mixed into what the data say (ALBEF, section 3.3).

The loss of a vocabulary's scores, without ever holding all of them: docs/decisions/0010-words-some-at-a-time.md
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diptych.modules.heads import MLMHead


class SoftTargets(NamedTuple):
    """A teacher's logits, believed to the share `alpha`."""

    logits: Float[Tensor, "*n classes"]
    alpha: float


def soft_cross_entropy(
    logits: Float[Tensor, "*n classes"], targets: Float[Tensor, "*n classes"]
) -> Float[Tensor, "*n"]:
    """Cross entropy with a distribution for each row."""
    return -(logits.float().log_softmax(-1) * targets).sum(-1)


def distilled_loss(
    hard: Float[Tensor, ""], logits: Float[Tensor, "n classes"], soft: SoftTargets | None
) -> Float[Tensor, ""]:
    """(1 − α) · the sum of losses by the labels + α · that by what the teacher says (ALBEF, eq. 7); `hard` without one."""
    if soft is None:
        return hard
    taught = soft_cross_entropy(logits, soft.logits.detach().float().softmax(-1)).sum()
    return (1 - soft.alpha) * hard + soft.alpha * taught


AT_ONCE = 256
"""Rows scored together: the fastest of 64 to 1,024 on a CPU, of 192 channels; 31 MB of scores at 30,522 words."""


def chunked_cross_entropy(
    head: MLMHead | nn.Linear, rows: Float[Tensor, "t d"], words: Int[Tensor, " t"], smoothing: float = 0.0
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The sum of the rows' cross entropies, each with its word as `head` scores it, and how often the word is the likeliest.
    `smoothing`: the labels' share that is spread evenly over all words, this one too.

    What no later step needs is never kept: a row's scores become their gradient at once, some rows at a time, as language
    models do it (Wijmans et al. 2024; Hsu et al. 2024). So memory does not grow with rows times vocabulary. The gradient of a
    gradient is not known.
    """
    if isinstance(head, MLMHead):
        rows, weight, bias = head.last(rows), head.words.weight, head.bias
    else:
        weight, bias = head.weight, head.bias
    kind = rows.device.type
    if torch.is_autocast_enabled(kind):  # products as a linear layer would have them; what is added to them stays exact
        low = torch.get_autocast_dtype(kind)
        rows, weight = rows.to(low), weight.to(low)
    with torch.autocast(kind, enabled=False):
        return _Losses.apply(rows, weight, bias, words, smoothing, torch.is_grad_enabled())  # type: ignore[no-any-return]


def output_layer(head: nn.Module) -> MLMHead | nn.Linear:
    """The head, of a kind whose scores can be taken some at a time. Raises TypeError."""
    if not isinstance(head, MLMHead | nn.Linear):
        raise TypeError(f"words are scored by a Vocabulary or a linear layer, not by a {type(head).__name__}")
    return head


def vocab_size_of(head: MLMHead | nn.Linear) -> int:
    """How many words it scores."""
    return (head.words if isinstance(head, MLMHead) else head).out_features


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, words: Tensor, smoothing: float, learning: bool
    ) -> tuple[Tensor, Tensor]:
        asked = [learning and needed for needed in ctx.needs_input_grad[:3]]
        exact = torch.promote_types(rows.dtype, torch.float32)
        loss, right = rows.new_zeros((), dtype=exact), words.new_zeros(())
        of_rows = torch.empty_like(rows) if asked[0] else None
        of_weight = torch.zeros_like(weight, dtype=exact) if asked[1] else None
        of_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and asked[2] else None
        for at in range(0, len(rows), AT_ONCE):
            here, true = rows[at : at + AT_ONCE], words[at : at + AT_ONCE, None]
            scores = (here @ weight.T).to(exact)
            if bias is not None:
                scores += bias
            best, which = scores.max(1, keepdim=True)
            right += (which == true).sum()
            scores -= best
            labels = (1 - smoothing) * scores.gather(1, true).sum()
            if smoothing:
                labels += smoothing * scores.mean(1).sum()
            p = scores.exp_()
            mass = p.sum(1, keepdim=True)
            loss += mass.log().sum() - labels
            if not any(asked):
                continue
            error = p.div_(mass).sub_(smoothing / p.shape[1])
            error.scatter_add_(1, true, torch.full_like(mass, smoothing - 1))
            if of_bias is not None:
                of_bias += error.sum(0)
            error = error.to(rows.dtype)
            if of_rows is not None:
                of_rows[at : at + AT_ONCE] = error @ weight
            if of_weight is not None and exact == rows.dtype:
                torch.addmm(of_weight, error.T, here, out=of_weight)
            elif of_weight is not None:
                of_weight += error.T @ here
        ctx.save_for_backward(of_rows, of_weight, of_bias)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = (None if g is None else g * of_loss for g in ctx.saved_tensors)
        return (*found, None, None, None)
