"""Answer decoders of ALBEF and BLIP: added to a pre-trained model for open-ended VQA, and initialised from its weights.

Source: ALBEF, section 5, and BLIP, section 5.3, with their official code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from diptych.models.albef.config import ALBEFConfig
from diptych.models.blip.config import BLIPConfig
from diptych.models.configs import Model, has_answer_decoder, model_name
from diptych.utils.state_dict import named_weights

DECODERS = ("answer_words.", "answer_head.", "decoder.")
"""Prefixes of the weights of an answer decoder, in the models."""
ALBEF_SOURCES = {"answer_words.": ("model.words.",), "answer_head.": ("heads.mlm.",)}
"""Where ALBEF's embedding and head are initialised from, by prefix; layer i from layer i of the multimodal encoder."""


def with_answer_decoder(config: Model) -> Model:
    """The settings of a model with an answer decoder; unchanged if it has one.

    ALBEF's decoder is as deep as its multimodal encoder, BLIP's as its text encoder.

    Raises:
        ValueError: the model is neither an ALBEF of one image nor a BLIP.
    """
    if has_answer_decoder(config):
        return config
    if isinstance(config, ALBEFConfig) and config.num_images == 1:
        return replace(config, decoder_depth=config.fusion_depth)
    if isinstance(config, BLIPConfig) and config.variant in ("pretraining", "retrieval"):
        return replace(config, variant="vqa")
    raise ValueError(
        f"expected an ALBEF of one image, or a BLIP with a text encoder of one image, got a {model_name(config)}"
    )


def decoder_weights(model: nn.Module, pretrained: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Initial weights of a model's answer decoder, as far as `pretrained` has none of its own.

    ALBEF: each layer from the layer of the multimodal encoder, the word embedding from the encoder's, the head from
    that of MLM. BLIP: from the text decoder of pre-training, and from the text encoder what both share there.

    Args:
        model: with the decoder, whose random weights are kept where nothing of the same shape can initialise them.
        pretrained: the weights of the run, heads too, by name.

    Returns:
        The weights by name in the model, and the names of those that remain random.
    """
    weights: dict[str, Tensor] = {}
    random: list[str] = []
    for name, initial in named_weights(model).items():
        if not name.startswith(DECODERS) or f"model.{name}" in pretrained:
            continue
        candidates = (pretrained[source] for source in _sources(name) if source in pretrained)
        source = next((one for one in candidates if one.shape == initial.shape), None)
        weights[name] = initial if source is None else source.clone()
        if source is None:
            random.append(name)
    return weights, random


def _sources(name: str) -> list[str]:
    """Names in a pre-training run that can initialise a weight of the decoder, the best first.

    Where word embeddings are frozen features of another width, the output vectors of the MLM head initialise the
    decoder's, since they are tied.
    """
    for prefix, sources in ALBEF_SOURCES.items():
        if name.startswith(prefix):
            found = [source + name.removeprefix(prefix) for source in sources]
            return [*found, "heads.mlm.decoder.weight"] if name == "answer_words.word.weight" else found
    part, layer, *rest = name.removeprefix("decoder.").split(".")
    if part.isdigit():  # ALBEF
        return [f"model.fusion.{part}.0.{'.'.join([layer, *rest])}"]
    return [f"model.encoder.{name.removeprefix('decoder.')}"]  # BLIP
