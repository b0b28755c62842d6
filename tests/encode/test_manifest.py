"""The manifest: what it holds comes back, in few bytes, and damage is told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from de_plugin.encode import manifest, tables
from de_plugin.encode.entry import CODES, QUANTIZABLE, Entry, check
from de_plugin.encode.varints import Reader, varint
from de_plugin.errors import ArgumentError, FileError

SINGLE = tables.pack(torch.tensor([[-0.5, 0.0, 0.5]]), -1, grouped=False)
GROUPED = tables.pack(torch.tensor([[-0.5, 0.0], [-0.1, 0.0], [-0.3, 0.0]]), -1, grouped=True)


def unpack(data: bytes, limit: int = 2**62) -> manifest.Manifest:
    reader = Reader(data, "manifest")
    length, stored, deflated = manifest.extent(reader)
    body = reader.take(stored)
    reader.finish()
    return manifest.unpack(body, length, deflated, limit)


@given(st.integers(0, 2**63 - 1))
def test_numbers_come_back(number: int) -> None:
    reader = Reader(varint(number), "number")
    assert reader.varint() == number
    reader.finish()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9 + b"\x01", b"\x80" * 12 + b"\x01"])
def test_numbers_without_end_are_refused(data: bytes) -> None:
    with pytest.raises(FileError, match="damaged"):
        Reader(data, "number").varint()


shapes = (st.lists(st.integers(0, 50), max_size=9) | st.lists(st.integers(0, 9999), max_size=3)).map(tuple)


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    text = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
    made: list[Entry] = []
    for name in draw(st.lists(text, max_size=8, unique=True)):
        originals = [place for place, entry in enumerate(made) if entry.same is None]
        kind = draw(st.sampled_from(["exact", "single", "grouped", "same"]))
        length = draw(st.integers(0, 2**40))
        if kind == "same" and originals:
            same = draw(st.sampled_from(originals))
            made.append(Entry(name, made[same].dtype, made[same].shape, same=same))
        elif kind == "single":
            made.append(Entry(name, draw(st.sampled_from(QUANTIZABLE)), draw(shapes), length, 0))
        elif kind == "grouped":
            shape = (*draw(shapes), 3)
            made.append(Entry(name, torch.float32, shape, length, 1, len(shape) - 1))
        else:
            made.append(Entry(name, draw(st.sampled_from(sorted(CODES, key=str))), draw(shapes), length))
    return made


@settings(deadline=None, max_examples=200)
@given(entries())
def test_any_entries_come_back(made: list[Entry]) -> None:
    for entry in made:
        check(entry)
    assert unpack(manifest.pack(made, [SINGLE, GROUPED])).entries == tuple(made)


def test_usual_names_take_few_bytes() -> None:
    made = [
        Entry(f"{layer}.{kind}", torch.float32, shape if kind == "weight" else shape[:1], 300, 0)
        for layer, shape in {
            "conv1": (20, 1, 5, 5),
            "conv2": (50, 20, 5, 5),
            "fc1": (500, 800),
            "fc2": (10, 500),
        }.items()
        for kind in ("weight", "bias")
    ]
    assert len(manifest.pack(made, [SINGLE])) <= 50


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (Entry("a\0b", torch.float32, ()), "zero bytes"),
        (Entry("\ud800", torch.float32, ()), "UTF-8"),
        (Entry("a", torch.quint8, ()), "type"),
        (Entry("a", torch.float32, (1,) * 65), "dimensions"),
        (Entry("a", torch.float32, (0, 2**60)), "values"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(entry: Entry, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        check(entry)


def body(*parts: bytes) -> bytes:
    joined = b"".join(parts)
    return varint(2 * len(joined)) + joined


EXACT = varint(8 * 1 + 1)  # float32, one dimension
HALF = varint(8 * 6 + 1)  # quantized float16


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (body(b"\x02a\0a\0", b"\0", EXACT * 2, b"\x02\x02", b"\x00\x00"), "twice"),
        (body(b"\x01\xff\0", b"\0", EXACT, b"\x02", b"\x00"), "not UTF-8"),
        (body(b"\x01a"), "no end"),
        (body(varint(2**40)), "entries"),
        (body(b"\x01a\0", b"\0", varint(8 * 200 + 1), b"\x02", b"\x00"), "type of number"),
        (body(b"\x01a\0", b"\0", EXACT, varint(2**50), b"\x00"), "give max_bytes="),
        (body(b"\x01a\0", b"\0", EXACT, varint(2**60), b"\x00"), "shape"),
        (body(b"\x01a\0", b"\0", EXACT, b"\x02", b"\x00\x00"), "too many"),
        (body(b"\x01a\0", b"\0", b"\x0f", varint(70), b"\x02" * 70, b"\x00"), "70 dimensions"),
        (body(b"\x01a\0", b"\0", b"\x00", b"\x00", b"\x00"), "tied"),
        (body(b"\x03a\0b\0c\0", b"\0", EXACT + b"\x00\x00", b"\x02", b"\x00\x01", b"\x00"), "tied"),
        (body(b"\x01a\0", b"\0", HALF, b"\x02", b"\x00", b"\x00"), "level table 0 of 0"),
        (body(b"\x01a\0", b"\x01" + SINGLE, HALF, b"\x02", b"\x01", b"\x00"), "level table 1 of 1"),
        (body(b"\x01a\0", b"\x01" + GROUPED, HALF, b"\x02", b"\x00\x00", b"\x00"), "3 groups"),
        (body(b"\x01a\0", b"\0", varint(8 * 4 + 1), b"\x02", b"\x00", b"\x00"), "is quantized"),
        (varint(2**40), "claims"),
        (varint(2 * 70 + 1) + varint(3) + b"abc", "damaged"),
    ],
)
def test_damage_is_told(data: bytes, match: str) -> None:
    with pytest.raises(FileError, match=match):
        unpack(data, 2**40)


def test_a_manifest_never_inflates_to_more_than_it_claims() -> None:
    many = [Entry(f"{number:06}", torch.float32, (1,)) for number in range(20_000)]
    data = manifest.pack(many, [])
    reader = Reader(data, "manifest")
    length, stored, deflated = manifest.extent(reader)
    assert deflated
    with pytest.raises(FileError, match="expected 100 bytes"):
        manifest.unpack(reader.take(stored), 100, deflated, 2**40)
    assert len(unpack(data).entries) == len(many)
    assert stored < length / 3
