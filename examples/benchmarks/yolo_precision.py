"""AP50 against labels in YOLO's format, by COCO's own program where it is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from de_plugin.errors import DataError
from de_plugin.zoo import Detection, Photos


def average_precision(found: Sequence[Sequence[Detection]], photos: Photos, labels: Path) -> float | None:
    """Return AP at an overlap of .5, from 0 to 1; None without pycocotools.

    Args:
        found: detections by image.
        photos: the images.
        labels: a folder with a text file an image: class, centre and sides as shares, a line an object.

    Raises:
        DataError: there is no object, or a line holds something else.
    """
    if importlib.util.find_spec("pycocotools") is None:
        return None
    coco, evaluation = (importlib.import_module(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    objects: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for number, (name, (height, width)) in enumerate(zip(photos.names, photos.sizes, strict=True)):
        images.append({"id": number, "height": height, "width": width})
        path = labels / f"{Path(name).stem}.txt"
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                label, x, y, w, h = map(float, line.split())
            except ValueError as error:
                raise DataError(f"{path}: {line!r} is not class, centre and sides of an object") from error
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        for one in found[number]:
            left, top, right, bottom = one.box
            box = [left, top, right - left, bottom - top]
            answers.append({"image_id": number, "category_id": one.label, "bbox": box, "score": one.score})
    if not objects:
        raise DataError(f"labels={labels}: holds no object of these {len(images)} images, expected IMAGE.txt")
    if not answers:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = coco.COCO()
        labels_seen = sorted({x["category_id"] for x in objects})
        truth.dataset = {
            "info": {},
            "images": images,
            "annotations": objects,
            "categories": [{"id": n} for n in labels_seen],
        }
        truth.createIndex()
        judge = evaluation.COCOeval(truth, truth.loadRes(answers), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[1])
