"""Docstrings of the package name parameters and attributes that exist."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import pytest

import diptych

ROOT = Path(diptych.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
Definition = ast.FunctionDef | ast.ClassDef


def parameters(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    variadic = [a for a in (arguments.vararg, arguments.kwarg) if a]
    return {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *variadic]}


def names_in(node: Definition) -> set[str]:
    """Parameters of a function; fields, methods, attributes and constructor parameters of a class."""
    if isinstance(node, ast.FunctionDef):
        return parameters(node)
    names: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef):
            names |= {part.name} | (parameters(part) if part.name == "__init__" else set())
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            names.add(part.target.id)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            names.add(part.attr)
    return names


def documented(docstring: str) -> list[str]:
    """Names that begin an entry under Args or Attributes, or a sentence of the form "`name`: ..."."""
    names = re.findall(r"^(?:.*[.:] )?`([a-z_]+)`: ", docstring, re.MULTILINE)
    for section in re.findall(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE):
        entries = re.findall(r"^    ([a-z_0-9]+(?:, [a-z_0-9]+)*):", section, re.MULTILINE)
        names += [name for entry in entries for name in entry.split(", ")]
    return names


def unknown(source: str) -> list[str]:
    """ "Definition: name" of each documented name that the definition does not have."""
    return [
        f"{node.name}: {name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.ClassDef) and node.bases and "Module" not in ast.unparse(node.bases[0]))
        for name in documented(ast.get_docstring(node) or "")
        if name not in names_in(node)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_parameters_exist(path: Path):
    assert unknown(path.read_text(encoding="utf-8")) == []


def test_a_documented_parameter_that_does_not_exist_is_noticed():
    source = 'def f(size):\n    """Area.\n\n    Args:\n        side: length.\n    """\n'
    assert unknown(source) == ["f: side"]
    assert unknown(source.replace("side:", "size:")) == []
    assert unknown('class A:\n    """Thing. `old`: number."""\n    new: int\n') == ["A: old"]


def hidden_comments(source: str) -> list[str]:
    """ "Class.field" of each setting that has a comment within a value of several lines, which help does not show."""
    return [
        f"{node.name}.{ast.unparse(field.target)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and any("settings(" in ast.unparse(part) for part in node.decorator_list)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and field.end_lineno != field.lineno
        if any("  # " in line for line in source.splitlines()[field.lineno - 1 : field.end_lineno])
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_comment_of_a_setting_is_its_help(path: Path):
    assert hidden_comments(path.read_text(encoding="utf-8")) == []


def test_hidden_comments():
    source = "@settings()\nclass A:\n    a: int = (\n        1  # lost\n    )\n    b: int = 1  # shown\n"
    assert hidden_comments(source) == ["A.a"]


def used_names(source: str) -> set[str]:
    """Names of the classes, variables, attributes and imports of a file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "name"):
            names.add(getattr(node, field, None))
    return names


USED = {*dir(builtins)}.union(*(used_names(path.read_text(encoding="utf-8")) for path in FILES))


def dangling(source: str) -> list[str]:
    """Exceptions under Raises, and classes and constants in backquotes, that no code of the package has."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | Definition) and (docstring := ast.get_docstring(node)):
            raised = re.findall(r"\bRaises:? +((?:[A-Z]\w+(?:, (?:and )?)?)+)", docstring)
            for section in re.findall(r"^Raises:\n((?:    .*\n?)*)", docstring, re.MULTILINE):
                raised += re.findall(r"^    ([A-Z][\w, ]*):", section, re.MULTILINE)
            names += [name for names in raised for name in re.findall(r"\w+", names) if name != "and"]
            names += re.findall(r"(?<!`)`(?:\w+\.)*([A-Z]\w+)`(?!`)", docstring)
    return [name for name in names if name not in USED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_classes_and_exceptions_in_docstrings_exist(path: Path):
    assert dangling(path.read_text(encoding="utf-8")) == []


def test_dangling():
    docstring = "See `Gone` and `Path`. Raises Lost, ValueError.\n\n    Raises:\n        Missing: why.\n    "
    assert dangling(f'def f():\n    """{docstring}"""\n') == ["Lost", "Missing", "Gone"]
