"""While tests run, every function of diptych checks the types and shapes of its arguments and results."""

from __future__ import annotations

import inspect

import pytest
import torch
from jaxtyping import TypeCheckError

from diptych.modules.similarity import cosine
from diptych.utils.feature_cache import KEY_BYTES, digest


def test_an_argument_of_the_wrong_type_is_an_error():
    assert len(digest("a")) == KEY_BYTES
    with pytest.raises(TypeError, match="parameter"):
        digest(3)  # type: ignore[arg-type]


def test_shapes_are_compared_between_arguments():
    assert cosine(torch.ones(2, 3), torch.ones(4, 3)).shape == (2, 4)
    with pytest.raises(TypeCheckError):
        cosine(torch.ones(2, 3), torch.ones(4, 5))


def test_annotations_stay_as_they_were_written():
    assert inspect.signature(digest).return_annotation == "bytes"
    assert inspect.signature(cosine).return_annotation == "Float[Tensor, 'i t']"
