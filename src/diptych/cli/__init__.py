"""The command line. Help is answered before torch, or anything slow, is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from diptych import __version__
from diptych.utils.terminal import MOST_REFUSAL, echo, echo_exception, printable

COMMANDS = {
    "pretrain": "pre-train a recipe: diptych pretrain vilt.small --data DATA --out DIR",
    "finetune": "fine-tune on a task: diptych finetune vqa --from DIR --data DATA --out DIR2",
    "evaluate": "score a run: diptych evaluate DIR --task retrieval --data DATA --split val",
    "capfilt": "clean captions and write new ones: diptych capfilt SHARDS --captioner RUN --filter RUN --out DIR",
    "corrupt-captions": "deal a share of the captions to other images: diptych corrupt-captions DATA --share 0.5 --out DIR",
    "train-tokenizer": "learn the pieces that texts are cut into: diptych train-tokenizer DATA --size 8000 --out FILE.txt",
    "baselines": "what guessing reaches without looking: diptych baselines --task vqa --data DATA --split val",
    "benchmark": "what every system learns from the same data: diptych benchmark --data DATA --out DIR",
    "import": "official weights to a run folder: diptych import vilt CKPT --out DIR",
    "export": "a run's weights in official or Hugging Face layout: diptych export DIR --to official --out FILE",
    "info": "parameters, FLOPs, tokens and published figures: diptych info vilt",
    "estimate": "memory, hours and what bounds them, before a run: diptych estimate vilt.base --gpus 8xA100",
    "demo": "pre-train, fine-tune and score a tiny VLMo on the built-in world",
}
MODULES = {"import": "weights", "export": "weights"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit status. Refusals are one line and status 2, unless --debug asks for the traceback."""
    sys.excepthook = echo_exception
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        echo(usage())
        return 0
    if arguments[0] == "--version":
        echo(f"diptych {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return refuse(f"there is no command {name!r}{hint} (diptych --help lists them)")
    module = name.replace("-", "_")
    debug = "--debug" in rest
    rest = [word for word in rest if word != "--debug"]
    from diptych.cli.refusal import expected, sentence
    from diptych.training.signals import terminated_as_interrupted

    try:
        with terminated_as_interrupted(), _failing_reports_raise(debug):
            return getattr(import_module(f"diptych.cli.{MODULES.get(name, module)}"), f"{module}_command")(rest) or 0
    except KeyboardInterrupt:
        return refuse("interrupted; what was written before stands", 130)
    except Exception as error:
        if debug or not expected(error):
            raise
        return refuse(sentence(error))


@contextmanager
def _failing_reports_raise(debug: bool) -> Iterator[None]:
    """With --debug an error in making a report is raised, where it is otherwise one printed line."""
    if not debug:
        yield
        return
    from diptych.runs.report import debugging

    before = debugging.set(True)
    try:
        yield
    finally:
        debugging.reset(before)


def refuse(sentence: str, status: int = 2) -> int:
    echo(printable(f"diptych: {' '.join(sentence.split())}", MOST_REFUSAL), error=True)
    return status


def usage() -> str:
    lines = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    return f"diptych {__version__}, a vision-language workbench\n\n{lines}\n\ndiptych COMMAND --help says more."
