"""The house keeps its floors: imports only point down, files stay short, and what is forbidden is nowhere in src/."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "diptych"
FILES = sorted(SRC.rglob("*.py"))

FLOORS = (
    ("layout", "tokens", "inputs", "keyed", "step"),
    ("layers",),
    ("fusion", "heads"),
    ("models", "objectives", "data", "metrics", "generate"),
    ("tasks", "train", "weights"),
    ("recipes",),
    ("study", "report"),
    ("jobs",),  # a whole piece of work: a run, its data, its module, its report
    ("cli",),
    ("__main__",),  # `python -m diptych` is the command line
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

# Between neighbours on one floor: what may read what, and why. Modules are named as they are imported.
SIDEWAYS = {
    ("step", "inputs"): "a step is given a Batch",
    ("tokens", "layout"): "tokens lie somewhere",
    ("weights", "tasks"): "a checkpoint belongs to a step, and parity recomputes that step's numbers",
    ("objectives", "models.verbs"): "an objective asks a model through its verbs",
    ("objectives", "models.cnn"): "the frozen network that imitation looks at; it is not a vision-language model",
}
NARROW = {"data": 0}  # rooms that may reach no higher than this floor, though they stand above it

LONG = {
    "data/scenes/language.py": "the words of the built-in world: templates more than code",
}
LIMIT = 200

FORBIDDEN = {
    "strict=False in a loader": re.compile(r"load_state_dict\([^)]*strict\s*=\s*False"),
    "weights_only=False": re.compile(r"weights_only\s*=\s*False"),
    "a path of somebody's machine": re.compile(r"""["'(\s](/work|/home|/root|/Users|/mnt|/tmp)/|[A-Z]:\\\\Users"""),
}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def room_of(path: str) -> str:
    """``models/vilt.py`` -> ``models``; ``tokens.py`` -> ``tokens``."""
    return path.split("/")[0].removesuffix(".py")


def parse(source: str) -> ast.Module:
    return ast.parse(source, feature_version=(3, 11))


