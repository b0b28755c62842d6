"""A detector of the Darknet family loses most of its weights, and is asked what it still sees.

Give a cfg and weights, such as those of YOLOv3-tiny, photographs to choose by and others to look at. Without
a gradient step; `benchmarks/yolo.py` goes on with distillation, levels and the file.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import de_plugin
from de_plugin import Activation, Criterion, Detector, DirectedEvolution, Head, Swaps
from de_plugin.zoo import (
    Darknet,
    Detection,
    Photos,
    darknet,
    decode,
    detections,
    photo_files,
    read_photos,
    retention,
)

BATCH = 4


def forward(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Call the network on bytes."""
    outputs: tuple[Tensor, ...] = model(images.float() / 255)
    return outputs


def found(model: Darknet, photos: Photos) -> list[list[Detection]]:
    """Return what a network sees in each photograph."""
    with torch.no_grad():
        outputs = [decode(forward(model, x), model.heads, model.size) for x in photos.images.split(BATCH)]
    return detections(torch.cat(outputs), photos.sizes, model.size, threshold=0.5)


def main() -> None:
    """Print a line for each criterion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="without them the network is drawn, and knows nothing")
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs to choose by")
    parser.add_argument("--eval-images", type=Path, required=True, help="a folder of others")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--samples", type=int, default=64, help="photographs to choose by, at most")
    parser.add_argument("--generations", type=int, default=4)
    options = parser.parse_args()
    original = darknet(options.cfg, options.weights, seed=0)
    calibration = read_photos(photo_files(options.images)[: options.samples], original.size).images
    photos = read_photos(photo_files(options.eval_images), original.size)
    divergence = Detector(tuple(Head(len(head.anchors), head.classes) for head in original.heads))
    evolution = DirectedEvolution(
        ("magnitude", Activation(samples=options.samples)),
        population=12,
        generations=options.generations,
        exponent=0.08,
        offset=0.25,
        swaps=Swaps(rounds=0),  # single weights are too many
    )
    seen = found(original, photos)
    criteria: dict[str, str | Criterion] = {"magnitude": "magnitude", "evolution": evolution}
    for name, criterion in criteria.items():
        model = darknet(options.cfg, options.weights, seed=0)
        report = de_plugin.prune(
            model,
            calibration,
            options.sparsity,
            criterion,
            recovery="batchnorm",
            schedule=1,
            divergence=divergence,
            forward=forward,
            batch_size=BATCH,
        )
        kept = retention(seen, found(model, photos), confidence=0.8)
        print(
            f"{name:12} {report.sparsity:.0%} divergence {report.divergence:8.3f} objects {kept.found} of "
            f"{kept.objects}, {kept.extra} more seen",
            flush=True,
        )


if __name__ == "__main__":
    main()
