"""Photographs for a detector: read, letterboxed, and varied without labels."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from de_plugin.errors import ArgumentError, DataError

from .detect import GREY, letterbox

ENDINGS = (".jpg", ".jpeg", ".png")
"""How the names of photographs end, in any case."""


@dataclass(frozen=True, eq=False)
class Photos:
    """Photographs as a detector takes them.

    Attributes:
        names: of the files, in their order.
        sizes: (height, width) of each before it was letterboxed.
        images: uint8 ``(photographs, 3, height, width)``, letterboxed.
    """

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    images: Tensor


def photo_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The photographs in a folder, by name.

    Raises:
        DataError: there is no such folder, or no photograph in it.
    """
    path = Path(folder)
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS) if path.is_dir() else []
    if not found:
        raise DataError(f"{folder} holds no photographs, expected files that end in {', '.join(ENDINGS)}")
    return found


def read_photo(path: str | os.PathLike[str]) -> Tensor:
    """A photograph as floats ``(3, height, width)`` from 0 to 1.

    Raises:
        DataError: the file is missing, or holds no picture.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":
                raise DataError(f"{path} has {picture.mode} pixels, expected 8 bits a channel: convert it")
            pixels = np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no photograph that can be read ({error}): leave it out") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read_photos(files: Sequence[str | os.PathLike[str]], size: tuple[int, int]) -> Photos:
    """Photographs letterboxed to a size.

    Args:
        files: at least one.
        size: (height, width) of the detector.

    Raises:
        DataError: a file cannot be read, or there is none.
    """
    if not files:
        raise DataError("files is empty, expected at least one photograph")

    def read(path: str | os.PathLike[str]) -> tuple[tuple[int, int], Tensor]:
        photo = read_photo(path)
        return (photo.shape[1], photo.shape[2]), as_bytes(letterbox(photo, size))

    with ThreadPoolExecutor() as pool:
        sizes, images = zip(*pool.map(read, files), strict=True)
    return Photos(tuple(Path(path).name for path in files), sizes, torch.stack(images))


def varied(photo: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A photograph cropped to half its sides or more, turned over or not, lighter or darker; letterboxed.

    Args:
        photo: floats ``(3, height, width)`` from 0 to 1.
        size: (height, width) of the result.
        generator: draws how.

    Returns:
        uint8 ``(3, *size)``.
    """
    scale, wider, flip, light = torch.rand(4, generator=generator).tolist()
    shares = (0.5 + 0.5 * scale, max(0.5, (0.5 + 0.5 * scale) * (0.8 + 0.4 * wider)))
    sides = [min(whole, max(1, round(whole * s))) for whole, s in zip(photo.shape[1:], shares, strict=True)]
    corner = [
        int(torch.randint(whole - side + 1, (), generator=generator))
        for whole, side in zip(photo.shape[1:], sides, strict=True)
    ]
    part = photo[:, corner[0] : corner[0] + sides[0], corner[1] : corner[1] + sides[1]]
    part = part.flip(2) if flip < 0.5 else part
    return as_bytes(letterbox((part * (0.7 + 0.6 * light)).clamp(0, 1), size))


