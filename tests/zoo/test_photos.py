"""Photographs: read as they are, refused where they are none, varied by the generator alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from de_plugin.errors import ArgumentError, DataError
from de_plugin.zoo import FreshViews, letterbox, mosaic, photo_files, read_photo, read_photos, varied


def picture(path: Path, height: int = 6, width: int = 9) -> NDArray[np.uint8]:
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_photograph_is_red_first_from_nil_to_one(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.shape == (3, 6, 9)
    assert np.allclose(photo.permute(1, 2, 0).numpy() * 255, pixels)


def test_files_come_by_name_and_other_files_do_not(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.jpeg"):
        picture(tmp_path / name) if name.endswith("png") else Image.new("RGB", (4, 4)).save(
            tmp_path / name, "JPEG"
        )
    (tmp_path / "LICENSES.csv").write_text("x")
    assert [p.name for p in photo_files(tmp_path)] == ["a.png", "b.JPG", "c.jpeg"]


def test_photographs_are_letterboxed_and_keep_their_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 8, 4)
    photos = read_photos(photo_files(tmp_path), (16, 16))
    assert photos.names == ("a.png", "b.png")
    assert photos.sizes == ((6, 9), (8, 4))
    expected = letterbox(read_photo(tmp_path / "a.png"), (16, 16))
    assert torch.allclose(photos.images[0] / 255, expected, atol=0.5 / 255)


def test_what_is_no_photograph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png is no photograph"):
        read_photo(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole.replace(b"IDAT", b"\x00DAT"))
    with pytest.raises(DataError, match=r"b\.png is no photograph"):
        read_photo(tmp_path / "b.png")
    Image.fromarray(np.full((4, 4), 30000, dtype=np.uint16)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match="8 bits a channel"):
        read_photo(tmp_path / "c.png")
    with pytest.raises(DataError, match="no photographs"):
        photo_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match="at least one"):
        read_photos([], (8, 8))


@pytest.mark.parametrize("shape", [(3, 40, 60), (3, 7, 300), (3, 1, 1)])
def test_variations_depend_on_the_generator_alone(shape: tuple[int, int, int]) -> None:
    photo = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    first, second = (varied(photo, (320, 320), torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (3, 320, 320)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    if min(shape[1:]) > 1:
        assert not torch.equal(first, varied(photo, (320, 320), torch.Generator().manual_seed(5)))


def test_a_mosaic_holds_four() -> None:
    photos = [torch.full((3, 5, 7), level) for level in (0.0, 0.2, 0.6, 1.0)]
    whole = mosaic(photos, (8, 12), torch.Generator().manual_seed(0))
    assert whole.shape == (3, 8, 12)
    corners = [whole[0, y, x].item() for y in (0, -1) for x in (0, -1)]
    assert corners == [0, 51, 153, 255]
    photos = [torch.linspace(0, 1, 6).expand(3, 4, 6)] * 4
    seen = {mosaic(photos, (8, 12), torch.Generator().manual_seed(n)).numpy().tobytes() for n in range(6)}
    assert len(seen) > 1
    with pytest.raises(ArgumentError, match="even"):
        mosaic(photos, (7, 12), torch.Generator())


def pictures(count: int = 24) -> Tensor:
    """Return images that are light on their left and dark on their right, each of another colour."""
    ramp = torch.linspace(250, 10, 32).expand(count, 3, 32, 32).clone()
    return (ramp * torch.linspace(0.5, 1, 3 * count).reshape(count, 3, 1, 1)).to(torch.uint8)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_fresh_views_depend_on_the_generator_alone_and_leave_the_images_as_they_were() -> None:
    images = pictures()
    before = images.clone()
    first, second, other = (FreshViews()(images, drawn(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_plain_ones_are_turned_over_or_not() -> None:
    images = pictures()
    found = FreshViews(plain=1.0, mosaics=0.0)(images, drawn(3))
    same, turned = (
        torch.tensor([bool(torch.equal(a, b)) for a, b in zip(found, x, strict=True)])
        for x in (images, images.flip(3))
    )
    assert bool((same ^ turned).all())
    assert 0 < int(same.sum()) < len(images)


def test_views_show_a_part_or_more_than_all_of_it() -> None:
    level = torch.full((64, 3, 32, 32), 240, dtype=torch.uint8)
    found = FreshViews(plain=0.0, mosaics=0.0)(level, drawn(4)).float()
    spread = found.amax((1, 2, 3)) - found.amin((1, 2, 3))
    assert bool((spread < 3).any())  # a part
    assert bool((spread > 40).any())  # with the grey around it
    light = found.mean((1, 2, 3))
    assert float(light.max() - light.min()) > 30
    ramps = FreshViews(plain=0.0, mosaics=0.0)(pictures(64), drawn(5)).float()
    falls = ramps[:, :, 16, 12].mean(1) > ramps[:, :, 16, 20].mean(1)
    assert 10 < int(falls.sum()) < 54


def test_fresh_mosaics_hold_several() -> None:
    levels = torch.arange(40, 232, 3, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 16, 16)

    def spread(mosaics: float) -> Tensor:
        found = FreshViews(plain=0.0, mosaics=mosaics)(levels.contiguous(), drawn(6)).float()
        middles = torch.stack([found[:, 0, y, x] for y in (4, 12) for x in (4, 12)], 1)
        return middles.amax(1) - middles.amin(1)

    assert float((spread(1.0) > 20).float().mean()) > 0.9
    assert float((spread(0.0) > 20).float().mean()) < 0.6


def test_blended_ones_show_two_one_of_them_more() -> None:
    levels = torch.arange(0, 256, 4, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    whole = FreshViews(plain=1.0, mosaics=0.0)(levels, drawn(7))
    found = FreshViews(plain=1.0, mosaics=0.0, blends=0.5)(levels, drawn(7))
    mixed = (found != whole).flatten(1).any(1)
    assert 16 < int(mixed.sum()) < 48
    assert bool((found.amax((1, 2, 3)) == found.amin((1, 2, 3))).all())
    moved = (found.float() - whole.float()).abs().mean((1, 2, 3))
    assert float(moved.max()) <= 128
    assert torch.equal(found, FreshViews(plain=1.0, mosaics=0.0, blends=0.5)(levels, drawn(7)))
    same = levels[:1].expand(64, -1, -1, -1).contiguous()
    assert torch.equal(FreshViews(plain=1.0, mosaics=0.0, blends=1.0)(same, drawn(8)), same)


@pytest.mark.parametrize(
    ("images", "shares"),
    [
        (torch.zeros(2, 3, 8, 8), (0.2, 0.2)),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), (0.2, 0.2)),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), (0.2, 0.2)),
        (torch.zeros(2, 3, 7, 8, dtype=torch.uint8), (0.2, 0.2)),
        (torch.zeros(2, 3, 8, 7, dtype=torch.uint8), (0.2, 0.2)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (0.7, 0.5)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (-0.1, 0.5)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (float("nan"), 0.5)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (0.2, 0.2, 1.5)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (0.2, 0.2, float("nan"))),
    ],
)
def test_fresh_views_of_what_is_no_images_are_refused(images: Tensor, shares: tuple[float, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"expected uint8 \(images, 3|expected (a )?shares?"):
        FreshViews(*shares)(images, drawn(0))
