"""Settings of the commands that use a trained model on photographs: caption, answer, score, predict, embed."""

from __future__ import annotations

from typing import Annotated, Literal

from diptych.config.validation import Fraction, MaxLength, NumBeams, Range, Samples, Text, settings


@settings()
class PhotoCommand:
    """What the commands share."""

    out: str = ""  # JSON Lines file; empty: standard output
    batch_size: Samples = 16  # photographs computed at a time
    device: Text = "auto"  # "auto" prefers cuda, then mps, then cpu
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 autocast where it is faster, else fp32


@settings()
class CaptionPhotos(PhotoCommand):
    """Captions of photographs."""

    prompt: str = ""  # first words of every caption: "a picture of" for BLIP's fine-tuned captioner
    num_beams: NumBeams = 3  # beam search: beam size
    top_p: Fraction = 0.0  # nucleus sampling: probability mass to sample from; 0: beam search
    num_captions: Annotated[int, Range(1, 1024)] = 1  # captions of each photograph
    max_length: MaxLength = 30  # maximum tokens of a caption, start and end tokens and prompt included


@settings()
class AnswerQuestion(PhotoCommand):
    """Answers to one question about photographs."""

    candidates: str = ""  # possible answers, a,b,c, or a file with one a line; empty: the model's own answers


@settings()
class ScoreTexts(PhotoCommand):
    """Scores of how well texts match photographs."""

    texts: str = ""  # file with one text a line, in place of the text on the command line


@settings()
class PredictTask(PhotoCommand):
    """Outputs, for photographs, of the task that a model was fine-tuned for."""


@settings()
class Embed(PhotoCommand):
    """Embeddings of photographs or texts."""

    texts: str = ""  # file with one text a line, in place of photographs
    out: str = ""  # .npz, .npy or .safetensors file
    batch_size: Samples = 64  # photographs or texts computed at a time


@settings()
class GroundPhrases:
    """The box in a photograph that a phrase refers to."""

    out: str = ""  # PNG file: the photograph with the boxes; empty: the boxes are printed
    map: bool = False  # with --out: overlay the map of the phrase (Grad-CAM)
    method: Literal["", "itm", "itc"] = ""  # Grad-CAM of the ITM or ITC score; empty: ITM if the model has it
    layer: Annotated[int, Range(-1, 1000)] = -1  # Grad-CAM: layer whose attention is explained; -1: the default
    device: Text = "auto"  # "auto" prefers cuda, then mps, then cpu
