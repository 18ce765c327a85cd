"""README and docs/: every command line parses, every block of Python runs or is a part of the file that it names, every
file named exists, every table is that of its results file.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.result_pages import TABLE, pages, records, with_tables
from diptych.cli import COMMANDS, main
from tests.test_layers import LEVELS

ROOT = Path(__file__).parents[1]
DOCS = [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "bench" / "README.md"]
FENCE = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
PYTHON = re.compile(r"^(?:<!-- code of (\S+) -->\n)?```(?:python|py)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w./*{-])((?:[\w*-]+/)+[\w*.-]+\.(?:py|md|json|svg|css|html|npz|txt))(?![\w/])")
HISTORY = ("CHANGELOG.md",)  # names of commands of older versions
OLDER = "the command is of an earlier version"  # in the provenance of a table: its command does not parse now
TO_WRITE = re.compile(r"NAME|DIR|RUN|FILE")  # files that the reader creates


class Reached(Exception):
    """Raised when a command has parsed its words and would start its work."""


WORK = (
    "runs.pretrain.pretrain", "runs.finetune.finetune", "runs.evaluate.evaluate", "capfilt.run.capfilt",
    "capfilt.corrupt_captions.corrupt_captions", "runs.train_tokenizer.train_tokenizer", "runs.baselines.baselines",
    "benchmark.run.benchmark", "runs.import_checkpoint.import_checkpoint", "runs.export.export", "planning.info.info",
    "planning.estimate.estimate", "runs.demo.demo", "predict.photos.caption_photos", "predict.photos.answer_question",
    "predict.photos.score_texts", "predict.grounding.ground_phrases",
    "predict.photos.predict_task", "predict.photos.embed",
)  # fmt: skip
"""What the commands call once their words are understood."""
CHECKS = ("check_data", "check_saved", "check_inputs", "needed_data")
"""What the command line looks up on disk before that."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def shell_lines(text: str) -> Iterator[str]:
    """Lines of code blocks, continued ones joined, and inline code."""
    for block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from SPAN.findall(FENCE.sub("", text))


def commands(text: str) -> Iterator[list[str]]:
    """The words behind every `diptych` that begins a command line; synopses with […] and COMMAND are none, nor are
    the recorded commands of earlier versions.
    """
    text = TABLE.sub(lambda table: "" if OLDER in table[0] else table[0], text)
    for line in shell_lines(text):
        line = re.sub(r"^(torchrun|\S*python) .*?-m diptych ", "diptych ", line.strip())
        if line.startswith("diptych ") and not re.search(r"COMMAND|\[|…", line):
            words = shlex.split(line, comments=True)[1:]
            if (
                len(words) > 1 or words[0] not in COMMANDS
            ):  # the name of a command without arguments is not a command line
                yield words


CASES = {
    f"{name(path)}: diptych {shlex.join(words)}": words
    for path in DOCS
    if path.name not in HISTORY
    for words in commands(path.read_text(encoding="utf-8"))
}


FINETUNED = {
    words[words.index("--out") + 1]: words[1].rpartition(".")[2]
    for words in CASES.values()
    if words[0] == "finetune" and "--out" in words
}
"""The task of each run that the pages fine-tune, by its folder."""


