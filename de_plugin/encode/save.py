"""Writes a network, quantized or not, to a compressed file."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from de_plugin.encode import container, tables
from de_plugin.encode.coder import encode_symbols
from de_plugin.encode.entry import QUANTIZABLE, Entry, check
from de_plugin.encode.files import whole
from de_plugin.encode.info import Info, Layer, describe
from de_plugin.encode.planes import encode_floats
from de_plugin.encode.quantized import Quantized
from de_plugin.errors import ArgumentError

_NONE: Mapping[str, Any] = MappingProxyType({})


def save(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor | Quantized],
    metadata: Mapping[str, str] = _NONE,
    *,
    dtypes: Mapping[str, torch.dtype] = _NONE,
) -> Info:
    """Write a network to a file, which is whole or not there at all; an old one is replaced.

    The file is a safetensors file, named ``*.de.safetensors`` by custom. It holds tensors bit for bit,
    quantized ones as their symbols and levels; tensors that share their memory are written once.

    Args:
        path: the file; its folder must exist.
        state: a state dict; some tensors, or all, quantized.
        metadata: text to go with it.
        dtypes: the types in which quantized tensors come back where it is not float32; their levels
            must be exact in them.

    Returns:
        What the file holds and where its bytes went.

    Raises:
        ArgumentError: the state is no dict or holds something else than dense tensors, a name or the
            metadata cannot be written, or levels are not exact in their type.
        FileError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     info = save(f"{folder}/net.de.safetensors", {"weight": torch.zeros(300, 784)})
    >>> info.ratio > 100
    True
    """
    if isinstance(path, Mapping):
        raise ArgumentError(
            "path: is a dict, expected the path of a file; the path comes first, then the state"
        )
    data, info = packed(state, metadata, dtypes=dtypes)
    with whole(path) as draft:
        draft.write_bytes(data)
    return info


def coded(value: Quantized) -> bytes:
    """Return the stream of a quantized tensor's symbols."""
    return encode_symbols(value.symbols)


def dumps(
    state: Mapping[str, Tensor | Quantized],
    metadata: Mapping[str, str] = _NONE,
    *,
    dtypes: Mapping[str, torch.dtype] = _NONE,
    stream: Callable[[Quantized], bytes] = coded,
) -> bytes:
    """Return the bytes of the file that `save` writes.

    Args:
        state: as in `save`.
        metadata: as in `save`.
        dtypes: as in `save`.
        stream: returns what `coded` would; it may know it from before.

    Raises:
        ArgumentError: as `save`.
    """
    return packed(state, metadata, dtypes=dtypes, stream=stream)[0]


def packed(
    state: Mapping[str, Tensor | Quantized],
    metadata: Mapping[str, str] = _NONE,
    *,
    dtypes: Mapping[str, torch.dtype] = _NONE,
    stream: Callable[[Quantized], bytes] = coded,
) -> tuple[bytes, Info]:
    """Return the bytes of the file that `save` writes, and what it would return; arguments as in `dumps`.

    Raises:
        ArgumentError: as `save`.
    """
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"state: is a {type(state).__name__}, expected a dict of tensors by name, such as "
            "model.state_dict() or the .state of what `quantize` returned"
        )
    if strangers := [name for name in dtypes if not isinstance(state.get(name), Quantized)]:
        raise ArgumentError(f"dtypes: {', '.join(map(repr, strangers))}: no quantized tensor has this name")
    seen: dict[Hashable, int] = {}
    entries: list[Entry] = []
    streams: list[bytes] = []
    layers: list[Layer] = []
    packed, numbers = _tables(state)
    for name, value in state.items():
        entry = _entry(name, value, dtypes.get(name, torch.float32))
        memory = (entry.dtype, _memory(value))
        if entry.elements and (same := seen.setdefault(memory, len(entries))) < len(entries):
            entries.append(Entry(name, entry.dtype, entry.shape, same=same))
            streams.append(b"")
            layers.append(layers[same].tied(name))
            continue
        held = _held(value)
        data = stream(value) if isinstance(value, Quantized) else _exact(held)
        axis = value.axis if isinstance(value, Quantized) else None
        entries.append(Entry(name, entry.dtype, entry.shape, len(data), numbers.get(name), axis))
        streams.append(data)
        layers.append(describe(entries[-1], held))
    file, parts = container.pack(metadata, entries, packed, streams)
    return file, Info(tuple(layers), dict(metadata), len(file), parts)


