"""Reading of Diptych's own JSON files: any damage is an error of one line that names the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.utils.io import NUMBER, DamagedFile, parse_json, read_json, read_json_lines, schema_error

ROW = {"step": int, "name?": str, str: (*NUMBER, type(None))}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"\x00\x00", "not the JSON"),
        (b"\xff{}", "byte 0 is not UTF-8"),
        (b'{"step": 1', "not the JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b'{"step": ' + b"9" * 5000 + b"}", "not the JSON"),
        (b'{"step": ' + b"9" * 30 + b"}", "step is a number of more than 64 bits"),
        (b"[]", "the value is a list, not an object"),
        (b"{}", "the object lacks 'step'"),
        (b'{"step": 1.5}', "step is a number, not an integer"),
        (b'{"step": true}', "step is true or false, not an integer"),
        (b'{"step": 1, "name": null}', "name is null, not a string"),
        (b'{"step": 1, "loss": "low"}', "loss is a string, not an integer or a number or null"),
        (b'{"step": 1, "loss": [0]}', "loss is a list, not"),
    ],
)
def test_damage_is_reported_in_one_line_that_names_the_file(tmp_path: Path, data: bytes, why: str):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(DamagedFile) as error:
        read_json(path, ROW)
    assert str(error.value).startswith(f"{path}: ") and why in str(error.value) and "\n" not in str(error.value)


def test_a_line_is_named_by_its_number(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n\n{"step": 2, "loss": 0.5}\n{"stop": 3}\n')
    rows = read_json_lines(path, ROW)
    assert [next(rows), next(rows)] == [(1, {"step": 1}), (3, {"step": 2, "loss": 0.5})]
    with pytest.raises(DamagedFile, match=r"x\.jsonl, line 4: the object lacks 'step'"):
        next(rows)
    with pytest.raises(DamagedFile, match="cannot be read"):
        next(read_json_lines(tmp_path / "none.jsonl"))


def test_a_tuple_is_one_of_several_schemas():
    schema = {"a": ([int], {"b": str}, type(None))}
    assert not any(schema_error({"a": value}, schema) for value in ([1], {"b": ""}, None))
    assert schema_error({"a": ["x"]}, schema) == "a[0] is a string, not an integer"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def schema_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: schema_of(part) for key, part in value.items()}
    return [object] if isinstance(value, list) else type(value)


@settings(max_examples=40)
@given(values, values)
def test_a_value_matches_its_own_schema_and_others_match_or_raise(value: Any, other: Any):
    text = json.dumps(value)
    if not (isinstance(value, dict) and any(key.endswith("?") for key in value)):
        assert parse_json(text, schema_of(value), "x") == value
    try:
        assert parse_json(text, schema_of(other), "x") == value
    except DamagedFile as error:
        assert str(error).startswith("x: ")
