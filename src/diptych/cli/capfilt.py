"""diptych capfilt SHARDS --captioner RUN --filter RUN --out DIR [--against DATA] [--any.field VALUE]

Captions cleaned and written anew (CapFilt: BLIP, section 3.3). SHARDS: tars "shards-{000..003}.tar", or other data
as pretrain takes it; DIR gets a tar for each (of other data one for --shard_size images), decisions.jsonl with every pair (kept,
re-captioned, dropped or skipped, its scores, the reason), similar.jsonl, skipped.jsonl and report.html.
--captioner RUN: a run that learned to write (objective lm or captions). --filter RUN: one that learned to match (itm), to
contrast (itc), or both. Either may be left out; they may be the same.
--against DATA: images that must not be among those to be learned from, such as a test set's; --leaks drop drops them.
--scored DIR: captions and scores are those of an earlier run on the same data; only what is decided about them may differ
(--min_itm, --min_cosine, --synthetic, --duplicate_cosine, --duplicates, --leaks), in another --out and in seconds.
The same command started again goes on where DIR stands. torchrun --nproc-per-node N -m diptych capfilt ... deals the
shards out to N processes; the shards are the same however many there are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diptych.cli.arguments import asks_help, folder, overridden, positional, show_help
from diptych.config.capfilt import CapFilt
from diptych.runs.validate import check_data, check_run_folder
from diptych.utils.terminal import echo


def capfilt_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        return show_help(CapFilt(), "bootstrap SHARDS --out DIR", __doc__, placed=("data",))
    data, out = positional(words, "the shards, or other data"), folder(words)
    asked = overridden(replace(CapFilt(), data=data), words, "capfilt", top=frozenset(), placed=("data",))
    for spec in filter(None, (asked.data, asked.against)):
        check_data(spec)
    for run in filter(None, (asked.captioner, asked.filter)):
        check_run_folder(Path(run))
    from diptych.capfilt.run import capfilt

    told = capfilt(asked, out)
    for name, n in told.items():
        echo(f"{name:28} {n:,}")
    if told and not told["images out"]:
        echo(
            "nothing stays: no caption is over its threshold; see the scores in the report, then give others with --scored"
        )
    if told:
        echo(out / "report.html")
