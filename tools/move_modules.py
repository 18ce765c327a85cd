"""Moves and merges modules of src/diptych by a table, and rewrites every import of them in src, tests and bench.

    python tools/move_modules.py docs/decisions/0012-where-each-file-goes.md

The table is the document's code block: lines ``old.module -> new.module``, without the leading ``diptych.``. Old modules with one new
name are concatenated in the order of the lines: docstrings joined, imports merged, imports of each other dropped; names that two
of them define are printed. Imports whose last part changes keep the old name by ``as``, or take the new one where a file does not use
that word yet. Dotted names in strings (monkeypatch) are rewritten too; other strings, such as the keys of random draws, are not.
It goes when the table has been carried out.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "diptych"
KEPT = {
    "recipes",
    "checkpoint",
    "model",
    "tokenizer",
    "base",
    "run",
    "protocols",
}  # new last parts that say too little alone


def table(document: Path) -> dict[str, str]:
    """Old module to new, both with ``diptych.``, in the order of the lines."""
    lines = re.findall(r"^([\w.]+) -> ([\w.]+)$", document.read_text(), re.MULTILINE)
    return {f"diptych.{old}": f"diptych.{new}" for old, new in lines}


def module_of(file: Path) -> str:
    return ".".join(("diptych", *file.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")


class Moves:
    """A table of moves and what it makes of a file's text."""

    def __init__(self, moved: dict[str, str]):
        self.moved = moved
        names = "|".join(re.escape(old) for old in sorted(moved, key=len, reverse=True))
        self.dotted = re.compile(rf"\b({names})(?=[\"'.:/` )])")

    def rewritten(self, text: str) -> str:
        """The text with its imports, and dotted names in its strings, as they are after the moves."""
        lines, renamed = text.split("\n"), dict[str, str]()
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        for node in sorted(imports, key=lambda node: -node.lineno):
            if not node.level and (node.module or "").startswith("diptych"):
                self._rewrite(node, lines, text, renamed)
        text = self._with_names("\n".join(lines), renamed)
        lines = text.split("\n")
        for i, line in enumerate(lines):
            if "diptych." in line and not re.match(r"\s*(from|import) ", line):
                lines[i] = self.dotted.sub(lambda match: self.moved[match[1]], line)
        return "\n".join(lines)

    def _rewrite(self, node: ast.ImportFrom, lines: list[str], text: str, renamed: dict[str, str]) -> None:
        groups = dict[str, list[str]]()
        for alias in node.names:
            module, name, called = str(node.module), alias.name, alias.asname
            if (new := self.moved.get(f"{module}.{name}")) is not None:
                module, _, name = new.rpartition(".")
                if called is None and name != alias.name:
                    if name in KEPT or re.search(rf"\b{name}\b", text):
                        called = alias.name
                    else:
                        renamed[alias.name] = name
            module = self.moved.get(module, module)
            groups.setdefault(module, []).append(f"{name} as {called}" if called not in (None, name) else name)
        indent = lines[node.lineno - 1][: node.col_offset]
        tail = lines[(node.end_lineno or node.lineno) - 1].encode()[node.end_col_offset or 0 :].decode()
        made = [f"{indent}from {module} import {', '.join(dict.fromkeys(names))}" for module, names in groups.items()]
        made[-1] += tail
        lines[node.lineno - 1 : node.end_lineno] = made

    def _with_names(self, text: str, renamed: dict[str, str]) -> str:
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name) and n.id in renamed]
        lines = text.split("\n")
        for line, column, name in sorted({(n.lineno, n.col_offset, n.id) for n in nodes}, reverse=True):
            raw = lines[line - 1].encode()
            raw = raw[:column] + renamed[name].encode() + raw[column + len(name.encode()) :]
            lines[line - 1] = raw.decode()
        return "\n".join(lines)


def joined(new: str, pieces: list[str]) -> str:
    """Several modules as one."""
    documents, imports, bodies = [], dict[str, None](), []
    defined = dict[str, int]()
    for number, piece in enumerate(pieces):
        tree, lines, at, aliases = ast.parse(piece), piece.split("\n"), 0, dict[str, str]()
        if document := ast.get_docstring(tree):
            documents.append(document)
            at = tree.body[0].end_lineno or 0
        for node in tree.body[bool(document) :]:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                break
            at = node.end_lineno or at
            if isinstance(node, ast.ImportFrom) and node.module == new:
                aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
            elif not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
                imports["\n".join(lines[node.lineno - 1 : node.end_lineno])] = None
        body = "\n".join(lines[at:]).strip("\n")
        for alias, name in aliases.items():
            body = re.sub(rf"\b{alias}\b", name, body)
        bodies.append(body)
        for name in [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]:
            if defined.setdefault(name, number) != number:
                sys.stderr.write(f"{new}: {name} is defined twice\n")
    text = "\n\n".join(documents)
    head = f'"""{text}\n"""\n\nfrom __future__ import annotations\n\n'
    return head + "\n".join(imports) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def main() -> None:
    moved = table(Path(sys.argv[1]))
    files = {module_of(file): file for file in SRC.rglob("*.py")}
    if missing := [old for old in moved if old not in files]:
        raise SystemExit(f"no such modules: {', '.join(missing)}")
    moves = Moves(moved)
    everywhere = [file for folder in ("src", "tests", "bench") for file in (ROOT / folder).rglob("*.py")]
    texts = {file: moves.rewritten(file.read_text()) for file in everywhere}
    for new in dict.fromkeys(moved.values()):
        sources = [files[old] for old, to in moved.items() if to == new]
        pieces = [texts.pop(file) for file in sources]
        place = SRC.joinpath(*new.split(".")[1:])
        package = any(other.startswith(f"{new}.") for other in moved.values())
        target = place / "__init__.py" if package else place.with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target not in sources:
            subprocess.run(["git", "mv", str(sources[0]), str(target)], cwd=ROOT, check=True)
        for file in sources:
            if file != target and file.exists():
                subprocess.run(["git", "rm", "-qf", str(file)], cwd=ROOT, check=True)
        target.write_text(pieces[0] if len(pieces) == 1 else joined(new, pieces))
    for file, text in texts.items():
        if file.exists() and file.read_text() != text:
            file.write_text(text)
    for folder in {file.parent for file in SRC.rglob("*.py")}:
        (folder / "__init__.py").touch()


if __name__ == "__main__":
    main()
