"""diptych capfilt DATA --captioner RUN --filter RUN --out DIR [--against DATA] [--FIELD VALUE ...]

Filters the captions of a dataset and generates new ones (CapFilt; BLIP, section 3.3). The same command, given again,
continues an interrupted run.

Examples:
  diptych capfilt 'shards-{000..009}.tar' --captioner runs/blip --filter runs/blip --out clean
  diptych capfilt coco/ --filter runs/clip --min_cosine 0.25 --out clean
  diptych capfilt 'shards-{000..009}.tar' --filter runs/blip --against flickr8k/ --leaks drop --out clean
  diptych capfilt 'shards-{000..009}.tar' --captioner runs/blip --filter runs/blip --scored clean \\
                  --min_itm 0.7 --out strict
  torchrun --nproc-per-node 4 -m diptych capfilt 'shards-{000..009}.tar' --filter runs/blip --out clean

  DATA             tar shards, or other data as for pretrain
  --captioner RUN  a run trained with the objective lm or masked_captions; without it no caption is generated
  --filter RUN     a run trained with itm, itc or both; without it no caption is dropped. May be the same run
  --out DIR        gets a tar for each shard (for other data, one for --shard_size images), decisions.jsonl with every
                   pair (kept, re-captioned, dropped or skipped, with scores and reason), similar.jsonl, skipped.jsonl
                   and report.html
  --against DATA   images that must not be in the training data, such as a test set; --leaks drop removes them
  --scored DIR     take captions and scores from an earlier run on the same data. Only the decisions may then differ
                   (--min_itm, --min_cosine, --synthetic, --duplicate_cosine, --duplicates, --leaks); takes seconds

Under torchrun the processes share the shards; the output does not depend on their number.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diptych.cli.arguments import apply_overrides, pop_folder, pop_positional, show_help, wants_help
from diptych.config.capfilt import CapFilt
from diptych.inference.saved_model import check_saved
from diptych.runs.check_inputs import check_data
from diptych.utils.terminal import echo


def capfilt_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(CapFilt(), "capfilt DATA --out DIR", __doc__, positionals=("data",))
    data, out = pop_positional(args, "the data (tar shards, a folder or a file)"), pop_folder(args)
    config = replace(CapFilt(), data=data)
    config = apply_overrides(config, args, "capfilt", positionals=("data",))
    check_data(config.data, config.layout)
    if config.against:
        check_data(config.against)
    for run in filter(None, (config.captioner, config.filter)):
        check_saved(Path(run))
    from diptych.capfilt.run import capfilt

    counts = capfilt(config, out)
    if not counts:  # not the main process
        return
    for name, count in counts.items():
        echo(f"{name:28} {count:,}")
    if not counts["images out"]:
        echo("no image is left: no caption is over its threshold; see the report's scores, and lower it with --scored")
    echo(out / "report.html")
