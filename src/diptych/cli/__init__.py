"""The command line. Help is printed before torch, or anything else that is slow, is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from diptych import __version__
from diptych.utils.memory import keep_freed_memory
from diptych.utils.terminal import MAX_ERROR_CHARS, echo, echo_exception, printable

COMMANDS = {
    "demo": "pre-train, fine-tune and evaluate a tiny VLMo on synthetic data, in minutes",
    "pretrain": "pre-train a model from a recipe",
    "finetune": "fine-tune a pre-trained run on a task",
    "evaluate": "evaluate a run on a task",
    "caption": "caption photographs",
    "answer": "answer a question about photographs",
    "score": "score how well texts match photographs",
    "ground": "draw the box in a photograph that a phrase refers to",
    "predict": "run a fine-tuned run's own task on photographs",
    "embed": "embed photographs or texts as vectors",
    "baselines": "scores of guessing without looking at the images, which a model must beat",
    "benchmark": "train and evaluate every system on the same data: one table",
    "train-tokenizer": "train a WordPiece vocabulary on the captions of a dataset",
    "capfilt": "filter captions and generate new ones (CapFilt, BLIP)",
    "corrupt-captions": "swap a share of the captions between images, to measure caption filters",
    "import": "turn official or Hugging Face weights into a run",
    "export": "write a run's weights in the official or Hugging Face layout",
    "info": "parameters, FLOPs and published results of a system or recipe; what a run is and can do",
    "estimate": "memory, training time and bottleneck of a run, before it starts",
}
MODULES = {"import": "weights", "export": "weights"}  # commands whose module has another name

USAGE = """\
diptych {version}: pre-train, fine-tune and evaluate vision-language models

Examples:
  diptych demo
  diptych pretrain vilt.small --data flickr8k/ --out runs/vilt
  diptych evaluate runs/vilt --task retrieval --data flickr8k/ --split val
  diptych finetune vqa --from runs/vilt --data vqa/ --out runs/vqa
  diptych import blip model_base.pth --out runs/blip
  diptych caption runs/blip photos/ --out captions.jsonl
  diptych ground runs/grounding dog.jpg "the dog on the left" --out boxed.png

Commands:
{commands}

diptych COMMAND --help shows a command's examples and options.
diptych --version prints the version; --debug, after any command, shows the traceback of an error."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    An error that is the user's to fix prints one line and returns 2; with ``--debug`` it is raised.
    """
    sys.excepthook = echo_exception
    if arguments is None:  # the process is this command
        keep_freed_memory()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        echo(usage())
        return 0
    if arguments[0] == "--version":
        echo(f"diptych {__version__}")
        return 0
    name, *args = arguments
    from diptych.cli.errors import error_message, is_user_error
    from diptych.config.spelling import suggest_name

    if name not in COMMANDS:
        return fail(f"there is no command {name!r}{suggest_name(name, COMMANDS)} (diptych --help lists them)")
    module = name.replace("-", "_")
    debug = "--debug" in args
    args = [word for word in args if word != "--debug"]
    from diptych.training.signals import terminated_as_interrupted

    try:
        with terminated_as_interrupted(), _report_errors_raised(debug):
            return getattr(import_module(f"diptych.cli.{MODULES.get(name, module)}"), f"{module}_command")(args) or 0
    except KeyboardInterrupt:
        return fail("interrupted; what is complete stays; the same command continues from there or begins again", 130)
    except Exception as error:
        if debug or not is_user_error(error):
            raise
        return fail(error_message(error))


@contextmanager
def _report_errors_raised(debug: bool) -> Iterator[None]:
    """Context in which an error while writing a report is raised (``--debug``), not printed as one line."""
    if not debug:
        yield
        return
    from diptych.runs.report import debugging

    before = debugging.set(True)
    try:
        yield
    finally:
        debugging.reset(before)


def fail(message: str, status: int = 2) -> int:
    """Prints an error on one line of standard error; returns the exit status."""
    echo(printable(f"diptych: {' '.join(message.split())}", MAX_ERROR_CHARS), error=True)
    return status


def usage() -> str:
    """The text of ``diptych --help``."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    return USAGE.format(version=__version__, commands=commands)
