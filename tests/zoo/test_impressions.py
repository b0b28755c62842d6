"""Impressions: a detector sees in them what was wanted, and neither it nor the starts are changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from de_plugin.errors import ArgumentError, DataError
from de_plugin.zoo import (
    Darknet,
    FreshViews,
    Impressions,
    darknet,
    decode,
    detections,
    photo_files,
    read_photos,
)
from tests.zoo.shared_data import shared
from tests.zoo.test_darknet import CONV, LAST, NET, SMALL, YOLO, write


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def starts(count: int = 6) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), generator=drawn(9), dtype=torch.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Darknet:
    """Return a small detector whose batch norms know the statistics of grey images with some noise."""
    net = darknet(write(tmp_path, SMALL), seed=0)
    net.train()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0  # what it sees last is what it knows
    with torch.no_grad():
        net(0.5 + 0.1 * torch.randn(64, 3, 32, 32, generator=drawn(3)))
    return net.eval()


def errors(model: Darknet, images: Tensor) -> float:
    """Return the mean square error of the means that enter batch norms, as shares of the deviation."""
    found: list[Tensor] = []

    def hook(norm: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        found.append(((inputs[0].mean((0, 2, 3)) - norm.running_mean).square() / norm.running_var).mean())

    hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(images.float() / 255)
    for one in hooks:
        one.remove()
    return float(torch.stack(found).mean())


def test_what_enters_batch_norms_becomes_what_it_was(model: Darknet) -> None:
    light = starts() // 4 + 180
    found = Impressions(steps=60, statistics=1000.0)(model, light, drawn())
    assert found.dtype == torch.uint8
    assert found.shape == light.shape
    assert errors(model, found) < 0.2 * errors(model, light)


def test_neither_the_starts_nor_the_model_are_changed(model: Darknet) -> None:
    first = next(model.parameters()).requires_grad_(False)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    given = starts()
    before, random = given.clone(), torch.get_rng_state()
    Impressions(steps=3)(model, given, drawn())
    assert torch.equal(given, before)
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters() if p is not first] == [True] * (
        len(list(model.parameters())) - 1
    )
    assert not first.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_they_depend_on_the_generator_and_less_smooth_ones_are_rougher(model: Darknet) -> None:
    first, second, other = (Impressions(steps=5)(model, starts(), drawn(n)) for n in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)

    def roughness(weight: float) -> float:
        found = Impressions(steps=40, lr=0.1, smoothness=weight)(model, starts(), drawn()).float()
        return float((found[..., 1:] - found[..., :-1]).abs().mean())

    assert roughness(1000.0) < 0.7 * roughness(0.0)


def test_parts_of_the_starts_are_changed_one_after_the_other(model: Darknet) -> None:
    generator, again = drawn(), drawn()
    whole = Impressions(steps=4, batch=4)(model, starts(6), generator)
    parts = [Impressions(steps=4)(model, part, again) for part in starts(6).split(4)]
    assert torch.equal(whole, torch.cat(parts))


def test_the_original_sees_the_objects_in_noise_that_were_wanted() -> None:
    folder = shared("yolov3-tiny")
    net = darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights")
    noise = torch.randint(96, 160, (4, 3, 96, 96), generator=drawn(), dtype=torch.uint8)

    def seen(images: Tensor) -> list[set[int]]:
        with torch.no_grad():
            found = decode(net(images.float() / 255), net.heads, (96, 96))
        return [{x.label for x in one} for one in detections(found, [(96, 96)] * 4, (96, 96), threshold=0.2)]

    assert not any(seen(noise))
    found = Impressions(objects=2, steps=80, lr=0.1)(net, noise, drawn(1))
    assert sum(map(bool, seen(found))) >= 3
    assert len(set.union(*seen(found))) >= 4  # each of another class


def test_photographs_still_show_what_they_did() -> None:
    folder = shared("coco-calib")
    net = darknet(shared("yolov3-tiny") / "yolov3-tiny.cfg", shared("yolov3-tiny") / "yolov3-tiny.weights")
    photos = read_photos(photo_files(folder)[:4], (96, 96)).images
    given = FreshViews(plain=0.0, mosaics=1.0)(photos, drawn())
    found = Impressions(steps=40)(net, given, drawn(1))
    near = (found.float() - given.float()).abs().mean((1, 2, 3))
    far = (found.roll(1, 0).float() - given.float()).abs().mean((1, 2, 3))
    assert bool((near < 0.7 * far).all())
    assert bool((near > 1).all())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 32, 32), "torch.float32"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "none"),
        (torch.zeros(2, 3, 17, 17, dtype=torch.uint8), "multiples of its stride"),
    ],
)
def test_other_starts_are_refused(model: Darknet, images: Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"starts: .*{message}"):
        Impressions(steps=1)(model, images, drawn())


def test_models_that_tell_nothing_are_refused(model: Darknet, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"call model\.eval"):
        Impressions(steps=1)(model.train(), starts(), drawn())
    folder = tmp_path / "plain"
    folder.mkdir()
    plain = darknet(write(folder, f"{NET}{CONV}{LAST}{YOLO}"), seed=0)
    flags = [p.requires_grad for p in plain.parameters()]
    with pytest.raises(DataError, match="no batch norm"):
        Impressions(steps=1)(plain, starts(), drawn())
    assert [p.requires_grad for p in plain.parameters()] == flags


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objects", 0),
        ("steps", 0),
        ("steps", 2.5),
        ("batch", True),
        ("batch", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("statistics", -1.0),
        ("smoothness", float("inf")),
    ],
)
def test_numbers_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{field}={value}"):
        Impressions(**{field: value})