def imported(path: str, tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted module) of every import, inside functions too. ``from a import b`` counts as ``a.b``."""
    found = []
    folder = ["diptych", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found += [(node.lineno, f"{module}.{name.name}") for name in node.names]
    return found


def wrong_import(room: str, module: str) -> str | None:
    """What is wrong with a file of `room` importing `module`, if anything."""
    if module.split(".")[0] in UNSAFE:
        return f"{module}: this can run code from a file"
    if not module.startswith("diptych."):
        return None
    inside = module.removeprefix("diptych.")
    other = inside.split(".")[0]
    if other == room:
        return None
    if other not in FLOOR:
        return None if other.startswith("__") else f"{other} stands on no floor: enter it in FLOORS"
    if FLOOR[other] <= NARROW.get(room, FLOOR[room] - 1):
        return None
    if any(room == a and f"{inside}.".startswith(f"{b}.") for a, b in SIDEWAYS):
        return None
    return f"{room} (floor {FLOOR[room]}) may not import {module} (floor {FLOOR[other]})"


def wrongs(path: str, source: str) -> list[str]:
    """Everything the file at `path`, relative to src/diptych, does against the rules of the house."""
    room = room_of(path)
    if room == "__init__":
        return []
    if room not in FLOOR:
        return [f"{path}: {room} stands on no floor: enter it in FLOORS"]
    try:
        tree = parse(source)
    except SyntaxError as error:
        return [f"{path}:{error.lineno}: Python 3.11 cannot read this: {error.msg}"]
    found = [f"{path}:{line}: {why}" for line, name in imported(path, tree) if (why := wrong_import(room, name))]
    for name, pattern in FORBIDDEN.items():
        found += [f"{path}:{source.count(chr(10), 0, m.start()) + 1}: {name}" for m in pattern.finditer(source)]
    lines = source.count("\n")
    if lines > LIMIT and path not in LONG:
        found.append(f"{path}: {lines} lines; over {LIMIT} a noun is missing (or a reason, in LONG)")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(SRC).as_posix())
def test_file_keeps_the_rules(file: Path):
    assert wrongs(file.relative_to(SRC).as_posix(), file.read_text(encoding="utf-8")) == []


def test_exceptions_are_still_needed():
    for name in LONG:
        assert (SRC / name).read_text(encoding="utf-8").count("\n") > LIMIT, f"{name} is short now: strike it from LONG"
    for room, module in SIDEWAYS:
        files = {p: f for f in FILES if room_of(p := f.relative_to(SRC).as_posix()) == room}
        names = [name for p, f in files.items() for _, name in imported(p, parse(f.read_text(encoding="utf-8")))]
        assert any(f"{n}.".startswith(f"diptych.{module}.") for n in names), f"{room} no longer imports {module}"


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("layers/block.py", "from diptych.models.vit import ViT", "layers (floor 1) may not import"),
        ("layers/block.py", "def f():\n    import diptych.heads", "block.py:2: layers (floor 1) may not import"),
        ("data/loader.py", "from diptych.metrics.vqa import vqa_accuracy", "data (floor 3) may not import"),
        ("data/loader.py", "from diptych.layers.init import init_transformer", "data (floor 3) may not import"),
        ("objectives/itm.py", "from diptych.models.vilt import ViLT", "objectives (floor 3) may not import"),
        ("objectives/itm.py", "from diptych.models import vilt", "objectives (floor 3) may not import"),
        ("tasks/vqa.py", "from diptych import cli", "tasks (floor 4) may not import diptych.cli"),
        ("layers/block.py", "from ..models import vit", "layers (floor 1) may not import diptych.models.vit"),
        ("tokens.py", "from .layers import block", "tokens (floor 0) may not import diptych.layers.block"),
        ("models/vit.py", "def f[T](x: T): ...", "Python 3.11 cannot read this"),
        ("models/vit.py", "from diptych.cellar import wine", "cellar stands on no floor"),
        ("attic/box.py", "", "attic stands on no floor"),
        ("weights/load.py", "import pickle", "can run code"),
        ("weights/load.py", "from pickle import load", "can run code"),
        ("weights/load.py", "torch.load(f, weights_only = False)", "weights_only"),
        ("weights/load.py", "model.load_state_dict(\n    state, strict=False)", "load.py:1: strict=False"),
        ("data/files.py", 'ROOT = "/home/me/data"', "somebody's machine"),
        ("models/vit.py", "x = 1\n" * 201, "201 lines"),
    ],
)
def test_the_rules_catch_what_breaks_them(path: str, source: str, message: str):
    found = wrongs(path, source)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("layers/block.py", "from diptych.tokens import Tokens\nimport torch"),
        ("objectives/itm.py", "from diptych.models.verbs import Fuses"),
        ("data/order.py", "zip(a, b, strict=False)"),
        ("report/page.py", "from .style import CSS\nfrom . import curves\nfrom ..train import log"),
        ("cli.py", "from diptych import recipes"),
        ("models/vit.py", "x = 1\n" * 200),
    ],
)
def test_the_rules_leave_good_files_alone(path: str, source: str):
    assert wrongs(path, source) == []


def modules_without_torch() -> list[str]:
    """Recipes, settings and the command line answer before torch has been imported."""
    files = [f for f in FILES if room_of(f.relative_to(SRC).as_posix()) in ("recipes", "cli") or f.stem == "settings"]
    names = [".".join(("diptych", *f.relative_to(SRC).with_suffix("").parts)) for f in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def loads_torch(module: str) -> bool:
    """Whether a fresh interpreter that imports `module` has imported torch."""
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


def test_importing_torch_is_noticed():
    assert loads_torch("diptych.tokens")
    assert not loads_torch("diptych.keyed")


@pytest.mark.parametrize("module", modules_without_torch())
def test_recipes_settings_and_command_line_need_no_torch(module: str):
    assert not loads_torch(module), f"{module} imports torch: help must answer in under 0.3 s"