def _entry(name: str, value: Tensor | Quantized, dtype: torch.dtype) -> Entry:
    """Return the entry of a value, its stream and table still to come; refuse what cannot be written."""
    if isinstance(value, Quantized):
        if dtype not in QUANTIZABLE:
            raise ArgumentError(f"dtypes: {name} as {dtype}: expected one of {QUANTIZABLE}")
        if not torch.equal(value.levels.to(dtype).float(), value.levels):
            raise ArgumentError(
                f"dtypes: {name} as {dtype}: its levels are not exact in it; round them first"
            )
        entry = Entry(name, dtype, tuple(value.symbols.shape))
    elif isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ArgumentError(
                f"{name} is {value.layout} on {value.device}, of {value.dtype}: expected a dense tensor with "
                "values; call to_dense(), dequantize() or to_empty() first"
            )
        entry = Entry(name, value.dtype, tuple(value.shape))
    else:
        raise ArgumentError(
            f"{name} is {type(value).__name__}: expected a tensor or Quantized; leave it out of the state"
        )
    if not isinstance(name, str):
        raise ArgumentError(f"state: the name {name!r} is {type(name).__name__}, expected text")
    check(entry)
    return entry


def _tables(state: Mapping[str, Tensor | Quantized]) -> tuple[list[bytes], dict[str, int]]:
    """Return the packed tables, equal ones once, and the number of the table of each quantized tensor.

    A table holds the levels from the lowest symbol in use to the highest; tensors of the same levels
    share one.
    """
    sharing: dict[Hashable, list[tuple[str, Quantized]]] = {}
    for name, value in state.items():
        if isinstance(value, Quantized):
            levels = value.levels.detach().cpu()
            key = (levels.numpy().tobytes(), levels.shape, value.lowest, value.axis is None)
            sharing.setdefault(key, []).append((name, value))
    packed: dict[bytes, int] = {}
    numbers = {}
    for group in sharing.values():
        used = [value.symbols for _, value in group if value.symbols.numel()]
        low = min([0, *(int(symbols.min()) for symbols in used)])
        high = max([0, *(int(symbols.max()) for symbols in used)])
        first = group[0][1]
        levels = first.levels.detach().cpu()[:, low - first.lowest : high - first.lowest + 1]
        table = tables.pack(levels, low, grouped=first.axis is not None)
        number = packed.setdefault(table, len(packed))
        numbers.update({name: number for name, _ in group})
    return list(packed), numbers


def _held(value: Tensor | Quantized) -> Tensor:
    """Return symbols or values on the CPU."""
    tensor = value.symbols if isinstance(value, Quantized) else value.resolve_conj().resolve_neg()
    return tensor.detach().cpu()


def _exact(tensor: Tensor) -> bytes:
    """Return the stream of a tensor: packed, or where that is not shorter, as it is in memory."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    packed = encode_floats(tensor)
    return packed if len(packed) < len(raw) else raw


def _memory(value: Tensor | Quantized) -> Hashable:
    """Return what two values have in common only if they are the same values in the same memory."""
    if isinstance(value, Quantized):
        levels = value.levels.detach().cpu()
        return (_memory(value.symbols), levels.numpy().tobytes(), levels.shape, value.lowest, value.axis)
    where = value.untyped_storage().data_ptr(), value.storage_offset()
    return (value.device, *where, value.shape, value.stride(), value.is_conj(), value.is_neg(), value.dtype)
