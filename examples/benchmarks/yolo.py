"""A real detector made small: what it still sees, stage by stage, without labels.

Masks first, without a gradient step: the largest weights, Directed Evolution, and what survives solved anew
("reconstruct"), batch norms matched in all; and, where that is asked for, the last of these trained as well
("de reconstruct settled").
Then cycles of rising sparsity with distillation between them, on images of `--train-size` where that is
given, and after them a last distillation at the network's own ("settled"), levels, and the file.
Calibration images are those of `--images`, as they are, varied, and four in one; the evaluation images are
looked at once a row. An object counts that the original finds with more than .5 (`retained_05`) or .8
(`retained_08`, `objects`) and that is found again: same class, overlap of at least .5, score of at least .5,
one to one. Extra are detections above .5 that the original does not have. AP50 is the COCO one against the
labels, where pycocotools is installed and `--labels` given. Rows that the file has are not measured again,
and networks are kept in `--work`, so that a run goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rows import versions, write
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from yolo_run import Row, Run, named
from yolo_settings import SETTLED, check_apart, parsed, settings

import de_plugin
from de_plugin import Activation, DirectedEvolution, Problem, Schedule, Swaps
from de_plugin.encode import packed
from de_plugin.encode.files import whole
from de_plugin.prune.checkpoint import Checkpoint
from de_plugin.prune.recover import BatchNormMatching, Distillation, Hints, Reconstruction, Sequence
from de_plugin.quantize import LevelTraining, RateSearch
from de_plugin.zoo import (
    Darknet,
    FreshViews,
    photo_files,
    read_photo,
    side_by_side,
)

MASKS = ("magnitude", "magnitude reconstruct", "de reconstruct")
FILE = "yolo.de.safetensors"


def search(options: argparse.Namespace) -> DirectedEvolution:
    """Return a search that costs some hundred passes over a few dozen images."""
    return DirectedEvolution(
        criteria=("magnitude", Activation(samples=64)),
        population=8,
        generations=options.generations,
        samples=options.search_samples,
        exponent=0.08,
        offset=0.25,
        swaps=Swaps(rounds=0),
    )


def masks(run: Run, sparsity: float, name: str) -> tuple[Darknet, Row]:
    """Zero weights without a gradient step."""
    recovery: list[Any] = [BatchNormMatching(64)]
    if "reconstruct" in name:
        recovery.append(Reconstruction(samples=run.options.mask_samples))
    evolved = name.startswith("de")
    stage = f"{name} {100 * sparsity:g}%"
    made: tuple[Darknet, Row] = run.kept(
        stage,
        lambda net: de_plugin.prune(
            net,
            sparsity=sparsity,
            criterion=search(run.options) if evolved else "magnitude",
            schedule=run.options.mask_cycles if "reconstruct" in name else 1,
            recovery=recovery,
            checkpoint=run.options.work / f"searching-{named(stage)}",
            **run.shared(run.options.mask_samples),
        ),
    )
    return made


def distillation(run: Run, steps: int, share: float = 1.0) -> Distillation:
    """Return a distillation of so many steps, with hints of what follows each batch norm where asked.

    Its learning rate is a share of the run's.
    """
    options = run.options
    normed = (n for n, m in run.original.named_modules() if isinstance(m, nn.BatchNorm2d))
    hints = Hints(tuple(normed), options.hints) if options.hints else None
    return Distillation(
        steps,
        options.lr * share,
        options.batch,
        validate_every=100,
        hints=hints,
        augment=FreshViews(blends=options.blends) if options.fresh else None,
    )


def distilled(run: Run) -> tuple[Darknet, Row]:
    """Prune in many cycles, with a short distillation after each and a long one at the end."""
    options = run.options
    between, last = (distillation(run, steps) for steps in (options.steps_between, options.steps))

    def make(net: Darknet) -> None:
        if options.begin is not None:
            try:
                net.load_state_dict(load_file(options.begin))
            except (SafetensorError, RuntimeError) as error:
                raise SystemExit(f"--begin {options.begin}: is no such network ({error})") from error
        de_plugin.prune(
            net,
            teacher=run.original,
            sparsity=options.sparsity,
            criterion=search(options) if options.evolve else "magnitude",
            schedule=Schedule(options.cycles, start=options.start),
            recovery=[BatchNormMatching(64), between],
            finish=last,
            checkpoint=options.work / "distilling",
            progress=lambda p: print(
                f"{p.sparsity:.1%} divergence {p.divergence:.3f} {p.seconds:.0f} s", flush=True
            ),
            **run.shared(None, run.small),
        )

    made: tuple[Darknet, Row] = run.kept("distilled", make)
    return made


def settled(run: Run, stage: str, source: Callable[[], tuple[Darknet, Row]]) -> tuple[Darknet, Row]:
    """Train a network's survivors on, on images of the network's own size.

    Args:
        run: what the stages share.
        stage: name of the result.
        source: gives the network that it begins at, and what that cost.
    """

    def make(net: Darknet) -> None:
        problem = Problem(net, **run.shared(None))
        kept = Checkpoint(run.options.work / f"settling-{named(stage)}", {"stage": stage})
        problem.halfway = kept.part
        recovery = Sequence((BatchNormMatching(64), distillation(run, run.options.steps_settled, 0.5)))
        recovery.prepare(problem)  # at the original
        net.load_state_dict(source()[0].state_dict())
        problem.kept = problem.units.reduce([x != 0 for x in problem.units.values()]).bool()
        recovery(problem)
        kept.forget_parts()

    _ = source()  # that has a row, and costs, of its own
    made: tuple[Darknet, Row] = run.kept(stage, make)
    return made


def trained(run: Run) -> tuple[Darknet, Row]:
    """Return the network that levels begin at."""
    return settled(run, "settled", lambda: distilled(run)) if run.options.steps_settled else distilled(run)


def filed(run: Run) -> tuple[Darknet, Row]:
    """Give the trained network few levels, train these, and write the file."""
    path = run.options.work / FILE

    def make(net: Darknet) -> None:
        net.load_state_dict(trained(run)[0].state_dict())
        report = de_plugin.quantize(
            net,
            bits=run.options.bits,
            teacher=run.original,
            rounding=run.options.rounding,
            codebooks=(),
            levels=None,
            biases="exact",
            search=RateSearch(generations=1, population=4),
            recovery=LevelTraining(distillation(run, run.options.steps_levels, 0.25)),
            checkpoint=run.options.work / "levelling",
            **run.shared(run.options.level_samples),
        )
        data, _ = packed(report.state, dtypes=report.dtypes)
        with whole(path) as draft:
            draft.write_bytes(data)

    _ = trained(run)  # that has a row, and costs, of its own
    _, spent = run.kept("levels", make)
    loaded = run.network()
    de_plugin.load(path, into=loaded)
    info = de_plugin.inspect(path)
    weights = [x for x in info.layers if x.kind == "quantized" and len(x.shape) > 1]
    bits = 8 * sum(x.bytes for x in weights) / max(1, sum(x.nonzero for x in weights))
    size = path.stat().st_size
    return loaded, {**spent, "bits": bits, "bytes": size, "ratio": info.ratio}


def pictures(run: Run) -> None:
    """Draw what the original and the file find in each evaluation image."""
    folder, names, path = run.options.pictures, run.options.names, run.options.work / FILE
    if not path.exists():
        raise SystemExit(f"--pictures {folder}: there is no file yet; measure the stage 'file' first")
    model = run.network()
    de_plugin.load(path, into=model)
    folder.mkdir(parents=True, exist_ok=True)
    classes = [] if names is None else names.read_text().split("\n")
    for photo, *both in zip(photo_files(run.options.eval_images), run.seen, run.found(model), strict=True):
        shown = [[x for x in found if x.score >= 0.5] for found in both]
        side_by_side(read_photo(photo), shown[0], shown[1], classes).save(folder / f"{photo.stem}.png")


def line(row: Row) -> str:
    """Return a row of the table in the documentation."""

    def cell(name: str, form: str) -> str:
        return "" if row.get(name) is None else format(row[name], form)

    share, extra = row.get("retained_08"), row.get("extra_detections")
    cells = [
        row["stage"],
        f"{row['sparsity']:.0%}",
        "" if share is None else f"{share:.2f} of {row['objects']}",
        cell("retained_05", ".2f"),
        "" if extra is None else f"{extra} beside {row['detections']}",
        cell("ap50", ".3f"),
        "" if row["bytes"] is None else f"{row['bytes']:,} ({row['ratio']:.1f}x)",
        f"{row['seconds'] / 60:.0f}",
        cell("peak_gib", ".1f"),
    ]
    return f"| {' | '.join(cells)} |"


def stages(run: Run) -> Iterator[tuple[str, Callable[[], tuple[Darknet, Row]]]]:
    """Yield what is measured, in order, each with what gives the network and what that took."""
    yield "original", lambda: (run.original, {"seconds": 0.0, "peak_gib": None})
    for name, sparsity in itertools.product(MASKS, run.options.mask_sparsities):
        yield f"{name} {100 * sparsity:g}%", partial(masks, run, sparsity, name)
    for sparsity in run.options.mask_sparsities if SETTLED in (run.options.stages or ()) else ():
        begin = partial(masks, run, sparsity, "de reconstruct")
        stage = f"{SETTLED} {100 * sparsity:g}%"
        yield stage, partial(settled, run, stage, begin)
    yield "distilled", partial(distilled, run)
    if run.options.steps_settled:
        yield "settled", partial(trained, run)
    yield "file", partial(filed, run)


def main() -> None:
    """Measure every stage that is missing and write it."""
    options = parsed(__doc__)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    check_apart(options)
    fresh: dict[str, Any] = {"versions": versions(), "settings": settings(options), "rows": []}
    for path in (options.json, options.work / "settings.json"):
        old = json.loads(path.read_text()) if path.exists() else fresh
        for part in ("versions", "settings"):
            other = sorted(k for k, v in fresh[part].items() if old[part].get(k) != v)
            if other:
                raise SystemExit(
                    f"{path}: belongs to other {', '.join(other)}; give another --json and --work"
                )
    document = json.loads(options.json.read_text()) if options.json.exists() else fresh
    write(options.work / "settings.json", {**fresh, "rows": []})
    run = Run(options)
    for stage, make in stages(run):
        known = [row["stage"] for row in document["rows"]]
        if stage in known or (options.stages and stage.rsplit(" ", 1)[0] not in options.stages):
            continue
        row = run.told(stage, *make())
        document["rows"].append(row)
        print(line(row), flush=True)
        write(options.json, document)
    if options.pictures is not None:
        pictures(run)


if __name__ == "__main__":
    main()
