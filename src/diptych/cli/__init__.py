"""The command line. Help is answered before torch, or anything slow, is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from diptych import __version__
from diptych.utils.terminal import MOST_REFUSAL, printable, say, say_exception

COMMANDS = {
    "pretrain": "pre-train a recipe: diptych pretrain vilt.small --data DATA --out DIR",
    "finetune": "fine-tune on a task: diptych finetune vqa --from DIR --data DATA --out DIR2",
    "evaluate": "score a run: diptych evaluate DIR --task retrieval --data DATA --split val",
    "bootstrap": "clean captions and write new ones: diptych bootstrap SHARDS --captioner RUN --filter RUN --out DIR",
    "noise": "deal a share of the captions to other images: diptych noise DATA --share 0.5 --out DIR",
    "vocabulary": "learn the pieces that texts are cut into: diptych vocabulary DATA --size 8000 --out FILE.txt",
    "baselines": "what guessing reaches without looking: diptych baselines --task vqa --data DATA --split val",
    "learn": "what every system learns from the same data: diptych learn --data DATA --out DIR",
    "import": "official weights to a run folder: diptych import vilt CKPT --out DIR",
    "export": "a run's weights in official or Hugging Face layout: diptych export DIR --to official --out FILE",
    "describe": "parameters, FLOPs, tokens and published figures: diptych describe vilt",
    "plan": "memory, hours and what bounds them, before a run: diptych plan vilt.base --gpus 8xA100",
    "demo": "pre-train, fine-tune and score a tiny VLMo on the built-in world",
}
MODULES = {"import": "weights", "export": "weights"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit status. Refusals are one line and status 2, unless --debug asks for the traceback."""
    sys.excepthook = say_exception
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        say(usage())
        return 0
    if arguments[0] == "--version":
        say(f"diptych {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return refuse(f"there is no command {name!r}{hint} (diptych --help lists them)")
    debug = "--debug" in rest
    rest = [word for word in rest if word != "--debug"]
    from diptych.cli.refusal import expected, sentence
    from diptych.training.signals import terminated_as_interrupted

    try:
        with terminated_as_interrupted(), _failing_reports_raise(debug):
            return getattr(import_module(f"diptych.cli.{MODULES.get(name, name)}"), f"{name}_command")(rest) or 0
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
    say(printable(f"diptych: {' '.join(sentence.split())}", MOST_REFUSAL), error=True)
    return status


def usage() -> str:
    lines = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    return f"diptych {__version__}, a vision-language workbench\n\n{lines}\n\ndiptych COMMAND --help says more."
