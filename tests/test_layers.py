"""The levels of the tree: imports only point down, files stay short, and forbidden code occurs nowhere in src/."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "diptych"
FILES = sorted(SRC.rglob("*.py"))

# From the lowest level up. A part of the tree may import parts of lower levels and itself, not others of its level.
LEVELS = (
    ("utils", "metrics", "config"),
    ("batch", "report"),
    ("modules", "data"),
    ("protocols", "checkpoints"),
    ("encoders",),
    ("models", "objectives", "generation", "training"),
    ("inference",),
    ("config/run", "attribution"),
    ("tasks",),
    ("models/*/checkpoint",),
    ("models/*/recipes",),
    ("runs",),
    ("studies", "benchmark", "capfilt", "planning"),
    ("api",),
    ("predict",),
    ("cli",),
    ("__main__",),  # `python -m diptych` is the command line
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}

# Modules of a higher level than their folder: a checkpoint builds task heads, a run contains the config of any model.
HIGHER = (
    (re.compile(r"models\.(\w+\.(resnet_)?checkpoint|importing|initialize|huggingface)\b"), "models/*/checkpoint"),
    (re.compile(r"models\.(\w+\.recipes|common_recipes)\b"), "models/*/recipes"),
    (re.compile(r"config\.run\b"), "config/run"),
)

LONG = {
    "api.py": "the public API is read as one page: a class of ten methods with their docstrings"
}  # files over the limit, each with its reason
LIMIT = 500  # lines: cohesion decides a file's size, but past this it must be defended

FORBIDDEN = {
    "strict=False in a loader": re.compile(r"load_state_dict\([^)]*strict\s*=\s*False"),
    "print: terminal output goes through utils.terminal.echo": re.compile(r"(?<![\w.\"'`])print\(|print_exception\("),
    "weights_only=False": re.compile(r"weights_only\s*=\s*False"),
    "a path of somebody's machine": re.compile(r"""["'(\s](/work|/home|/root|/Users|/mnt|/tmp)/|[A-Z]:\\\\Users"""),
}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dotted(path: str) -> str:
    """``models/vilt/model.py`` -> ``models.vilt.model``."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def part_of(module: str) -> str:
    """The part of the tree that a module (without ``diptych.``) belongs to."""
    return next((part for pattern, part in HIGHER if pattern.match(module)), module.split(".")[0])


def parse(source: str) -> ast.Module:
    return ast.parse(source, feature_version=(3, 11))


def imported(path: str, tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted module) of every import, also within functions. ``from a import b`` counts as ``a.b``."""
    imports = []
    folder = ["diptych", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            imports += [(node.lineno, f"{module}.{name.name}") for name in node.names]
    return imports


def wrong_import(part: str, module: str) -> str | None:
    """The reason why a file of `part` may not import `module`; None if it may."""
    if module.split(".")[0] in UNSAFE:
        return f"{module}: this can run code from a file"
    if not module.startswith("diptych.") or module.startswith("diptych.__"):
        return None
    other = part_of(module.removeprefix("diptych."))
    if other == part:
        return None
    if other not in LEVEL:
        return f"{other} has no level: enter it in LEVELS"
    if LEVEL[other] < LEVEL[part]:
        return None
    return f"{part} (level {LEVEL[part]}) may not import {module} (level {LEVEL[other]})"


def violations(path: str, source: str) -> list[str]:
    """Every rule that the file at `path`, relative to src/diptych, breaks."""
    part = part_of(dotted(path))
    if path == "__init__.py":
        return []
    if part not in LEVEL:
        return [f"{path}: {part} has no level: enter it in LEVELS"]
    try:
        tree = parse(source)
    except SyntaxError as error:
        return [f"{path}:{error.lineno}: Python 3.11 cannot read this: {error.msg}"]
    messages = [f"{path}:{line}: {why}" for line, name in imported(path, tree) if (why := wrong_import(part, name))]
    for name, pattern in FORBIDDEN.items():
        if path == "utils/terminal.py" and name.startswith("print"):
            continue
        messages += [f"{path}:{source.count(chr(10), 0, m.start()) + 1}: {name}" for m in pattern.finditer(source)]
    lines = source.count("\n")
    if lines > LIMIT and path not in LONG:
        messages.append(f"{path}: {lines} lines; over {LIMIT}: divide it, or give a reason in LONG")
    return messages


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(SRC).as_posix())
def test_file_keeps_the_rules(file: Path):
    assert violations(file.relative_to(SRC).as_posix(), file.read_text(encoding="utf-8")) == []


def test_a_file_over_the_limit_is_still_over_it():
    for name in LONG:
        assert (SRC / name).read_text(encoding="utf-8").count("\n") > LIMIT, f"{name} is short now: remove it from LONG"


