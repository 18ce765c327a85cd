from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data.sources import copies
from diptych.data.sources.copies import BEGINNING, MIN_IMAGE_BYTES, ByteRange, byte_range, same_bytes

reuse = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def first_alike(contents: list[bytes]) -> list[int]:
    """Computed by comparing each with each."""
    return [contents.index(data) if len(data) >= MIN_IMAGE_BYTES else i for i, data in enumerate(contents)]


contents = st.lists(
    st.builds(
        lambda length, at, byte: b"\0" * at + bytes([byte]) + b"\0" * (length - at),
        st.sampled_from(
            [
                MIN_IMAGE_BYTES - 2,
                MIN_IMAGE_BYTES - 1,
                MIN_IMAGE_BYTES,
                BEGINNING - 1,
                BEGINNING,
                BEGINNING + 1,
                3 * BEGINNING,
            ]
        ),
        st.sampled_from([0, 3, BEGINNING - 3, BEGINNING + 1]),
        st.integers(0, 1),
    ),
    max_size=8,
)


@given(contents)
@reuse
@pytest.mark.slow
def test_files_are_copies_if_and_only_if_all_bytes_are_equal(tmp_path: Path, contents: list[bytes]):
    """They differ at the first byte, at the last byte of the first block, after it, or in length."""
    for i, data in enumerate(contents):
        (tmp_path / str(i)).write_bytes(data)
    result = same_bytes([byte_range(tmp_path / str(i)) for i in range(len(contents))])
    assert result == first_alike(contents)


@given(contents)
@reuse
def test_ranges_of_one_file_are_compared_too(tmp_path: Path, contents: list[bytes]):
    (tmp_path / "tar").write_bytes(b"".join(contents))
    starts = [sum(map(len, contents[:i])) for i in range(len(contents))]
    ranges = [ByteRange(tmp_path / "tar", at, len(data)) for at, data in zip(starts, contents, strict=True)]
    assert same_bytes(ranges) == first_alike(contents)


def test_links_and_copies_are_the_same_and_unreadable_files_only_equal_themselves(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"picture" * 9)
    (tmp_path / "b").write_bytes(b"picture" * 9)
    os.symlink(tmp_path / "a", tmp_path / "c")
    os.link(tmp_path / "a", tmp_path / "d")
    names = ["gone", "a", "b", "gone", "c", "d"]
    assert same_bytes([byte_range(tmp_path / name) for name in names]) == [0, 1, 1, 3, 1, 1]
    ranges = [byte_range(tmp_path / name) for name in names]
    (tmp_path / "b").unlink()
    assert same_bytes(ranges) == [0, 1, 2, 3, 1, 1], "it existed a moment ago"


def test_files_of_unique_size_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(5):
        (tmp_path / str(i)).write_bytes(b"x" * (20 + i))
    monkeypatch.setattr(copies, "_beginning", lambda _: pytest.fail("read"))
    assert same_bytes([byte_range(tmp_path / str(i)) for i in range(5)]) == list(range(5))
