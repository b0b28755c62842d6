"""Ten thousand damaged files: each is refused with an error that says so, or holds the original tensors."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from de_plugin.encode import Quantized, dumps, frame, inspect, load, loads, manifest
from de_plugin.encode.container import Container
from de_plugin.encode.frame import MemorySource
from de_plugin.encode.varints import Reader, varint
from de_plugin.errors import DEError, FileError
from tests.encode.networks import dense, quantize, same

MUTANTS = 1_000  # of each of ten kinds
MEMORY = 2**16


def original(seed: int = 0) -> dict[str, Tensor | Quantized]:
    torch.manual_seed(seed)
    weight = quantize(torch.empty(3, 4), density=0.5, seed=seed)
    return {
        "conv.weight": quantize(torch.empty(3, 2), axis=0, density=0.5, seed=seed),
        "conv.bias": torch.randn(4),
        "fc.weight": weight,
        "tied.weight": weight,
        "steps": torch.tensor(7 + seed),
        "mask": torch.tensor([True, False]),
        "noise": torch.randint(0, 256, (4200,), dtype=torch.uint8),
    }


STATE = original()
FILE = dumps(STATE, {"a": "b"})
OTHER = dumps(original(1), {"a": "c"})

Mutation = Callable[[random.Random], bytes]


def flip(chance: random.Random) -> bytes:
    data = bytearray(FILE)
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def flip_early(chance: random.Random) -> bytes:
    data = bytearray(FILE)
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(300)] ^= 1 << chance.randrange(8)
    return bytes(data)


def cut(chance: random.Random) -> bytes:
    return FILE[: chance.randrange(len(FILE))]


def insert(chance: random.Random) -> bytes:
    place = chance.randrange(len(FILE) + 1)
    return FILE[:place] + chance.randbytes(chance.choice([1, 4, 100])) + FILE[place:]


def blank(chance: random.Random) -> bytes:
    start, length = chance.randrange(len(FILE)), chance.choice([1, 4, 64, 1000])
    return (FILE[:start] + bytes(length) + FILE[start + length :])[: len(FILE)]


def splice(chance: random.Random) -> bytes:
    return FILE[: chance.randrange(len(FILE))] + OTHER[chance.randrange(len(OTHER)) :]


def rewrite(chance: random.Random) -> bytes:
    """Change the text of the header, its length and the payload's to fit."""
    length = int.from_bytes(FILE[:8], "little")
    text = bytearray(FILE[8 : 8 + length])
    for _ in range(chance.choice([1, 2, 5])):
        text[chance.randrange(len(text))] = chance.choice(b'{}[]":,0123456789.-eEU8\\ \xff')
    if chance.random() < 0.3:
        del text[chance.randrange(len(text)) :]
    return len(text).to_bytes(8, "little") + text + FILE[8 + length :]


class Pieces:
    """A file taken apart, to be put together with checksums that fit."""

    def __init__(self) -> None:
        outside = frame.unpack(MemorySource(FILE))
        reader = Reader(FILE[outside.start :], "file")
        length, stored, deflated = manifest.extent(reader)
        self.body = manifest._inflate(reader.take(stored), length) if deflated else reader.take(stored)
        container = Container(MemorySource(FILE))
        self.streams = [container.stream(place) for place in range(len(STATE))]

    def together(self, body: bytes, streams: list[bytes]) -> bytes:
        head = varint(2 * len(body)) + body + b"".join(part for part in streams if len(part) <= 4096)
        payload = head + _crc(head, frame.canonical({"a": "b"}))
        for part in streams:
            if len(part) > 4096:
                payload += part + _crc(part)
        return frame.pack({"a": "b"}, len(payload)) + payload


def _crc(data: bytes, before: bytes = b"") -> bytes:
    import zlib

    return zlib.crc32(data, zlib.crc32(before)).to_bytes(4, "little")


PIECES = Pieces()


