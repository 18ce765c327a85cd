"""From a decoder to texts: greedy, nucleus sampling and beam search over the verb `decode`.

Each takes a model that speaks, the context that it speaks of (an image's tokens, or a question's that has met one), and a
prompt ``(b, n)`` of real tokens, the same number for every sample: the first tokens of the texts. Texts are ids ``(b, m)``,
the prompt included, padded behind their end. No gradients.
"""

from diptych.generation.beam_search import BeamConfig, GenerationOutput, beam_search
from diptych.generation.decoding import GenerationConfig, IncrementalDecoder
from diptych.generation.masked import fill_blanks
from diptych.generation.sampling import greedy, sample, top_p_filter

__all__ = [
    "BeamConfig",
    "GenerationConfig",
    "GenerationOutput",
    "IncrementalDecoder",
    "beam_search",
    "fill_blanks",
    "greedy",
    "sample",
    "top_p_filter",
]
