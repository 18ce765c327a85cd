"""ITC against a hand computation, averaged over heads, and over ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.modules.heads import ITCHead, LogScale
from diptych.modules.tokens import Span, Tokens
from diptych.objectives.contrastive_logits import contrast_logits
from diptych.objectives.gather import all_gather
from diptych.objectives.itc import ITCLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views


class TwoReadouts(nn.Module):
    """A model whose pooled features are its inputs (pixels and word ids), and their negatives."""

    def encode_image(self, image: Image) -> Tokens:
        values = image.pixels[:, None, 0, 0]
        return Tokens.from_padded(values, torch.ones(values.shape[:2], dtype=torch.bool), Span("image", "cls", 1))

    def encode_text(self, text: Text) -> Tokens:
        return Tokens.from_padded(text.ids[:, None].float(), text.mask[:, :1], Span("text", "cls", 1))

    def pooled_features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        return tokens.first(), -tokens.first()


def views_of(b: int = 5, dim: int = 4, seed: int = 0) -> Views:
    torch.manual_seed(seed)
    heads = nn.ModuleDict({name: ITCHead(dim, dim, 3, LogScale()) for name in ("itc", "other")})
    text = Text(torch.randint(1, 9, (b, dim)), torch.ones(b, dim, dtype=torch.bool))
    batch = Batch(0, 0, torch.arange(b), image=Image.from_full(torch.randn(b, 1, 1, dim)), text=text)
    return Views(TwoReadouts(), heads, batch, KeyedChoices(batch))


def by_hand(image: Tensor, text: Tensor, scale: float) -> float:
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(image)):
        for a, b in ((image, text), (text, image)):
            logits = [scale * float(a[i] @ b[j]) for j in range(len(b))]
            total += math.log(sum(map(math.exp, logits))) - logits[i]
    return total / 2


def test_itc_is_the_mean_over_directions_and_heads():
    views = views_of()
    losses = {}
    for branch, (name, sign) in enumerate((("itc", 1), ("other", -1))):
        head = views.heads[name]
        assert isinstance(head, ITCHead)
        pixels, ids = views.image_input.pixels[:, 0, 0], views.text_input.ids.float()
        losses[name] = by_hand(head.image(sign * pixels).detach(), head.text(sign * ids).detach(), 1 / 0.07)
        logits = contrast_logits(views, name, branch)
        assert logits.first == 0 and logits.to_text.shape == (5, 5)
    one = ITCLoss().loss_sums(views)["itc"].item()
    both = ITCLoss(head_names=("itc", "other")).loss_sums(views)["itc"].item()
    assert one == pytest.approx(losses["itc"], rel=1e-5)
    assert both == pytest.approx((losses["itc"] + losses["other"]) / 2, rel=1e-5)


def test_the_sigmoid_loss_has_siglips_scale_and_bias():
    """Zhai et al. 2023, algorithm 1: t' = log 10, b = -10; logits = t · x · y + b; loss = -sum log sigmoid(z · logits)."""
    views = views_of()
    head = views.heads["itc"]
    assert isinstance(head, ITCHead) and head.use_sigmoid() is head
    for offset in (-10.0, 0.5):
        assert head.offset is not None
        with torch.no_grad():
            head.offset.fill_(offset)
        views = Views(TwoReadouts(), views.heads, views.batch, KeyedChoices(views.batch))
        image = head.project_image(views.image_input.pixels[:, 0, 0]).detach()
        text = head.project_text(views.text_input.ids.float()).detach()
        total = 0.0
        for i in range(5):
            for j in range(5):
                logit = 10.0 * float(image[i] @ text[j]) + offset
                total += math.log1p(math.exp(-logit if i == j else logit))
        assert ITCLoss(form="sigmoid").loss_sums(views)["itc"].item() == pytest.approx(total, rel=1e-5)


def test_the_initial_sigmoid_logits_say_that_pairs_do_not_match():
    """With cosines of 0, each pair's logit is the bias, -10: mismatched pairs cost almost nothing, matched ones 10."""
    head = ITCHead(4, 4, 3, LogScale()).use_sigmoid()
    torch.testing.assert_close(head.logits(torch.tensor([[0.0, 1.0]]), head.scale()), torch.tensor([[-10.0, 0.0]]))


def test_chance_loss_is_ln_of_the_number_of_candidates():
    floor = ITCLoss().chance_loss({"candidates": 64})
    assert floor is not None and floor.value == pytest.approx(math.log(64))
    assert ITCLoss().chance_loss({}) is None


def _on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = torch.arange(6.0).view(3, 2)[:2] if rank == 0 else torch.arange(6.0).view(3, 2)[2:]
    rows.requires_grad_()
    gathered, first = all_gather(rows)
    (gathered * (rank + 1) * torch.arange(1.0, 4)[:, None]).sum().backward()
    torch.save((gathered.detach(), first, rows.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_gathered_rows_of_two_ranks_equal_one_batch_with_gradients(tmp_path: Path):
    """Unequal parts, two rows and one. Each row's gradient is summed over the ranks that use it."""
    mp.spawn(_on_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    for rank, (first, weights) in enumerate(((0, [1.0, 2.0]), (2, [3.0]))):
        gathered, at, gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert at == first
        assert torch.equal(gathered, torch.arange(6.0).view(3, 2))
        assert torch.equal(gradient, 3 * torch.tensor(weights)[:, None].expand(-1, 2))
