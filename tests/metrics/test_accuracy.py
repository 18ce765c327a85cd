import pytest
import torch

from diptych.metrics.accuracy import binary, top1


def test_top1_counts_rows():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert top1(scores, torch.tensor([1, 0, 0, 0])) == 0.75


def test_binary_reads_logits_and_counts_the_threshold_as_no():
    scores = torch.tensor([2.0, -1.0, 0.0, 0.5])
    assert binary(scores, torch.tensor([True, False, False, False])) == 0.75
    assert binary(scores, torch.tensor([True, False, False, False]), threshold=0.5) == 1.0


@pytest.mark.parametrize("scores", [torch.empty(0), torch.tensor([float("nan")])])
def test_nothing_to_measure_is_refused(scores):
    with pytest.raises(ValueError, match="empty or hold NaN"):
        binary(scores, torch.ones(len(scores), dtype=torch.bool))
    with pytest.raises(ValueError, match="empty or hold NaN"):
        top1(scores[:, None], torch.zeros(len(scores), dtype=torch.long))
