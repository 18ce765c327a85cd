"""From another encoder's word states to vectors of one's own width, in the place of a table of word vectors."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.inputs import Text
from diptych.layers.given import States


class GivenWords(nn.Module):
    """What another encoder says of each piece, projected linearly: it can stand where a model looks up its words
    (``model.text.word = GivenWords(512, source)``) and adds what else it knows of them, as GivenText can where it embeds.

    `source` that is no Module is frozen and not saved; its states are `features` wide. `pad`: the id of padding, which is
    not read. A model that guesses the next word must be given a source that does not read ahead. `before`: whether what it
    says of a piece depends on those before it, so that a text that grows must be read from its beginning each time.
    """

    def __init__(
        self,
        width: int,
        source: States,
        features: int = 384,
        pad: int = 0,
        dropout: float = 0.0,
        before: bool = False,
    ):
        super().__init__()
        self.source, self.pad, self.before = source, pad, before
        self.project = nn.Linear(features, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return self.dropout(self.project(self.source(Text(ids, ids != self.pad)).to(self.project.weight)))
