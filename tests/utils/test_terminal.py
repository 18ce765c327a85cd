"""Control characters from files never reach the terminal, in messages, tables or tracebacks."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from diptych.cli import main
from diptych.data.sources.base import DataError
from diptych.utils.terminal import echo, echo_exception, plain, printable

HARM = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.\u2066\r\x00\u2028"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a dog\n\tand a cat", "a dog\n\tand a cat"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08\x07\x7f", r"a\rb\x08\x07\x7f"),
        ("photo\u202egnp.exe\u2069\u061c", r"photo\u202egnp.exe\u2069\u061c"),
        ("two\u2028lines\u2029", r"two\u2028lines\u2029"),
        ("\udcff", r"\udcff"),
        ("\U000e0041\ufeff", r"\U000e0041\ufeff"),
        ("Größe 北京 می\u200cخواهم 👩\u200d🚀 – “é”", "Größe 北京 می\u200cخواهم 👩\u200d🚀 – “é”"),
    ],
)
def test_control_characters_are_escaped(text: str, escaped: str):
    assert printable(text) == escaped


@given(st.text(st.characters(codec=None)))
def test_no_text_keeps_a_control_character(text: str):
    escaped = printable(text)
    escaped.encode()
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t" for c in escaped)
    assert not any(
        unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI") for c in escaped
    )
    assert printable(escaped) == escaped


def test_long_text_is_cut_in_the_middle():
    assert printable("a" * 60 + "b" * 60, 100) == f"{'a' * 50} ... (120 characters) ... {'b' * 50}"


def test_messages_and_tracebacks_are_printable(capsys: pytest.CaptureFixture[str]):
    echo(HARM)
    echo(HARM, error=True)
    try:
        raise DataError(HARM)
    except DataError as error:
        echo_exception(type(error), error, error.__traceback__)
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not set(text) & set(HARM.replace("\n", "")) - set("[2J]0;owned31mgp.")
    assert r"\x1b[2J" in out and err.count(r"\u202egnp") == 2 and "Traceback" in err
    assert plain("[red]\x1b[0m").plain == r"[red]\x1b[0m"


def controls(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"}


def tar(path: Path, key: str) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(f"{key}.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return str(path)


def test_commands_print_names_from_files_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    name = "\x1b]0;owned\x07\u202eevil"
    (tmp_path / "a.csv").write_text(f'image,caption\n"{name}.jpg","a dog"\n', encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps({"images": [{"filename": "x", name: 1}]}), encoding="utf-8")
    save_file({f"module.{name}": torch.zeros(2)}, tmp_path / "a.safetensors")
    baselines = ("baselines", "--task", "retrieval", "--split", "train", "--data")
    for command in (
        [*baselines, str(tmp_path / "a.csv")],
        [*baselines, str(tmp_path / "a.json")],
        [*baselines, tar(tmp_path / "train-0.tar", name)],
        ["import", "vilt", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out")],
        [name],
        ["evaluate", str(tmp_path / name), "--task", "vqa"],
    ):
        assert main(command) == 2, command
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and not controls(out + err), command
    assert sys.excepthook is echo_exception
