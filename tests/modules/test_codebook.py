"""How a codebook begins, learns and revives."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from diptych.modules.codebook import Codebook


def test_a_codebook_follows_means_and_revives_what_nobody_asked_for():
    torch.manual_seed(0)
    book = Codebook(4, 2, decay=0.5, patience=2)
    with torch.no_grad():
        book.vectors.copy_(F.normalize(torch.tensor([[1.0, 0.1], [-1.0, 0.0], [0.0, -1.0], [-0.1, -1.0]]), dim=1))
    x = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [-1.0, 0.1]]), dim=1)
    found = book.nearest(x)
    assert found.tolist() == [0, 0, 1] and book.unused() == 1.0
    before = book.vectors.clone()
    book.update(book.usage(x, found), torch.tensor([[0.0, 1.0]]))
    mean = F.normalize(x[:2].sum(0), dim=0)
    torch.testing.assert_close(book.vectors[0], F.normalize(0.5 * before[0] + 0.5 * mean, dim=0))
    assert book.vectors[2].tolist() == [0.0, 1.0], "one of two dead codes, as there was one to begin anew as"
    assert torch.equal(book.vectors[3], before[3]) and book.unused() == 0.5
    torch.testing.assert_close(book.frequency, torch.tensor([0.125 + 1 / 3, 0.125 + 1 / 6, 0.125, 0.125]))
    book.update(book.usage(x, found), torch.tensor([[0.6, 0.8]]))
    assert book.vectors[2].tolist() == [0.0, 1.0], "it has two batches to be asked for"
    torch.testing.assert_close(book.vectors[3], torch.tensor([0.6, 0.8]))
    assert 0 < book.entropy() < math.log(4)


def test_a_codebook_begins_as_what_the_first_batch_gathers_round():
    torch.manual_seed(0)
    corners = F.normalize(torch.randn(6, 8), dim=1)
    seen = F.normalize(corners.repeat(50, 1) + 0.02 * torch.randn(300, 8), dim=1)[torch.randperm(300)]
    book, again, few = Codebook(24, 8), Codebook(24, 8), Codebook(24, 8)
    drawn = few.vectors.clone()
    book.initialize(seen)
    again.initialize(seen)
    assert book.begun and torch.equal(book.vectors, again.vectors), "nothing of it is drawn"
    likeness = (corners @ book.vectors.T).amax(1)
    assert (likeness > 0.99).all() and (seen * book.vectors[book.nearest(seen)]).sum(1).min() > 0.98
    few.initialize(seen[:5])
    torch.testing.assert_close(few.vectors[:5].sum(0), seen[:5].sum(0))
    assert torch.equal(few.vectors[5:], drawn[5:]), "there was nothing for them to begin as"