def test_every_level_is_in_the_tree():
    assert {part_of(dotted(f.relative_to(SRC).as_posix())) for f in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("modules/block.py", "from diptych.models.vit.model import ViT", "modules (level 2) may not import"),
        ("modules/block.py", "def f():\n    import diptych.encoders.minilm", "block.py:2: modules (level 2) may not"),
        ("modules/block.py", "from diptych.data.loader import sweep", "modules (level 2) may not import"),
        ("data/loader.py", "from diptych.modules.init import init_transformer", "data (level 2) may not import"),
        ("objectives/itm.py", "from diptych.models.vilt.model import ViLT", "objectives (level 5) may not import"),
        ("objectives/itm.py", "from diptych.models import vilt", "objectives (level 5) may not import"),
        ("models/vilt/model.py", "from diptych.models.vilt import recipes", "models (level 5) may not import"),
        ("models/vilt/model.py", "from diptych.config import run", "models (level 5) may not import"),
        ("models/vilt/checkpoint.py", "from diptych.models.vilt.recipes import base", "models/*/checkpoint (level 9)"),
        ("tasks/vqa.py", "from diptych import cli", "tasks (level 8) may not import diptych.cli"),
        ("inference/folder.py", "from diptych.runs.run_folder import read_run", "inference (level 6) may not import"),
        ("inference/folder.py", "from diptych.config.run import Pretrain", "inference (level 6) may not import"),
        ("inference/loaded_model.py", "from diptych.tasks.vqa import ClosedVQA", "inference (level 6) may not import"),
        ("modules/block.py", "from ..models import vit", "modules (level 2) may not import diptych.models.vit"),
        ("batch.py", "from .modules import block", "batch (level 1) may not import diptych.modules.block"),
        ("models/vit/model.py", "def f[T](x: T): ...", "Python 3.11 cannot read this"),
        ("models/vit/model.py", "from diptych.cellar import wine", "cellar has no level"),
        ("attic/box.py", "", "attic has no level"),
        ("checkpoints/read.py", "import pickle", "can run code"),
        ("checkpoints/read.py", "from pickle import load", "can run code"),
        ("checkpoints/read.py", "torch.load(f, weights_only = False)", "weights_only"),
        ("checkpoints/read.py", "model.load_state_dict(\n    state, strict=False)", "read.py:1: strict=False"),
        ("runs/train.py", "print(name)", "train.py:1: print: terminal output goes through utils.terminal.echo"),
        ("runs/train.py", "console.print_exception()", "utils.terminal.echo"),
        ("data/loader.py", 'ROOT = "/home/me/data"', "somebody's machine"),
        ("models/vit/model.py", "x = 1\n" * 501, "501 lines"),
    ],
)
def test_a_violation_of_each_rule_is_detected(path: str, source: str, message: str):
    messages = violations(path, source)
    assert len(messages) == 1
    assert message in messages[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("modules/block.py", "from diptych.modules.tokens import Tokens\nimport torch"),
        ("objectives/itm.py", "from diptych.protocols import Fuses"),
        ("data/loader.py", "zip(a, b, strict=False)"),
        ("report/page.py", "from .charts import draw_curves\nfrom . import sections\nfrom ..utils import io"),
        ("models/vilt/checkpoint.py", "from diptych.tasks.vqa import ClosedVQA"),
        ("config/run.py", "from diptych.inference.saved_model import ModelSettings"),
        ("tasks/vqa.py", "from diptych.inference.loaded_model import LoadedModel"),
        ("models/vilt/recipes.py", "from diptych.config.run import Pretrain"),
        ("cli/pretrain.py", "from diptych import runs"),
        ("models/vit/model.py", "x = 1\n" * 500),
    ],
)
def test_valid_files_have_no_violations(path: str, source: str):
    assert violations(path, source) == []


def modules_without_torch() -> list[str]:
    """Recipes, configs, config.json's content and the command line, which must not import torch."""
    modules = [dotted(f.relative_to(SRC).as_posix()) for f in FILES]
    free = re.compile(
        r"cli\b|config\b|models\.(?!huggingface)\w+\.(recipes|config)$|models\.(common_recipes|configs)$"
        r"|inference\.saved_model$|runs\.check_inputs$"
    )
    return [f"diptych.{module}" for module in modules if free.match(module)]


def loads_torch(module: str) -> bool:
    """Whether a fresh interpreter that imports `module` has imported torch."""
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


@pytest.mark.slow
def test_an_import_of_torch_is_detected():
    assert loads_torch("diptych.modules.tokens")
    assert not loads_torch("diptych.utils.rng")


def test_recipes_configs_and_command_line_together_need_no_torch():
    assert not loads_torch(", ".join(modules_without_torch())), "the slow test below names the module"


@pytest.mark.slow
@pytest.mark.parametrize("module", modules_without_torch())
def test_each_recipe_config_and_command_needs_no_torch(module: str):
    assert not loads_torch(module), f"{module} imports torch: help must answer in under 0.3 s"
