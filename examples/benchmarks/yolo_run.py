"""What all stages of `yolo.py` share: the images, what a network finds in them, and what is kept of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from clock import Clock
from memory import KNOWN, forget_peak, peak
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from yolo_precision import average_precision

from de_plugin import Detector, Head
from de_plugin.encode.files import whole
from de_plugin.zoo import (
    Darknet,
    Detection,
    FreshViews,
    Impressions,
    Photos,
    darknet,
    decode,
    detections,
    mosaic,
    photo_files,
    read_photo,
    read_photos,
    retention,
    varied,
)
from de_plugin.zoo.photos import as_bytes

BATCH = 8
"""Images of a pass that looks for objects."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What all stages share: the command line, the images, and the original's detections."""

    options: argparse.Namespace
    made: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @cached_property
    def original(self) -> Darknet:
        """The trained network."""
        return self.network()

    def network(self) -> Darknet:
        """Return a copy of the original."""
        model = darknet(self.options.cfg, self.options.weights, seed=self.options.seed)
        if self.options.size is not None:
            model.size = (self.options.size, self.options.size)
        return model.to(self.options.device)

    @cached_property
    def divergence(self) -> Detector:
        """Of its raw outputs."""
        heads = tuple(Head(len(h.anchors), h.classes) for h in self.original.heads)
        return Detector(heads, objects=self.options.objects)

    @cached_property
    def photos(self) -> Photos:
        """The evaluation images."""
        return read_photos(photo_files(self.options.eval_images), self.original.size)

    @cached_property
    def seen(self) -> list[list[Detection]]:
        """What the original finds in them."""
        return self.found(self.original)

    @property
    def small(self) -> tuple[int, int]:
        """Height and width of the images of the cycles."""
        side: int | None = self.options.train_size
        return self.original.size if side is None else (side, side)

    def calibration(self, size: tuple[int, int], training: bool) -> tuple[Tensor, Tensor]:
        """Images to choose and to train by, uint8 ``(images, 3, *size)``, and which are held back.

        All that is made of a photograph is held back, or nothing of it; impressions are for training, and
        never held back.
        """
        key = (size, training and self.options.impressions > 0)
        if key not in self.made:
            self.made.clear()  # a gigabyte each
            self.made[key] = self._calibration(*key)
        return self.made[key]

    def _calibration(self, size: tuple[int, int], more: bool) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(self.options.seed)
        files = [path for folder in self.options.images for path in photo_files(folder)]
        different = sorted({path.resolve() for path in files})
        order = torch.randperm(len(different), generator=draw).tolist()
        apart = {different[n] for n in order[: round(self.options.holdout * len(different))]}
        images: list[Tensor] = []
        held: list[bool] = []
        for part in (False, True):
            mine = [n for n, path in enumerate(files) if (path.resolve() in apart) == part]
            plain = sum(n < self.options.plain for n in mine)
            made = self._made([files[n] for n in mine], plain, size, draw)
            images, held = images + made, held + [part] * len(made)
        if more:
            shown = torch.stack([x for x, part in zip(images, held, strict=True) if not part])
            made = list(self._impressions(shown))
            images, held = images + made, held + [False] * len(made)
        order = torch.randperm(len(images), generator=draw).tolist()
        return torch.stack([images[n] for n in order]), torch.tensor([held[n] for n in order])

    def _made(
        self, files: list[Path], plain: int, size: tuple[int, int], draw: torch.Generator
    ) -> list[Tensor]:
        """Return some photographs, the first ones as they are, all varied, and all four in one."""
        if not files:
            return []
        images = list(read_photos(files[:plain], size).images) if plain else []
        changed = self.options.variations or self.options.mosaics
        photos = [read_photo(path) for path in files] if changed else []
        images += [varied(photo, size, draw) for _ in range(self.options.variations) for photo in photos]
        for _ in range(self.options.mosaics):
            order = torch.randperm(len(photos), generator=draw).tolist()
            groups = [order[n : n + 4] for n in range(0, len(order) - 3, 4)]
            images += [mosaic([photos[n] for n in group], size, draw) for group in groups]
        return images

    def _impressions(self, images: Tensor) -> Tensor:
        """Return what the original makes of mosaics, and as often of noise; once, kept in `--work`.

        They are made, and kept, a part after the other, so that they go on where they were cut off.
        """
        height, width = images.shape[-2:]
        name = f"impressions-{height}x{width}"
        path = self.options.work / f"{name}.safetensors"
        if path.exists():
            return load_file(path)["images"]
        change = Impressions(steps=self.options.impression_steps)
        starts = self._starts(images).split(change.batch)
        places = [self.options.work / f"{name}-part-{n}.safetensors" for n in range(len(starts))]
        for n, (part, place) in enumerate(zip(starts, places, strict=True)):
            if place.exists():
                continue
            started = time.monotonic()
            made = change(self.original, part, torch.Generator().manual_seed(self.options.seed + n))
            _keep(made, place)
            print(f"{len(part)} impressions in {time.monotonic() - started:.0f} s", flush=True)
        made = torch.cat([load_file(place)["images"] for place in places])
        _keep(made, path)
        for place in places:
            place.unlink()
        return made

    def _starts(self, images: Tensor) -> Tensor:
        """Return what impressions begin at: views of photographs, and as often smooth noise."""
        height, width = images.shape[-2:]
        draw = torch.Generator().manual_seed(self.options.seed)
        count = self.options.impressions
        chosen = images[torch.randint(len(images), (count // 2,), generator=draw)]
        noise = 0.5 * torch.randn(count - count // 2, 3, height // 8, width // 8, generator=draw)
        views = FreshViews(plain=0.0, mosaics=1.0)
        starts = [views(part, draw) for part in chosen.split(64) if len(part)]
        starts += [
            as_bytes(F.interpolate(part, (height, width), mode="bilinear").sigmoid())
            for part in noise.split(64)
        ]
        return torch.cat(starts)

    def shared(self, samples: int | None, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """What `prune` and `quantize` are told alike, images of a size, the network's own, among it.

        Args:
            samples: images to choose by; None: all, and the impressions, for training.
            size: of the images.
        """
        images, held = self.calibration(size or self.original.size, training=samples is None)
        return {
            "batches": images,
            "divergence": self.divergence,
            "forward": forward,
            "samples": samples,
            "batch_size": self.options.batch,
            "holdout": held[:samples],
            "memory": int(self.options.memory * (1 << 30)),
            "seed": self.options.seed,
        }

    def found(self, model: Darknet) -> list[list[Detection]]:
        """Everything that a network finds in the evaluation images with any score that AP counts."""
        return found(model, self.photos, self.options.device)

    def told(self, stage: str, model: Darknet, spent: Row) -> Row:
        """Measure a network on the evaluation images.

        Args:
            stage: its name.
            model: the network.
            spent: what it took to make it, and other entries of the row.
        """
        weights = [p for p in model.parameters() if p.dim() > 1]
        total = sum(p.numel() for p in weights)
        return {
            "stage": stage,
            "sparsity": 1 - sum(int(p.count_nonzero()) for p in weights) / total,
            "bits": None,
            "bytes": None,
            "ratio": None,
            **({} if self.options.weights is None else self._sees(model)),
            **spent,
        }

    def _sees(self, model: Darknet) -> Row:
        """Compare what a network finds with what the original does, and both with the labels."""
        ours = self.found(model)
        sure = retention(self.seen, ours, confidence=0.8)
        all_ = retention(self.seen, ours, confidence=0.5)
        labels = self.options.labels
        return {
            "retained_05": all_.share,
            "retained_08": sure.share,
            "objects": sure.objects,
            "extra_detections": sure.extra,
            "detections": sure.detections,
            "ap50": None if labels is None else average_precision(ours, self.photos, labels),
        }

    def kept(self, stage: str, make: Callable[[Darknet], Any]) -> tuple[Darknet, Row]:
        """Return a network that `make` has changed, and what that took: once, then from the work folder.

        Seconds, those of tries that were cut off among them, and GiB at the peak of the last try, of the
        processor's memory, where the system tells.
        """
        path = self.options.work / f"{named(stage)}.safetensors"
        model = self.network()
        if not path.exists():
            if KNOWN:
                forget_peak()
            with Clock(self.options.work / f"{named(stage)}.seconds") as clock:
                make(model)
                spent = {
                    "seconds": clock.seconds,
                    "peak_gib": peak() / 2**30 if KNOWN else None,
                    "device": device_name(self.options.device),
                    "torch": torch.__version__,
                }
                with whole(path) as draft:
                    told = {"spent": json.dumps(spent)}
                    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, draft, told)
            clock.forget()
        with safe_open(path, "pt") as file:
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return model, json.loads(file.metadata()["spent"])


def found(model: Darknet, photos: Photos, device: str) -> list[list[Detection]]:
    """Return everything that a network finds in each image with a score that AP counts, above .005."""
    result = []
    model.eval()
    with torch.no_grad():
        for at in range(0, len(photos.images), BATCH):
            images, sizes = photos.images[at : at + BATCH], photos.sizes[at : at + BATCH]
            decoded = decode(forward(model, images.to(device)), model.heads, model.size)
            result += detections(decoded, sizes, model.size, threshold=0.005)
    return result


def _keep(images: Tensor, path: Path) -> None:
    """Write images, whole or not at all."""
    with whole(path) as draft:
        save_file({"images": images}, draft)


def forward(model: nn.Module, images: Tensor) -> Any:
    """Call a detector on bytes."""
    return model(images.float() / 255)


def named(stage: str) -> str:
    """Return a stage's name as that of a file."""
    return stage.replace(" ", "-")


def device_name(device: str) -> str:
    """Return what a device is called."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