def change(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4]) if data else 0):
        place = chance.randrange(len(changed))
        way = chance.randrange(4)
        if way == 0:
            changed[place] ^= 1 << chance.randrange(8)
        elif way == 1:
            changed[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif way == 2:
            changed[place:place] = chance.randbytes(chance.choice([1, 9]))
        elif len(changed) > 1:
            del changed[place]
    return bytes(changed)


def change_manifest(chance: random.Random) -> bytes:
    return PIECES.together(change(PIECES.body, chance), PIECES.streams)


def change_stream(chance: random.Random) -> bytes:
    """Another stream of the same length."""
    streams = list(PIECES.streams)
    place = chance.choice([place for place, stream in enumerate(streams) if stream])
    damaged = change(streams[place], chance)[: len(streams[place])]
    streams[place] = damaged + chance.randbytes(len(streams[place]) - len(damaged))
    return PIECES.together(PIECES.body, streams)


def change_both(chance: random.Random) -> bytes:
    body = change(PIECES.body, chance)
    return PIECES.together(body, [change(stream, chance) for stream in PIECES.streams])


@pytest.mark.parametrize("mutation", [flip, flip_early, cut, insert, blank, splice, rewrite])
def test_damage_is_told_or_does_no_harm(mutation: Mutation) -> None:
    chance = random.Random(mutation.__name__)
    refused = 0
    for _ in range(MUTANTS):
        data = mutation(chance)
        try:
            loaded = loads(data)
        except DEError:
            refused += 1
            continue
        assert list(loaded) == list(STATE)
        assert all(same(loaded[name], dense(value)) for name, value in STATE.items())
    assert refused > MUTANTS / 4


@pytest.mark.parametrize("mutation", [change_manifest, change_stream, change_both])
def test_damage_that_the_checksums_miss_is_told_or_loads_something(mutation: Mutation) -> None:
    chance = random.Random(mutation.__name__)
    loaded = 0
    for _ in range(MUTANTS):
        data = mutation(chance)
        try:
            state = loads(data, max_bytes=MEMORY)
        except DEError:
            continue
        loaded += 1
        assert sum(tensor.nbytes for tensor in state.values()) <= 2 * MEMORY  # tied ones count twice
    assert loaded < MUTANTS


class Holder(torch.nn.Module):
    """A module whose state has the names and shapes of the file."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in STATE.items():
            owner, _, own = name.rpartition(".")
            if owner and owner not in dict(self.named_children()):
                self.add_module(owner, torch.nn.Module())
            self.get_submodule(owner).register_buffer(own, torch.zeros_like(dense(value)))


@pytest.mark.parametrize("mutation", [flip, flip_early, rewrite, change_manifest, change_both])
def test_damage_leaves_a_model_as_it_was_and_inspecting_is_no_worse(
    mutation: Mutation, tmp_path: Path
) -> None:
    chance = random.Random(mutation.__name__)
    place, model = tmp_path / "damaged.de.safetensors", Holder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refused = 0
    for _ in range(MUTANTS // 10):
        place.write_bytes(mutation(chance))
        with contextlib.suppress(DEError):
            inspect(place, max_bytes=MEMORY)
        try:
            load(place, into=model, max_bytes=MEMORY)
        except DEError:
            refused += 1
            assert all(same(value, before[name]) for name, value in model.state_dict().items())
            continue
        model.load_state_dict(before)
    assert refused > 0


def test_the_pieces_make_the_file() -> None:
    loaded = loads(PIECES.together(PIECES.body, PIECES.streams))
    assert all(same(loaded[name], dense(value)) for name, value in STATE.items())


@pytest.mark.parametrize("size", range(0, 200, 7))
def test_any_few_bytes_are_refused(size: int) -> None:
    chance = random.Random(size)
    for data in (bytes(size), chance.randbytes(size), FILE[:size], b"\xff" * size):
        with pytest.raises(FileError):
            loads(data)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ('{"de2":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}', "newer version"),
        ('{"dex":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}', "load_file"),
        ('{"de1":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}', "describe"),
        ('{"de1":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},"w":{}}', "load_file"),
        ('{"__metadata__":{"a":"1","a":"1"}}', "twice"),
        ('{"__metadata__":{"a":1},"de1":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}', "not text"),
        ('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "load_file"),
        ("[" * 100_000, "damaged"),
        ("[1]", "list"),
        ("\ufeff{}", "damaged"),
        ("9" * 10_000, "damaged"),
    ],
)
def test_other_headers_are_told_apart(header: str, match: str) -> None:
    raw = header.encode()
    with pytest.raises(FileError, match=match):
        loads(len(raw).to_bytes(8, "little") + raw + bytes(9))


BOMBS = """
import resource, sys
from de_plugin.encode import loads
from de_plugin.errors import FileError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

data = sys.stdin.buffer.read()
before = peak()
for text in data.split():
    try:
        loads(bytes.fromhex(text.decode()))
    except FileError as error:
        print(error)
print(peak() - before, "KiB more")
"""


def bomb(size: int, quantized: bool) -> bytes:
    """A file of valid checksums that promises a tensor of this size."""
    kind = varint(8 * (2 if quantized else 1) + 1)
    tables = b"\x01" + bytes([2 * 16, 0, 0]) if quantized else b"\0"
    body = b"\x01a\0" + tables + kind + varint(size + 1) + (b"\0" if quantized else b"") + b"\x04"
    return PIECES.together(body, [bytes(4)])


def test_bombs_allocate_nothing() -> None:
    bombs = [bomb(size, quantized) for size in (2**28, 2**40, 2**55) for quantized in (False, True)]
    bombs.append(bomb(2**26, True))  # fits, but to decode it takes several times as much
    text = " ".join(data.hex() for data in bombs).encode()
    done = subprocess.run([sys.executable, "-c", BOMBS], input=text, capture_output=True, check=False)
    *told, last = done.stdout.decode().splitlines()
    assert len(told) == len(bombs), done.stderr.decode()
    assert all("give max_bytes=" in line for line in told)
    assert int(last.split()[0]) < 16 * 1024
