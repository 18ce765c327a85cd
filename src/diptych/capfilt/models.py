"""Runs in their parts: one that writes captions, one that judges them, and what tells whether two images are one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.batch import Batch
from diptych.capfilt.shards import Opened
from diptych.config.capfilt import Bootstrap
from diptych.config.data import ImageSettings
from diptych.config.run import Evaluation
from diptych.data.images.loading import Shows, showing, shown_in
from diptych.data.loader import sweep
from diptych.data.regions.frozen_features import Seen, SeenGrids
from diptych.data.sources.base import BadSample, Captioned
from diptych.generation import Beams, Rules, beam_search, greedy, sample
from diptych.modules.heads import Contrast
from diptych.modules.tokens import Tokens
from diptych.protocols import Aligns, Decodes, Fuses
from diptych.runs.evaluate import restored
from diptych.runs.feature_extractors import frozen_cnn, remembered
from diptych.runs.run_folder import RunError, read_run
from diptych.runs.scoring.base import Subject
from diptych.runs.scoring.retrieval import comparison
from diptych.runs.tokenizer import tokenizer_of
from diptych.tasks.retrieval import judged
from diptych.utils.rng import uniform

SPEAK = {"lm", "captions", "caption"}  # losses that teach to write
CNN_PICTURES = ImageSettings(shorter=224, square=True)


@dataclass(frozen=True)
class Readable:
    """Some pictures of a source as a run is shown them, those that cannot be read left out of their batch; `ids` are
    indices into the source.
    """

    source: Captioned
    indices: Sequence[int]
    shows: Shows

    def __len__(self) -> int:
        return len(self.indices)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> tuple[int, Any] | None:
        try:
            return self.indices[index], self.shows.load(self.source, self.indices[index], None)
        except BadSample:
            return None

    def collate(self, loaded: list[tuple[int, Any] | None], ids: Sequence[int], seed: int, step: int) -> Batch:
        kept = [one for one in loaded if one is not None]
        batch = Batch(seed, step, torch.tensor([index for index, _ in kept], dtype=torch.long))
        return shown_in(batch, self.shows.stack([picture for _, picture in kept])) if kept else batch


def read(
    opened: Opened, shows: ImageSettings | Shows, asked: Bootstrap, device: torch.device, tick: Callable[[int], None]
) -> Iterator[tuple[list[int], Batch]]:
    """The pictures that can be read, some at a time, with their indices; `tick` is told of all."""
    food = Readable(opened.source, opened.images, showing(shows))
    for at, loaded in enumerate(sweep(food, asked.batch, workers=asked.workers)):
        batch = loaded.batch.to(device)
        if len(batch):
            yield batch.ids.tolist(), batch
        tick(min(asked.batch, len(food) - at * asked.batch))


def subject(folder: Path, asked: Bootstrap, device: torch.device) -> Subject:
    """The run in a folder, which must read pictures and texts. Raises RunError."""
    run, facts = read_run(folder)
    tokenizer_of(run)
    module = restored(folder, run, facts).to(device).eval()
    return Subject(run, facts, module, Evaluation(device=asked.device, precision=asked.precision), device)


class Captioner:
    """A run that writes a caption of each picture. Raises RunError for one that never learned to."""

    def __init__(self, role: Subject, asked: Bootstrap):
        learned: Any = role.module
        if not isinstance(role.model, Decodes) or not SPEAK & set(learned.weights):
            raise RunError(
                f"the captioner is a {type(role.model).__name__} that never learned to write (it learned "
                f"{', '.join(learned.weights)}); give a run with the objective lm or captions"
            )
        self.role, self.asked, self.tokenizer = role, asked, tokenizer_of(role.run)
        known = self.tokenizer.vocabulary
        self.prompt = self.tokenizer.encode([asked.prompt]).ids[:, :-1].to(role.device)  # without the end
        longest = min(asked.longest, self.tokenizer.max_length)
        if not self.prompt.shape[1] < longest:
            raise RunError(
                f"a prompt of {self.prompt.shape[1]} pieces leaves nothing of {longest}; give --longest more"
            )
        repetition = asked.repetition if asked.sampling == "nucleus" else 1.0
        self.rules = Rules(known.sep, known.pad, longest, asked.shortest, repetition)

    def write(self, image: Tokens, unit: str, indices: Sequence[int]) -> list[str]:
        """A caption of each. What is drawn is keyed by (seed, unit, index), so that it is drawn again the same."""
        asked, model, rules = self.asked, self.role.model, self.rules
        prompt = self.prompt.expand(len(image), -1)
        if asked.sampling == "nucleus":
            drawn = uniform(asked.seed, 0, indices, f"caption of {unit}", rules.longest)
            draws = torch.from_numpy(drawn).float().to(self.role.device)
            ids = sample(model, image, prompt, rules, draws, asked.nucleus)
        elif asked.sampling == "beams":
            ids = beam_search(model, image, prompt, rules, Beams(asked.beams)).ids
        else:
            ids = greedy(model, image, prompt, rules)
        return [self.tokenizer.decode(row).strip() for row in ids[:, self.prompt.shape[1] :].tolist()]


class Filter:
    """A run that judges texts beside pictures: by its matching head, by its contrast, by both where it learned both.

    Raises RunError for one that learned neither, or has contrast alone where no cosine was asked for.
    """

    def __init__(self, role: Subject, asked: Bootstrap):
        learned: Any = role.module
        self.role, self.tokenizer = role, tokenizer_of(role.run)
        self.match = learned.heads["match"] if isinstance(role.model, Fuses) and "itm" in learned.weights else None
        self.compare = comparison(role)
        if self.match is None and self.compare is None:
            raise RunError(
                f"the filter is a {type(role.model).__name__} that never learned what belongs together (it learned "
                f"{', '.join(learned.weights)}); give a run with the objective itm or itc"
            )
        if self.match is None and asked.cosine_over <= -1:
            raise RunError(
                "the filter has no matching head, only contrast; give --cosine_over, the cosine to be passed"
            )

    def judge(self, image: Tokens, texts: list[str], owner: Tensor) -> list[dict[str, float]]:
        """The probability of a match and the cosine of each text beside the picture `owner` of the batch."""
        if not texts:
            return []
        text = self.role.model.encode_text(self.tokenizer.encode(texts).to(self.role.device))
        which, owner = torch.arange(len(texts), device=self.role.device), owner.to(self.role.device)
        scores: dict[str, list[float]] = {}
        if self.match is not None:
            match = self.match
            scores["match"] = judged(
                self.role.model, lambda pooled: match(pooled).float().softmax(1)[:, 1], text, image, which, owner
            ).tolist()
        if self.compare is not None:
            cosines = self.compare.meet(self.compare.image(image), self.compare.text(text))
            scores["cosine"] = cosines.float()[owner, which].tolist()
        return [{name: values[i] for name, values in scores.items()} for i in range(len(texts))]


def readout(role: Subject, image: Tokens) -> Float[Tensor, "b e"]:
    """A unit vector of each picture: its contrast's where that was learned, else the model's own readout, else the mean token."""
    model, learned = role.model, role.module
    if not isinstance(model, Aligns):
        return F.normalize(image.mean().float(), dim=-1)
    found = model.unimodal(image)[0]
    head = learned.heads["contrast"] if hasattr(learned, "heads") and "contrast" in learned.heads else None  # type: ignore[operator,index]
    trained = "itc" in learned.weights or "retrieval" in learned.weights  # type: ignore[operator]
    if isinstance(head, Contrast) and trained:
        return head.of_image(found).float()
    return F.normalize(found.float(), dim=-1)


def cnn_pictures() -> Shows:
    """Pictures as a frozen CNN sees them. Raises ImportError without the extra `cnn`."""
    return SeenGrids(Seen(frozen_cnn().look, frozen_cnn().name, CNN_PICTURES, remembered()))


def cnn_readout(batch: Batch) -> Float[Tensor, "b e"]:
    """A unit vector of each picture: the mean of what the CNN sees in its cells."""
    assert batch.image is not None
    return F.normalize(batch.image.pixels.float().mean((2, 3)), dim=-1)