def mosaic(photos: Sequence[Tensor], size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Four photographs in the quarters of one image, so that small ones show objects of a usual size.

    Args:
        photos: four, floats ``(3, height, width)`` from 0 to 1.
        size: (height, width) of the result, even.
        generator: turns them over or not.

    Returns:
        uint8 ``(3, *size)``.

    Raises:
        ArgumentError: there are not four, or a side is odd.
    """
    if len(photos) != 4 or size[0] % 2 or size[1] % 2:
        raise ArgumentError(f"photos={len(photos)}, size={size}: expected four photographs and even sides")
    half = (size[0] // 2, size[1] // 2)
    flips = torch.rand(4, generator=generator) < 0.5
    quarters = [
        F.interpolate((x.flip(2) if flip else x)[None], half, mode="bilinear", align_corners=True)[0]
        for x, flip in zip(photos, flips.tolist(), strict=True)
    ]
    rows = [torch.cat(quarters[:2], 2), torch.cat(quarters[2:], 2)]
    return as_bytes(torch.cat(rows, 1))


@dataclass(frozen=True)
class FreshViews:
    """Views of letterboxed photographs that were not there before: for `Distillation(augment=...)`.

    Each image is turned over or not, and no more; or four views make up one image; or it is one view: from
    two thirds as near to twice as near, wider or higher by a quarter, lighter or darker, of other colours.
    Some are then blended with another one (mixup, arXiv:1710.09412; a teacher tells what is seen in both).
    All images are worked on at once, on their own device.

    Args:
        plain: share of the images that are only turned over or not, in [0, 1].
        mosaics: share of those made up of four; the rest are views.
        blends: share, of all of these, that are blended, in [0, 1]; the other image has at most half the
            weight.

    Raises:
        ArgumentError: a share is below 0 or above 1, or the first two are more than 1 in sum.
    """

    plain: float = 0.25
    mosaics: float = 0.35
    blends: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that cannot be."""
        if not (self.plain >= 0 and self.mosaics >= 0 and self.plain + self.mosaics <= 1):
            raise ArgumentError(
                f"plain={self.plain}, mosaics={self.mosaics}: expected shares >= 0, of 1 at most in sum"
            )
        if not 0 <= self.blends <= 1:
            raise ArgumentError(f"blends={self.blends}: expected a share in [0, 1]")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many images.

        Args:
            images: uint8 ``(images, 3, height, width)`` of even sides.
            generator: on the CPU, draws how.

        Raises:
            ArgumentError: they are none.
        """
        shaped = (
            images.ndim == 4 and images.shape[1] == 3 and not (images.shape[2] % 2 or images.shape[3] % 2)
        )
        if images.dtype != torch.uint8 or not shaped or not len(images):
            raise ArgumentError(
                f"images: {images.dtype} {tuple(images.shape)}, expected uint8 (images, 3, height, width) of "
                "even sides, and at least one"
            )
        count = len(images)
        draws = torch.rand(9, count, generator=generator)
        places = torch.stack([torch.randperm(count, generator=generator) for _ in range(4)])
        draws, places = draws.to(images.device), places.to(images.device)
        turned = torch.where((draws[7] < 0.5)[:, None, None, None], images.flip(3), images)
        views = self._views(images.float() / 255, draws)
        quarters = F.avg_pool2d(views, 2)
        rows = [torch.cat([quarters[places[n]], quarters[places[n + 1]]], 3) for n in (0, 2)]
        kinds = draws[8][:, None, None, None]
        made = torch.where(kinds < self.plain + self.mosaics, torch.cat(rows, 2), views)
        result = torch.where(kinds < self.plain, turned, as_bytes(made))
        return self._blended(result, generator) if self.blends else result

    def _blended(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(2, len(images), generator=generator)
        weights = torch.where(draws[0] < self.blends, 1 - draws[1] / 2, 1.0)[:, None, None, None]
        others = images[torch.randperm(len(images), generator=generator).to(images.device)]
        return torch.lerp(others.float(), images.float(), weights.to(images.device)).round().to(torch.uint8)

    def _views(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return a view of each image, grey where it shows what lies outside."""
        nearer = torch.exp(_between(draws[0], math.log(0.5), math.log(1.5)))
        aspect = torch.exp(_between(draws[1], -0.22, 0.22))
        sides = torch.stack([nearer * aspect.sqrt(), nearer / aspect.sqrt()], 1)
        middle = (1 - sides).abs() * _between(draws[2:4], -1.0, 1.0).T
        turned = torch.where(draws[7] < 0.5, -1.0, 1.0)
        where = images.new_zeros(len(images), 2, 3)
        where[:, 0, 0], where[:, 1, 1], where[:, :, 2] = sides[:, 0] * turned, sides[:, 1], middle
        grid = F.affine_grid(where, list(images.shape), align_corners=False)
        seen = F.grid_sample(images - GREY, grid, align_corners=False) + GREY
        light, contrast, colour = (
            _between(draws[n], *bounds)[:, None, None, None]
            for n, bounds in ((4, (0.7, 1.3)), (5, (0.8, 1.2)), (6, (0.6, 1.4)))
        )
        seen = (seen - GREY) * contrast + GREY
        grey = seen.mean(1, keepdim=True)
        return ((grey + (seen - grey) * colour) * light).clamp(0, 1)


def _between(draws: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draws


def as_bytes(image: Tensor) -> Tensor:
    """Floats from 0 to 1 as bytes, a quarter of the memory."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
