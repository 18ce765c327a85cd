"""Text generation with a decoder: greedy search, nucleus sampling, beam search.

Each function takes a model with a text decoder, the context (tokens of an image, or of a question fused with one), and
a prompt ``(b, n)`` of real tokens, the same number for every sample, with which the texts begin. Returns ids ``(b, m)``
that include the prompt and are padded after the end token. No gradients.
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
