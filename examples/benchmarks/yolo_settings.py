"""The command line of `yolo.py`, and which options its rows depend on."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from de_plugin.zoo import photo_files

SETTLED = "de reconstruct settled"
"""A stage that is measured only where it is asked for."""

STAGES = (
    *("original", "magnitude", "magnitude reconstruct", "de reconstruct", SETTLED),
    *("distilled", "settled", "file"),
)
"""What can be asked for alone."""
_FREE = ("json", "work", "stages", "pictures", "names", "memory", "threads", "device", "mask_sparsities")
"""Options that rows may differ in; a row tells what device its network was made on."""


def check_apart(options: argparse.Namespace) -> None:
    """Refuse to measure on images that the choice has seen, too few for what is asked, and odd sizes."""
    files = [path for folder in options.images for path in photo_files(folder)]
    seen = {digest(path) for path in files}
    both = [path.name for path in photo_files(options.eval_images) if digest(path) in seen]
    if both:
        raise SystemExit(
            f"--eval-images: {', '.join(both[:5])} and so on are among --images too; leave them out"
        )
    if options.weights is None and (options.pictures or options.labels):
        raise SystemExit("--pictures, --labels: need --weights; drawn ones see nothing")
    if options.begin is not None and not options.begin.is_file():
        raise SystemExit(f"--begin {options.begin}: is no file; give a network that a run kept in its --work")
    left_out = [x for x in options.stages or () if "settled" in x and not options.steps_settled]
    if left_out:
        raise SystemExit(f"--stages {left_out[0]}: --steps-settled 0 leaves that stage out")
    wrong = [x for x in (options.sparsity, *options.mask_sparsities) if not 0 < x < 1]
    if wrong:
        raise SystemExit(f"--sparsity, --mask-sparsities: {wrong[0]}, expected fractions in (0, 1)")
    if not 0 <= options.holdout < 1:
        raise SystemExit(f"--holdout {options.holdout}: expected a share in [0, 1)")
    if not 0 <= options.blends <= options.fresh or options.impressions < 0 or options.impression_steps < 1:
        raise SystemExit(
            f"--blends {options.blends}, --impressions {options.impressions}, --impression-steps "
            f"{options.impression_steps}: expected a share in [0, 1], above 0 only with --fresh, 0 or more, "
            "and 1 or more"
        )
    for name, side in (("--size", options.size), ("--train-size", options.train_size)):
        if side is not None and (side < 32 or side % 32):
            raise SystemExit(f"{name} {side}: expected a multiple of 32")
    if options.plain < 1 or (options.mosaics > 0 and len(files) < 4):
        raise SystemExit(
            f"--plain {options.plain}, --mosaics {options.mosaics}: need 1 and 4 photographs at least"
        )


@cache
def digest(path: Path) -> str:
    """Return what tells a file from others by what it holds."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def together(paths: Iterable[Path]) -> str:
    """Return one digest of what several files hold, in their order."""
    return hashlib.sha256("".join(map(digest, paths)).encode()).hexdigest()[:16]


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what rows depend on, as JSON holds it: options, and of files what is in them."""
    given = {name: value for name, value in vars(options).items() if name not in _FREE}
    given["images"] = [together(photo_files(folder)) for folder in options.images]
    given["eval_images"] = together(photo_files(options.eval_images))
    given["labels"] = None if options.labels is None else together(sorted(options.labels.glob("*.txt")))
    return {name: digest(value) if isinstance(value, Path) else value for name, value in given.items()}


def parsed(text: str | None) -> argparse.Namespace:
    """Read the command line; the text is shown in its help."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--weights", type=Path, help="trained numbers; drawn where none are given")
    parser.add_argument("--cfg", type=Path, required=True)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders, for the choice")
    parser.add_argument(
        "--eval-images", type=Path, required=True, help="a folder that shares nothing with them"
    )
    parser.add_argument("--labels", type=Path, help="a folder of YOLO-format labels of the evaluation images")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounding", choices=["nearest", "compensated"], default="nearest")
    parser.add_argument("--json", type=Path, required=True, help="read where it exists, and written")
    parser.add_argument("--work", type=Path, default=Path("yolo-work"), help="networks and checkpoints")
    parser.add_argument(
        "--pictures", type=Path, help="a folder for what original and file find, side by side"
    )
    parser.add_argument("--names", type=Path, help="names of the classes, a line each, for the pictures")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="all where none is given")
    parser.add_argument("--plain", type=int, default=128, help="images taken as they are")
    parser.add_argument("--variations", type=int, default=2, help="of each image")
    parser.add_argument("--mosaics", type=int, default=3, help="times that all images are put four in one")
    parser.add_argument("--mask-samples", type=int, default=256)
    parser.add_argument(
        "--mask-sparsities",
        type=float,
        nargs="+",
        default=[0.7, 0.8, 0.9],
        help="of masks that are not --sparsity's",
    )
    parser.add_argument("--mask-cycles", type=int, default=2)
    parser.add_argument("--search-samples", type=int, default=24)
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument(
        "--evolve",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="evolve masks between distillations too; without it the largest weights stay",
    )
    parser.add_argument("--cycles", type=int, default=8)
    parser.add_argument("--start", type=float, default=0.6)
    parser.add_argument("--steps-between", type=int, default=150)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--size", type=int, help="side of the images; that of the cfg where not given")
    parser.add_argument(
        "--train-size", type=int, help="side of the images of the cycles; the network's own where not given"
    )
    parser.add_argument(
        "--steps-settled",
        type=int,
        default=300,
        help="after the cycles, or masks, at the network's own size; 0: no such stages",
    )
    parser.add_argument("--steps-levels", type=int, default=300)
    parser.add_argument(
        "--hints",
        type=float,
        default=20.0,
        help="of what layers give, in distillation; 0: only outputs",
    )
    parser.add_argument(
        "--objects", type=float, default=0.0, help="how much more objectness counts where there is an object"
    )
    parser.add_argument("--holdout", type=float, default=0.1, help="share of the photographs that decides")
    parser.add_argument(
        "--batch", type=int, default=8, help="images a gradient step, and a pass of the search"
    )
    parser.add_argument(
        "--fresh",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="train on views of the images that are made anew at each step",
    )
    parser.add_argument(
        "--blends", type=float, default=0.0, help="share of the views of --fresh that two are blended into"
    )
    parser.add_argument(
        "--impressions",
        type=int,
        default=0,
        help="images more that the original makes of views and noise, of objects of all classes; wants a GPU",
    )
    parser.add_argument("--impression-steps", type=int, default=250, help="of gradient, of each image")
    parser.add_argument(
        "--begin", type=Path, help="where the cycles begin: a network of another --work; else at the original"
    )
    parser.add_argument("--level-samples", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=3.0, help="GiB of inputs, and of others; see Problem")
    parser.add_argument("--device", default="cpu", help="such as cuda, where the networks are made")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()
