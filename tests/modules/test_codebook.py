"""The codebook: k-means initialisation, moving-average updates, reset of dead codes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from diptych.modules.codebook import Codebook


def test_codes_follow_moving_averages_and_dead_codes_are_reset():
    torch.manual_seed(0)
    book = Codebook(4, 2, decay=0.5, patience=2)
    with torch.no_grad():
        book.vectors.copy_(F.normalize(torch.tensor([[1.0, 0.1], [-1.0, 0.0], [0.0, -1.0], [-0.1, -1.0]]), dim=1))
    x = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [-1.0, 0.1]]), dim=1)
    codes = book.nearest(x)
    assert codes.tolist() == [0, 0, 1] and book.unused() == 1.0
    before = book.vectors.clone()
    book.update(book.usage(x, codes), torch.tensor([[0.0, 1.0]]))
    mean = F.normalize(x[:2].sum(0), dim=0)
    torch.testing.assert_close(book.vectors[0], F.normalize(0.5 * before[0] + 0.5 * mean, dim=0))
    assert book.vectors[2].tolist() == [0.0, 1.0], "one of two dead codes is reset: there was one candidate"
    assert torch.equal(book.vectors[3], before[3]) and book.unused() == 0.5
    torch.testing.assert_close(book.frequency, torch.tensor([0.125 + 1 / 3, 0.125 + 1 / 6, 0.125, 0.125]))
    book.update(book.usage(x, codes), torch.tensor([[0.6, 0.8]]))
    assert book.vectors[2].tolist() == [0.0, 1.0], "a reset code has `patience` batches before it is dead again"
    torch.testing.assert_close(book.vectors[3], torch.tensor([0.6, 0.8]))
    assert 0 < book.entropy() < math.log(4)


def test_initialisation_finds_the_clusters_of_the_first_batch():
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(6, 8), dim=1)
    batch = F.normalize(centres.repeat(50, 1) + 0.02 * torch.randn(300, 8), dim=1)[torch.randperm(300)]
    book, again, few = Codebook(24, 8), Codebook(24, 8), Codebook(24, 8)
    random = few.vectors.clone()
    book.initialize(batch)
    again.initialize(batch)
    assert book.begun and torch.equal(book.vectors, again.vectors), "k-means here is deterministic"
    cosine = (centres @ book.vectors.T).amax(1)
    assert (cosine > 0.99).all() and (batch * book.vectors[book.nearest(batch)]).sum(1).min() > 0.98
    few.initialize(batch[:5])
    torch.testing.assert_close(few.vectors[:5].sum(0), batch[:5].sum(0))
    assert torch.equal(few.vectors[5:], random[5:]), "with fewer vectors than codes the others stay random"
