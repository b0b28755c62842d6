"""Synthetic audio of known pitch: noisy harmonic tones of one frame each, the same for a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from de_plugin.errors import ArgumentError

from .crepe import bins_of

_RATE, _LENGTH = 16_000, 1024
_LOWEST, _HIGHEST = 65.0, 1000.0
_PARTIALS = 40
_DECIBELS = (0.0, 10.0, 20.0, 40.0)


@dataclass(frozen=True, eq=False)
class Tones:
    """Frames of audio with their pitch.

    Attributes:
        frames: float32 (n, 1024) at 16 kHz, each of mean 0 and standard deviation 1.
        cents: float64 (n,), above 10 Hz.
        bins: int64 (n,), the nearest of CREPE's 360.
    """

    frames: Tensor
    cents: Tensor
    bins: Tensor


def tones(count: int, seed: int = 0) -> Tones:
    """Steady harmonic tones from 65 to 1,000 Hz, pitch uniform on a logarithmic scale.

    The amplitudes of up to 40 partials below 7.8 kHz fall as a random power, 0.5 to 2, of their
    number, each times a random factor from 0.5 to 1; their phases are random. White noise is added
    at 0, 10, 20 or 40 dB below the tone.

    Args:
        count: of frames, at least 1.
        seed: of every draw, 0 or more; frames of different seeds have nothing in common.

    Raises:
        ArgumentError: ``count`` or ``seed`` is too small.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value < least:
            raise ArgumentError(f"{name} is {value}, expected at least {least}")
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draw, dtype=torch.float64)

    pitch = _LOWEST * (_HIGHEST / _LOWEST) ** uniform(0, 1)
    number = torch.arange(1, _PARTIALS + 1, dtype=torch.float64)
    amplitude = number ** -uniform(0.5, 2, 1) * uniform(0.5, 1, _PARTIALS)
    amplitude *= pitch[:, None] * number < 7800
    phase = uniform(0, 2 * torch.pi, _PARTIALS)
    time = torch.arange(_LENGTH, dtype=torch.float64) / _RATE
    audio = torch.zeros(count, _LENGTH, dtype=torch.float64)
    for k in range(_PARTIALS):  # one partial at a time bounds the memory
        angle = 2 * torch.pi * (k + 1) * pitch[:, None] * time + phase[:, k, None]
        audio += amplitude[:, k, None] * angle.sin()
    decibels = torch.tensor(_DECIBELS)[torch.randint(len(_DECIBELS), (count, 1), generator=draw)]
    noise = torch.randn(count, _LENGTH, generator=draw, dtype=torch.float64)
    audio += noise * audio.std(1, keepdim=True) * 10 ** (-decibels / 20)
    audio -= audio.mean(1, keepdim=True)
    frames = (audio / audio.std(1, keepdim=True)).float()
    cents = 1200 * torch.log2(pitch / 10)
    return Tones(frames, cents, bins_of(cents))
