"""A file that was written once is read the same for ever, on every machine."""

from __future__ import annotations

import base64
import hashlib

import torch
from torch import Tensor

from de_plugin.encode import Quantized, loads
from de_plugin.encode.coder import encode_symbols

GOLDEN = """
XAAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJub3RlIjoiZ29sZGVuIn0sImRlMSI6eyJkdHlwZSI6IlU4Iiwic2hhcGUiOlszNTdd
LCJkYXRhX29mZnNldHMiOlswLDM1N119feMBUWNHGAeODmQ2WAFylgDGeAFDbmJxNrDEKCipZGBiYNBJ5mBk5ONOTnBgZeC/nbiJ
mZWJQUiE01IikktSlZOdhYWBgYuRhYGRoZfRXkGAg5MBAAStDdAlUmZVZzFzvTn7w5Oz2zc81UO7lC+oypdeFnISI53r9VYTMfa7
Tj1Bapa4bw8U9n5xvV8ZRf8RqmI0LvG1YvQggdAlnPQ0Tg2ilV2Ixq3IA0obmrnGsO0hFyQqxLfRW0G+E6YeSTyDhj5ZP2wNhkHO
ewAyd5B+w4nj/HEky/sXMzbzuZ/wQY6EnQKQc4aIPpaM144JtoWXrt4qBLSRvc7t1/5lKt8w6Hc5KQFbmMrF7svYdWIjausmb4e3
yA6Qh5T3BFk2q4VVEgBg6sAAroVAAOxiQAD62EAAkAfAAM7kwADq9UAAprPASMGwPzhAEkFAQNA/OMA+wTkwAAAAAAAAAQAAAAEA
AAAB9/fAjw==
"""


def state() -> dict[str, Tensor | Quantized]:
    """Return a network made by whole numbers alone: no generator of random numbers may change it."""
    place = torch.arange(24 * 36)
    mixed = (place * place * 7919 + place * 104729) % 65537
    symbols = torch.where(mixed % 7 < 2, mixed % 5 - 2, 0).reshape(24, 36).int()
    kernels = torch.where(mixed[:432] % 5 < 2, mixed[:432] % 3 - 1, 0).reshape(8, 6, 3, 3).int()
    return {
        "fc.weight": Quantized(symbols, torch.arange(-2, 3)[None] * torch.tensor(0.0625), -2),
        "conv.weight": Quantized(kernels, torch.tensor([[-0.5, 0.0, 0.25]]).repeat(8, 1), -1, 0),
        "conv.bias": (mixed[:8] - 30000).float() / 4096,
        "norm.weight": (mixed[:8] % 200 - 100).to(torch.bfloat16) / 8,
        "step": torch.tensor(12345),
        "mask": mixed[:9] % 2 == 0,
        "empty": torch.zeros(0, 3),
    }


CODED = {"fc.weight": "cb3bbd3f1fb24e37", "conv.weight": "2c6ef7b5efb651d8"}
"""Digests of what the coder makes of the symbols; what zlib makes of the rest is its own affair."""


def test_the_coder_writes_what_it_wrote() -> None:
    found = {
        name: hashlib.sha256(encode_symbols(value.symbols)).hexdigest()[:16]
        for name, value in state().items()
        if isinstance(value, Quantized)
    }
    assert found == CODED


def test_an_old_file_is_read_bit_for_bit() -> None:
    found = loads(base64.b64decode(GOLDEN))
    expected = state()
    assert list(found) == list(expected)
    for name, value in expected.items():
        wanted = value.dequantize() if isinstance(value, Quantized) else value
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name], wanted)
