"""What a file holds: names, types, shapes and lengths of its entries, and their level tables.

The manifest is written plain or deflated (raw deflate with a dictionary of usual names), whichever is
shorter: the number of entries, their names, each ended by a zero byte, the tables, and then, each for all
entries: one number for kind, type and dimensions; the shapes; the tables, with the axis of grouped ones, or
the earlier entry that a tied one shares its memory with; and the bytes of the streams.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from de_plugin.encode import tables
from de_plugin.encode.entry import CODES, DIMENSIONS, QUANTIZABLE, TYPES, Entry, possible
from de_plugin.encode.tables import Table
from de_plugin.encode.varints import Reader, varint
from de_plugin.errors import FileError

_SAME = 0  # the kind of a tied entry; a type's code + 1 makes two kinds, exact and quantized
_FEW = 7  # dimensions that fit beside the kind

# The most usual names last, where deflate reaches them with the fewest bits. Part of the format.
_DICTIONARY = (
    b"relative_position_bias_table\0position_ids\0token_type_embeddings.weight\0embeddings.LayerNorm.weight\0"
    b"lm_head.weight\0transformer.h.0.ln_1.weight\0attn.c_attn.weight\0mlp.c_fc.weight\0mlp.c_proj.weight\0"
    b"model.layers.0.self_attn.q_proj.weight\0k_proj.weight\0v_proj.weight\0o_proj.weight\0"
    b"gate_proj.weight\0up_proj.weight\0down_proj.weight\0input_layernorm.weight\0"
    b"encoder.layers.0.self_attn.in_proj_weight\0self_attn.in_proj_bias\0out_proj.weight\0out_proj.bias\0"
    b"linear1.weight\0linear1.bias\0linear2.weight\0linear2.bias\0decoder.block.query.key.value.dense.output."
    b"patch_embed.proj.weight\0cls_token\0pos_embed\0qkv.weight\0qkv.bias\0head.weight\0head.bias\0"
    b"backbone.stem.shortcut.norm1.weight\0norm2.weight\0blocks.0.layers.0.block1.conv.0.0.weight\0"
    b"layer1.0.downsample.0.weight\0layer2.0.conv3.weight\0layer3.1.bn3.weight\0layer4.1.bn1.running_mean\0"
    b"classifier.6.weight\0classifier.6.bias\0features.0.weight\0features.0.bias\0"
    b"bn1.weight\0bn1.bias\0bn1.running_mean\0bn1.running_var\0bn1.num_batches_tracked\0"
    b"conv1.weight\0conv1.bias\0conv2.weight\0conv2.bias\0fc.weight\0fc.bias\0"
    b"fc1.weight\0fc1.bias\0fc2.weight\0fc2.bias\0fc3.weight\0fc3.bias\0"
)
_WORKING = 24  # bytes of memory for each symbol while a tensor is decoded
_LARGEST = 2**26  # bytes of a manifest; 100,000 entries need a tenth of that


@dataclass(frozen=True)
class Manifest:
    """All entries, in the state dict's order, and the level tables they refer to."""

    entries: tuple[Entry, ...]
    tables: tuple[Table, ...]


def pack(entries: list[Entry], packed_tables: list[bytes]) -> bytes:
    """Return the bytes of a manifest, its length included.

    Args:
        entries: checked, with unique names; a `table` is an index into `packed_tables`.
        packed_tables: the tables, as `de_plugin.encode.tables.pack` makes them.
    """
    grouped = [tables.has_groups(table[0]) for table in packed_tables]
    body = bytearray(varint(len(entries)))
    for entry in entries:
        body += entry.name.encode() + b"\0"
    body += varint(len(packed_tables)) + b"".join(packed_tables)
    kinds, links, shapes, lengths = bytearray(), bytearray(), bytearray(), bytearray()
    usual = 0
    for entry in entries:
        if entry.same is not None:
            kinds += varint(_SAME)
            links += varint(entry.same)
            continue
        kind = 1 + 2 * CODES[entry.dtype] + (entry.table is not None)
        dims = len(entry.shape)
        kinds += varint(kind * (_FEW + 1) + min(dims, _FEW))
        if dims >= _FEW:
            shapes += varint(dims)
        for size in entry.shape:
            shapes += varint(0 if size == usual else size + 1)
        if entry.table is not None:
            links += varint(entry.table)
            if grouped[entry.table]:
                links += varint(entry.axis or 0)
        lengths += varint(entry.length)
        usual = entry.shape[0] if entry.shape else 0
    body += kinds + shapes + links + lengths
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_DICTIONARY)
    small = deflater.compress(bytes(body)) + deflater.flush()
    plain = varint(2 * len(body)) + bytes(body)
    deflated = varint(2 * len(body) + 1) + varint(len(small)) + small
    return min(plain, deflated, key=len)


def extent(reader: Reader) -> tuple[int, int, bool]:
    """Read a manifest's first numbers: its length, its bytes in the file, and whether it is deflated.

    Raises:
        FileError: they are damaged, or larger than any manifest.
    """
    length, deflated = divmod(reader.varint(), 2)
    stored = reader.varint() if deflated else length
    if length > _LARGEST or stored > _LARGEST:
        raise FileError(f"the manifest is damaged: it claims {length} bytes, {stored} of them in the file")
    return length, stored, bool(deflated)