def task_of(folder: Path) -> str:
    """The task of a run that some page fine-tunes; KeyError for others."""
    return FINETUNED[folder.as_posix()]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands that stop where their work would begin, on data and run folders that need not exist."""

    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    places = [work.rpartition(".") for work in WORK]
    modules = [import_module(f"diptych.{module}") for module, _, _ in places]  # all before one would import `reached`
    for module, (_, _, function) in zip(modules, places, strict=True):
        monkeypatch.setattr(module, function, reached)
    monkeypatch.setattr("diptych.runs.finetune.inherited", lambda folder, run, own=False: run)
    monkeypatch.setattr("diptych.cli.predict.read_config", lambda folder: SimpleNamespace(task=task_of(folder)))
    monkeypatch.setattr("diptych.cli.evaluate.task_of", task_of)
    for module in {command.replace("-", "_") for command in COMMANDS} - {"import", "export"}:
        for check in CHECKS:
            monkeypatch.setattr(f"diptych.cli.{module}.{check}", lambda *_: "data", raising=False)
    monkeypatch.chdir(tmp_path)


def understood(words: list[str]) -> str:
    """Runs a command up to its work: "" if it gets there, else its message or exit status."""
    try:
        status = main(words)
    except Reached:
        return ""
    return "" if status == 0 and words[-1] in ("--help", "--version") else f"exit status {status}"


@pytest.mark.slow
@pytest.mark.usefixtures("no_work")
def test_every_command_line_parses(capsys: pytest.CaptureFixture[str]):
    wrong = []
    for case, words in CASES.items():
        if status := understood(words):
            wrong.append(f"{case}: {status} {capsys.readouterr().err.strip()}")
        capsys.readouterr()
    assert len(CASES) > 40
    assert wrong == []


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("diptych learn --data x", "no command 'learn'"),
        ("diptych pretrain vilt.tiny --out x --accumulate 2", "no --accumulate"),
        ("diptych pretrain vilt.huge --out x", "no recipe 'vilt.huge'"),
        ("diptych evaluate x --task retrieval --candidates 16", "--candidates is a setting of vqa"),
        ("diptych pretrain vilt.tiny --out x --steps many", "many"),
    ],
)
def test_a_command_line_that_does_not_parse_is_detected(line: str, message: str, capsys: pytest.CaptureFixture[str]):
    ((words),) = commands(f"```\n{line}\n```")
    assert understood(words)
    assert message in capsys.readouterr().err


def test_bench_and_make_lines_name_existing_modules_flags_and_targets():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for path in DOCS:
        for line in shell_lines(path.read_text(encoding="utf-8")):
            if path.name not in HISTORY and (made := re.match(r"make ([\w-]+)", line)) and made[1] not in targets:
                wrong.append(f"{name(path)}: make {made[1]}")
            if match := re.search(r"-m ((?:bench|tests)[\w.]*)(.*)", line.split("#")[0]):
                module = ROOT.joinpath(*match[1].split("."))
                file = next((f for f in (module.with_suffix(".py"), module / "__main__.py") if f.is_file()), None)
                source = file.read_text(encoding="utf-8") if file else ""
                flags = re.findall(r"--[\w-]+", match[2])
                wrong += [f"{name(path)}: {line}: {flag}" for flag in flags or [""] if f'"{flag}' not in source]
    assert wrong == []


def python_blocks(text: str) -> list[tuple[str, str]]:
    """(the file that a block is said to be part of, or "" where it is to run; the block)."""
    return PYTHON.findall(text)


def is_part_of(block: str, source: str) -> bool:
    """Whether a source file holds the block, at any indentation; lines of ``...`` stand for what is left out."""
    end = 0
    for part in re.split(r"^\.\.\.\n", block, flags=re.MULTILINE):
        indented = "|".join(re.escape(textwrap.indent(part, " " * indent)) for indent in (0, 4, 8, 12))
        if (match := re.compile(rf"^(?:{indented})", re.MULTILINE).search(source, end)) is None:
            return False
        end = match.end()
    return True


def stale_blocks(text: str) -> list[str]:
    """What is wrong with each block of Python: it is not in the file that it names, or does not run."""
    wrong = []
    for file, block in python_blocks(text):
        if file:
            if not is_part_of(block, (ROOT / file).read_text(encoding="utf-8")):
                wrong.append(f"not in {file}:\n{block}")
            continue
        try:
            exec(compile(block, "a block of documentation", "exec"), {})
        except Exception as error:  # whatever a reader would meet
            wrong.append(f"{type(error).__name__}: {error}:\n{block}")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in DOCS if python_blocks(path.read_text(encoding="utf-8"))], ids=name)
def test_python_runs_or_is_part_of_the_file_named(path: Path):
    text = path.read_text(encoding="utf-8")
    if "FrozenCNN()" in text:
        pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `cnn`")
    assert stale_blocks(text) == []


def test_every_block_of_python_is_checked():
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        openings = re.findall(r"^ *[`~]{3,} *\{?\.?(?i:py)", text, re.MULTILINE)
        assert len(python_blocks(text)) == len(openings), name(path)


ITM = "src/diptych/objectives/itm.py"


@pytest.mark.parametrize(
    ("block", "stale"),
    [
        ("from diptych.modules.pool import Pooler\nPooler(2)\n", False),
        ("from diptych.modules.pool import Pooler\nPooler(width=2)\n", True),
        ("from diptych.modules.pool import Polar\n", True),
        (f"<!-- code of {ITM} -->\nweight: float = 1.0\n...\nprior: float = 0.5  # fraction of matched pairs in the data\n", False),
        (f"<!-- code of {ITM} -->\nprior: float = 0.5  # fraction of matched pairs in the data\n...\nimport math\n", True),
        (f"<!-- code of {ITM} -->\nprior: float = 0.5  # share of matched pairs in the data\n", True),
    ],
)  # fmt: skip
def test_stale_python_is_noticed(block: str, stale: bool):
    comment, arrow, code = block.rpartition("-->\n")
    assert bool(stale_blocks(f"{comment}{arrow}```python\n{code}```\n")) == stale


def missing_files(path: Path, text: str) -> list[str]:
    """Relative links, and files with a folder before them, that do not exist in the repository."""
    links = [link.partition("#")[0] for link in LINK.findall(text) if "://" not in link and not link.startswith("#")]
    missing = [link for link in links if not (path.parent / link).exists()]
    outside_links = LINK.sub("]", text)
    roots = (ROOT, ROOT / "src" / "diptych", path.parent)
    for file in FILE.findall(outside_links):
        if not TO_WRITE.search(file) and not any(any(root.glob(file)) for root in roots):
            missing.append(file)
    return missing


@pytest.mark.parametrize("path", [path for path in DOCS if path.name not in HISTORY], ids=name)
def test_named_files_exist(path: Path):
    assert missing_files(path, path.read_text(encoding="utf-8")) == []


def test_a_missing_file_is_detected():
    text = "[a](docs/nowhere.md) and `models/vilt/figure.py`, but [b](README.md) and `models/vilt/model.py`"
    assert missing_files(ROOT / "README.md", text) == ["docs/nowhere.md", "models/vilt/figure.py"]


@pytest.mark.parametrize("path", [path for path in DOCS if path.name != "reliability.md"], ids=name)
def test_lines_fit_a_screen(path: Path):
    """120 characters, but for tables (with their provenance), links and code."""
    text = FENCE.sub("", TABLE.sub("", path.read_text(encoding="utf-8")))
    lines = [line for line in text.splitlines() if len(line) > 120]
    assert [line for line in lines if not line.startswith("|") and "](" not in line] == []


def test_tables_are_those_of_the_results_files():
    tables = records()
    stale = [name(path) for path in pages() if with_tables(text := path.read_text(encoding="utf-8"), tables) != text]
    assert stale == [], "run: python -m bench.result_pages"


def test_every_results_file_has_its_provenance_and_a_table():
    tables = {table for path in pages() for table in re.findall(r"<!-- table (\w+)", path.read_text(encoding="utf-8"))}
    assert tables == set(records())
    for table, record in records().items():
        assert record.get("source") or (record.get("command") and record.get("date")), table
        assert all(len(row) == len(record["columns"]) for row in record["rows"]), table
        assert "figure" not in record or (ROOT / "docs" / "images" / f"{table}.svg").is_file(), table


def test_the_page_on_architecture_has_the_table_of_levels():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for level, parts in enumerate(LEVELS):
        (row,) = re.findall(rf"^\| {level} \| ([^|]*) \|", text, re.MULTILINE)
        assert all(re.search(rf"\b{re.escape(part.removeprefix('models/*/'))}\b", row) for part in parts), row


@pytest.fixture
def classes() -> set[str]:
    """Every class, protocol and union of models of the package and its tests."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    definition = re.compile(r"^(?:class |(?=\w+(?:Model|Options) = ))(\w+)", re.MULTILINE)
    return {name for file in files for name in definition.findall(file.read_text(encoding="utf-8"))}


NOT_OURS = {"NEEDS"}
"""Capitals that are constants."""


@pytest.mark.parametrize("page", ["architecture", "adding-a-model", "adding-an-objective", "adding-a-task", "taxonomy"])
def test_classes_that_are_named_exist(page: str, classes: set[str]):
    text = FENCE.sub("", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    named = {
        word for span in SPAN.findall(text) for word in re.findall(r"^([A-Z][a-z]+[A-Z]\w*|[A-Z]{2,4})(?=$|[.(])", span)
    }
    assert named - classes - NOT_OURS == set()


def test_the_number_of_damaged_inputs_is_that_of_the_campaign():
    (total,) = re.findall(
        r"^\| all \d+ \| ([\d,]+) \|", Path("docs/reliability.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert f"{total} damaged inputs" in Path("README.md").read_text(encoding="utf-8")
