"""Seeded damage to valid files: flipped bits, truncation, splices, edited lengths and numbers, keywords."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Sequence

SIZES = (0, 1, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 30, b"9" * 5000, b"2147483648", b"0.5", b"true", b"null")
CANARY = "canary"
TOKENS = (
    b"../secret.jpg", b"..\\secret.jpg", b"/etc/hostname", b"file:///etc/hostname", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"%s%n", b"${HOME}",
    b"[" * 3000, b'{"a":' * 3000, b"<script>alert(1)</script>", "\u202e\x1b[31m".encode(), b'"\\ud800"',
    f"cos\nsystem\n(S'touch {CANARY}'\ntR.".encode(),
    "\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0c".encode("latin1") + f"touch {CANARY}".encode() + b"\x85R.",
    f"cbuiltins\nopen\n(S'{CANARY}'\nS'w'\ntR.".encode(),
)  # fmt: skip


def mutated(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    """`data` after one to four random changes. `others`: valid files that pieces are taken from."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice(CHANGES)(data, others, tokens, draw)
    return data


def flip(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.randint(1, 8) if out else 0):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def truncate(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    return data[: draw.randint(0, len(data))]


def splice(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    other, at = draw.choice(others), draw.randint(0, len(data))
    start = draw.randint(0, len(other))
    return data[:at] + other[start : start + draw.randint(0, 2000)] + data[at + draw.choice((0, 0, 100)) :]


def edit_length(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    width = draw.choice((1, 2, 4, 8))
    code = draw.choice("<>") + {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    at = draw.randint(0, max(0, min(len(data), draw.choice((64, 1024, len(data)))) - width))
    return data[:at] + struct.pack(code, draw.choice(SIZES) % 2 ** (8 * width)) + data[at + width :]


def edit_number(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    matches = list(re.finditer(rb"-?\d+(?:\.\d+)?", data[:200_000]))
    if not matches:
        return edit_length(data, others, tokens, draw)
    match = draw.choice(matches)
    return data[: match.start()] + draw.choice(NUMBERS) + data[match.end() :]


def edit_word(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    """A quoted string or a word, replaced by one of the reader's keywords, by another type, or by a path outside."""
    matches = list(re.finditer(rb'"[^"\n]{0,200}"|[a-z_]{3,40}', data[:200_000]))
    token = draw.choice((*tokens, *TOKENS))
    if not matches:
        return insert(data, others, tokens, draw)
    match = draw.choice(matches)
    quoted = match[0].startswith(b'"') and draw.random() < 0.7
    return data[: match.start()] + (b'"' + token + b'"' if quoted else token) + data[match.end() :]


def insert(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    token, at = draw.choice((*tokens, *TOKENS)), draw.randint(0, len(data))
    return data[:at] + token + data[at + draw.choice((0, len(token))) :]


def repeat(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    start = draw.randint(0, len(data))
    end = start + draw.choice((1, 8, 64, 512))
    return data[:end] + data[start:end] * draw.choice((1, 2, 50)) + data[end:]


def cut_out(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    start = draw.randint(0, len(data))
    return data[:start] + data[start + draw.choice((1, 8, 64, 512)) :]


CHANGES = (flip, flip, truncate, splice, edit_length, edit_length, edit_number, edit_word, edit_word, insert, repeat, cut_out)  # fmt: skip


def png_sealed(data: bytes) -> bytes:
    """A PNG with its chunks' checksums repaired, so that the content of the chunks is read."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4])
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(out)


def tar_sealed(data: bytes) -> bytes:
    """A tar with the checksum repaired in every block that looks like a header."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            total = 256 + sum(out[at : at + 148]) + sum(out[at + 156 : at + 512])
            out[at + 148 : at + 156] = b"%06o\0 " % (total % 8**6)
    return bytes(out)