def unpack(stored: bytes, length: int, deflated: bool, limit: int) -> Manifest:
    """Return what the bytes after a manifest's first numbers hold.

    Args:
        stored: the bytes in the file.
        length: the bytes of the manifest when inflated.
        deflated: whether it is.
        limit: the bytes that all tensors and tables together may need in memory, and decoding the largest.

    Raises:
        FileError: the manifest is damaged, or promises more than `limit`.
    """
    reader = Reader(_inflate(stored, length) if deflated else stored, "the manifest")
    count = reader.varint()
    if count > length:
        raise FileError(f"the manifest is damaged: {count} entries in {length} bytes")
    names = [reader.text() for _ in range(count)]
    if len(set(names)) != count:
        raise FileError("the manifest is damaged: a name comes twice")
    known = []
    needed = working = 0
    for _ in range(reader.varint()):
        known.append(tables.unpack(reader, limit - needed))
        needed += known[-1].numbers.numel() * 4
    entries = []
    for entry in _entries(reader, names, known):
        needed += 0 if entry.same is not None else entry.dense_bytes
        if entry.table is not None and entry.length:
            working = max(working, _WORKING * entry.elements)
        if needed + working > limit:
            raise FileError(
                f"up to entry {entry.name!r} of shape {entry.shape}, {needed + working} bytes of memory are "
                f"needed, more than the {limit} expected of such a file: if you trust it, give "
                f"max_bytes={needed + working} or more"
            )
        entries.append(entry)
    reader.finish()
    return Manifest(tuple(entries), tuple(known))


def _entries(reader: Reader, names: list[str], known: list[Table]) -> Iterator[Entry]:
    """Read all kinds, then all shapes, what they refer to, and their lengths."""
    kinds = [divmod(reader.varint(), _FEW + 1) for _ in names]
    types = [_type(kind, name) for (kind, _), name in zip(kinds, names, strict=True)]
    shapes = []
    usual = 0
    for (kind, dims), name in zip(kinds, names, strict=True):
        shape = _shape(reader, dims, usual, name)
        if kind != _SAME:
            usual = shape[0] if shape else 0
        shapes.append(shape)
    links: list[tuple[int | None, int | None, int | None]] = []
    for place, ((kind, _), name) in enumerate(zip(kinds, names, strict=True)):
        if kind == _SAME:
            other = reader.varint()
            if shapes[place] or other >= place or kinds[other][0] == _SAME:
                raise FileError(f"the manifest is damaged: entry {name!r} is tied to no earlier one")
            links.append((None, None, other))
        else:
            link = _table(reader, shapes[place], known, name) if kind % 2 == 0 else (None, None)
            links.append((*link, None))
    for name, dtype, shape, (table, axis, same) in zip(names, types, shapes, links, strict=True):
        if same is not None:
            yield Entry(name, types[same], shapes[same], same=same)
        else:
            yield Entry(name, dtype, shape, reader.varint(), table, axis)


def _type(kind: int, name: str) -> torch.dtype:
    """Return the type that a kind stands for; any where it is tied."""
    code, quantized = divmod(max(kind - 1, 0), 2)
    if code >= len(TYPES):
        raise FileError(f"entry {name!r} has a type of number {code}: damaged, or of a newer de_plugin")
    dtype = getattr(torch, TYPES[code], None)
    if not isinstance(dtype, torch.dtype):
        raise FileError(f"entry {name!r} is of type {TYPES[code]}, which torch {torch.__version__} lacks")
    if quantized and dtype not in QUANTIZABLE:
        raise FileError(f"the manifest is damaged: entry {name!r} of {dtype} is quantized")
    return dtype


def _shape(reader: Reader, dims: int, usual: int, name: str) -> tuple[int, ...]:
    """Read a shape; 0 stands for the usual size, other numbers for a size less than them by one."""
    if dims == _FEW:
        dims = reader.varint()
    if dims > DIMENSIONS:
        raise FileError(f"the manifest is damaged: entry {name!r} has {dims} dimensions")
    sizes = [reader.varint() for _ in range(dims)]
    shape = tuple(size - 1 if size else usual for size in sizes)
    if not possible(shape):
        raise FileError(f"the manifest is damaged: entry {name!r} has the shape {shape}")
    return shape


def _table(reader: Reader, shape: tuple[int, ...], known: list[Table], name: str) -> tuple[int, int | None]:
    """Read the number of a level table, and the dimension that its groups belong to, if it has any."""
    table = reader.varint()
    if table >= len(known):
        raise FileError(f"the manifest is damaged: entry {name!r} has level table {table} of {len(known)}")
    if not known[table].grouped:
        return table, None
    axis, groups = reader.varint(), len(known[table].numbers)
    if axis >= len(shape) or shape[axis] != groups:
        raise FileError(
            f"the manifest is damaged: entry {name!r} of shape {shape} has {groups} groups along "
            f"dimension {axis}"
        )
    return table, axis


def _inflate(stored: bytes, length: int) -> bytes:
    """Return exactly `length` bytes, and never hold more."""
    inflater = zlib.decompressobj(-15, zdict=_DICTIONARY)
    try:
        body = inflater.decompress(stored, length + 1)
    except zlib.error as error:
        raise FileError(f"the manifest is damaged ({error})") from error
    if len(body) != length or not inflater.eof or inflater.unused_data:
        raise FileError(f"the manifest is damaged: expected {length} bytes")
    return body
