"""Unquantized tensors to bytes and back, bit for bit: the bytes of one place in all numbers, side by side.

The exponents of trained weights take a few values only, the low bits of mantissas take all alike. So signs
and exponents are parted from mantissas, and each plane of bytes is packed by deflate, or left as it is.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from de_plugin.encode.varints import Reader, varint
from de_plugin.errors import FileError

_WHO = "a tensor of numbers"
_RAW, _PACKED = 0, 1
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)

Planes = npt.NDArray[np.uint8]


def encode_floats(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor of any type and shape, neither of which is written.

    Args:
        tensor: dense; NaN and infinities are kept with all their bits.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return b""
    planes = _split(flat.view(torch.uint8).numpy().reshape(len(flat), -1), _parted(tensor.dtype))
    return b"".join(_pack(plane.tobytes()) for plane in planes)


def decode_floats(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that `encode_floats` wrote.

    Raises:
        FileError: the bytes are damaged or belong to another shape or type.
    """
    count = math.prod(shape)
    if not count:
        if data:
            raise FileError(f"{_WHO} is damaged: {len(data)} bytes for none")
        return torch.empty(shape, dtype=dtype)
    width = dtype.itemsize
    reader = Reader(data, _WHO)
    planes = np.stack([np.frombuffer(_unpack(reader, count), dtype=np.uint8) for _ in range(width)])
    if reader.position != len(data):
        raise FileError(f"{_WHO} is damaged: {len(data) - reader.position} bytes too many")
    raw = _join(planes, _parted(dtype))
    return torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape)


def _parted(dtype: torch.dtype) -> bool:
    """Tell whether a type's exponent is a byte long, next to the sign: float32 and bfloat16."""
    return dtype in (torch.float32, torch.bfloat16)


def _split(raw: Planes, parted: bool) -> Planes:
    """Return ``(bytes of a number, numbers)`` of ``(numbers, bytes of a number)``, little-endian."""
    planes = raw.T.copy()  # never the tensor itself
    if parted:  # sign, exponent, mantissa: the exponent gets the last byte, the sign the one before
        high, low = planes[-1].copy(), planes[-2].copy()
        planes[-1] = (high << 1) | (low >> 7)
        planes[-2] = (high & 0x80) | (low & 0x7F)
    return planes


def _join(planes: Planes, parted: bool) -> Planes:
    if parted:
        exponent, rest = planes[-1].copy(), planes[-2].copy()
        planes[-1] = (rest & 0x80) | (exponent >> 1)
        planes[-2] = (exponent << 7) | (rest & 0x7F)
    return np.ascontiguousarray(planes.T)


def _pack(plane: bytes) -> bytes:
    tried = []
    for strategy in _STRATEGIES:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        tried.append(packer.compress(plane) + packer.flush())
    best = min(tried, key=len)
    if len(best) + len(varint(len(best))) >= len(plane):
        return varint(_RAW) + plane
    return varint(len(best) << 1 | _PACKED) + best


def _unpack(reader: Reader, count: int) -> bytes:
    length, packed = divmod(reader.varint(), 2)
    if not packed:
        if length:
            raise FileError(f"{_WHO} is damaged: a plane that is neither packed nor as it is")
        return reader.take(count)
    try:
        plane = zlib.decompressobj(-zlib.MAX_WBITS).decompress(reader.take(length), count + 1)
    except zlib.error as error:
        raise FileError(f"{_WHO} is damaged ({error})") from error
    if len(plane) != count:
        raise FileError(f"{_WHO} is damaged: a plane that does not hold {count} bytes")
    return plane
