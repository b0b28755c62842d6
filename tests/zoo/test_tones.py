"""Synthetic tones: normalised, of the pitch that they tell, and the same for a seed."""

from __future__ import annotations

import pytest
import torch

from de_plugin.errors import ArgumentError
from de_plugin.zoo import tones


def test_shapes_and_normalisation() -> None:
    heard = tones(50, seed=1)
    assert heard.frames.shape == (50, 1024)
    assert heard.frames.dtype == torch.float32
    assert heard.bins.dtype == torch.int64
    torch.testing.assert_close(heard.frames.mean(1), torch.zeros(50), rtol=0, atol=1e-5)
    torch.testing.assert_close(heard.frames.std(1), torch.ones(50), rtol=0, atol=1e-5)


def test_the_pitch_is_in_range_and_in_the_sound() -> None:
    heard = tones(50, seed=2)
    hertz = 10 * 2 ** (heard.cents / 1200)
    assert bool(((hertz >= 65) & (hertz <= 1000)).all())
    assert float((20.0 * heard.bins + 1997.3794084376191 - heard.cents).abs().max()) <= 10
    spectrum = torch.fft.rfft(heard.frames * torch.hann_window(1024)).abs()
    place = (hertz / 15.625).round().long()
    fundamental = torch.stack([spectrum[n, p - 1 : p + 2].max() for n, p in enumerate(place.tolist())])
    assert bool((fundamental > 2 * spectrum.median(1).values).all())


def test_a_seed_says_it_all() -> None:
    before = torch.get_rng_state()
    first, again, other = tones(5, seed=3), tones(5, seed=3), tones(5, seed=4)
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.cents, again.cents)
    assert not bool((first.cents[:, None] == other.cents).any())
    assert torch.equal(torch.get_rng_state(), before)


def test_mistakes_are_named() -> None:
    with pytest.raises(ArgumentError, match="count is 0, expected at least 1"):
        tones(0)
    with pytest.raises(ArgumentError, match="seed is -1, expected at least 0"):
        tones(1, seed=-1)
