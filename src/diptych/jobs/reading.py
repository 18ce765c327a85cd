"""What a run's model can read."""

from __future__ import annotations

from diptych.data.wordpiece import BERT, SCENES, Tokenizer, bundled, vocabulary
from diptych.jobs.folder import RunError
from diptych.recipes.models import Seeing, longest_text, pieces
from diptych.recipes.run import Finetune, Pretrain


def tokenizer_of(run: Pretrain | Finetune) -> Tokenizer:
    """From texts to the pieces that the run's model reads: those of the bundled vocabulary of its size.

    Raises RunError where it reads none, or other ones.
    """
    if isinstance(run.model, Seeing):
        raise RunError(f"a {type(run.model).__name__} reads no text; this needs a model that reads text and image")
    known = bundled(pieces(run.model))
    if known is None:
        there = " or ".join(f"the {vocabulary(name).size:,} pieces of {name}" for name in (BERT, SCENES))
        raise RunError(
            f"model.vocabulary is {run.model.vocabulary}, but texts come in {there}; such a model can be imported and "
            "compared, not trained or scored on texts"
        )
    return Tokenizer(longest_text(run.model), known)
