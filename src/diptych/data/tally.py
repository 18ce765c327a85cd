"""What was skipped on the way to a batch, and the share of bad samples at which a run stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diptych.data.source import DataError, Skipped
from diptych.inputs import Batch


@dataclass(frozen=True)
class Loaded:
    """A batch, and what was skipped on the way to it."""

    batch: Batch
    skipped: tuple[Skipped, ...] = ()
    cursor: Mapping[str, list[int]] = field(default_factory=dict)  # where a stream stands behind it, lane by lane


class Tally:
    """Counts bad samples, and stops the run where they are more than `limit` of all."""

    def __init__(self, limit: float = 0.01):
        self.limit = limit
        self.seen = self.bad = 0
        self.listed: dict[int, Skipped] = {}  # each bad sample once, however many epochs meet it

    def add(self, samples: int, skipped: Sequence[Skipped]) -> None:
        """Counts good samples and bad ones, and checks, leniently while fewer than 1,000 were seen. Raises DataError."""
        self.listed |= {s.id: s for s in skipped}
        self.bad += len(skipped)
        self.seen += samples + len(skipped)
        self.check(least=1000)

    def check(self, least: int = 1) -> None:
        """Raises DataError, with the head of the list, where the share of bad samples is over the limit."""
        if self.bad > self.limit * max(self.seen, least):
            head = "; ".join(f"{s.where}: {s.why}" for s in list(self.listed.values())[:5])
            raise DataError(
                f"{self.bad} of {self.seen} samples could not be used, more than {self.limit:.1%} "
                f"(first: {head}); repair the data, or raise --max_skipped (a share)"
            )
