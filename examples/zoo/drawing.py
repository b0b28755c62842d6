"""Pictures of what detectors find: boxes, classes and scores, two networks side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from de_plugin.errors import ArgumentError

from .detect import Detection

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000")
"""Of classes, in turn; all can be told from white letters."""
_GAP = 8


def drawn(photo: Tensor, found: Sequence[Detection], names: Sequence[str] = ()) -> Image.Image:
    """A photograph with the objects found in it, the surest on top.

    Args:
        photo: floats ``(3, height, width)`` from 0 to 1.
        found: in pixels of the photograph.
        names: of the classes; a class without one is shown by its number.
    """
    picture = Image.fromarray((photo.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for one in sorted(found, key=lambda x: x.score):
        colour = _COLOURS[one.label % len(_COLOURS)]
        pen.rectangle(one.box, outline=colour, width=2)
        name = names[one.label] if one.label < len(names) else str(one.label)
        text = f"{name} {one.score:.2f}"
        left, top = one.box[0], max(0.0, one.box[1] - 12)
        pen.rectangle(pen.textbbox((left, top), text), fill=colour)
        pen.text((left, top), text, fill="white")
    return picture


def side_by_side(
    photo: Tensor,
    first: Sequence[Detection],
    second: Sequence[Detection],
    names: Sequence[str] = (),
    titles: tuple[str, str] = ("original", "compressed"),
) -> Image.Image:
    """A photograph twice, with what each of two networks finds in it, and a title above each.

    Raises:
        ArgumentError: there are not two titles.
    """
    if len(titles) != 2:
        raise ArgumentError(f"titles={titles!r}: expected two")
    halves = [drawn(photo, found, names) for found in (first, second)]
    width, height = halves[0].size
    whole = Image.new("RGB", (2 * width + _GAP, height + 16), "white")
    pen = ImageDraw.Draw(whole)
    for at, (half, title) in enumerate(zip(halves, titles, strict=True)):
        left = at * (width + _GAP)
        pen.text((left + 2, 2), title, fill="black")
        whole.paste(half, (left, 16))
    return whole
