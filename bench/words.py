"""Time and memory of a vocabulary's cross-entropy, all at once and in chunks of rows: `python -m bench.words`

The rows of one step of a captioner: the target tokens of 256 captions of Flickr8k, with 30,522 classes. "padded" is
the same with the padding of a batch of captions, which a captioner that scores every position computes too.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.objectives.cross_entropy import chunked_cross_entropy


def at_once(head: nn.Linear, rows: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(head(rows), words, reduction="sum")


def chunked(head: nn.Linear, rows: Tensor, words: Tensor) -> Tensor:
    return chunked_cross_entropy(head, rows, words)[0]


def once(loss: Callable[[nn.Linear, Tensor, Tensor], Tensor], head: nn.Linear, rows: Tensor, words: Tensor) -> float:
    head.zero_grad()
    rows.grad = None
    began = time.perf_counter()
    loss(head, rows, words).backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3300)
    parser.add_argument("--canvas", type=int, default=6400)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    head = nn.Linear(options.width, options.vocabulary, bias=False)
    rows = torch.randn(options.canvas, options.width)
    words = torch.randint(options.vocabulary, (options.canvas,))
    words[options.rows :] = -100
    few, targets = rows[: options.rows].clone().requires_grad_(), words[: options.rows]
    ways = {
        "in chunks": lambda: once(chunked, head, few, targets),
        "all at once": lambda: once(at_once, head, few, targets),
        "all at once, padded": lambda: once(at_once, head, rows.requires_grad_(), words),
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    for way, run in ways.items():  # the peak only grows: least first
        run()
        print(f"{way}: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB", flush=True)
    for _ in range(options.rounds):  # side by side
        for way, run in ways.items():
            took[way].append(run())
    for way, times in took.items():
        print(f"{way}: {statistics.median(times):.2f} s (median of {options.rounds})")


if __name__ == "__main__":
    main()
