"""`de-plugin compare` on the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from de_plugin.compare.comparison import Comparison
from de_plugin.compare.config import read, written
from de_plugin.compare.figures import check
from de_plugin.compare.report import ROWS, prepared
from de_plugin.compare.run import compare as run
from de_plugin.compare.runner import Step
from de_plugin.compare.text import amount
from de_plugin.encode.files import whole
from de_plugin.errors import ArgumentError, FileError
from de_plugin.loading import first_alone, loaded
from de_plugin.prune import Budget

CONFIG = "compare.toml"
"""Name of the file, in the report's folder, that makes the same run again."""

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def _configured(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file's options be the defaults of the command line."""
    if path is not None:
        known = [p.name for p in context.command.params if p.name not in (None, *_NOT_KEPT, "help")]
        context.default_map = {**(context.default_map or {}), **read(path, [str(n) for n in known])}
    return path


def add(app: typer.Typer, rank: int) -> None:
    """Give the command line its command that compares."""
    console = Console(stderr=True)

    @app.command()
    def compare(
        context: typer.Context,
        model: Annotated[str, typer.Option(help="Zoo name or package.module:function.")],
        output: Annotated[Path, typer.Option(help="Folder for the report; made if it does not exist.")],
        data: Annotated[str, typer.Option(help="Zoo name or package.module:function.")] = "mnist",
        hosts: Annotated[
            str, typer.Option(help="Installed frameworks, by commas: torch-pruning,nni; all, or none.")
        ] = "all",
        task: Annotated[
            list[str] | None,
            typer.Option(help="weights, channels or bits; repeatable, or by commas. Default: weights."),
        ] = None,
        methods: Annotated[
            list[str] | None,
            typer.Option(help="Only these: names or globs such as de, 'nest*', 'nni:*'; repeatable."),
        ] = None,
        sparsity: Annotated[
            list[str] | None,
            typer.Option(
                help="Fractions of weights to zero; repeatable, or by commas. Default: 0.5,0.7,0.9."
            ),
        ] = None,
        ratio: Annotated[
            list[str] | None,
            typer.Option(help="Fractions of each layer's channels to remove. Default: 0.25,0.5,0.75."),
        ] = None,
        bits: Annotated[
            list[str] | None,
            typer.Option(help="Bits a weight, of the task bits; repeatable, or by commas. Default: 4,3,2."),
        ] = None,
        budget: Annotated[int, typer.Option(help="Evaluations a search; 0 = none.")] = 1000,
        seconds: Annotated[float, typer.Option(help="Seconds a search; 0 = none.")] = 0.0,
        seeds: Annotated[list[str] | None, typer.Option(help="Repeatable, or by commas. Default: 0.")] = None,
        samples: Annotated[int, typer.Option(help="Calibration samples; 0 = all.")] = 2000,
        granularity: Annotated[str, typer.Option(help="weight, 2:4, 4x4, kernel.")] = "weight",
        include: Annotated[list[str] | None, typer.Option(help="Name patterns; repeatable.")] = None,
        exclude: Annotated[list[str] | None, typer.Option(help="Name patterns; repeatable.")] = None,
        keep: Annotated[
            list[str] | None,
            typer.Option(help="Layers that keep all channels; repeatable. Default: the last one."),
        ] = None,
        divergence: Annotated[str, typer.Option(help="kl, js, mse, cosine.")] = "kl",
        batch_size: Annotated[int, typer.Option(help="Samples in a forward pass.")] = 256,
        checkpoint: Annotated[Path | None, typer.Option(help="Weights as safetensors.")] = None,
        _config: Annotated[
            Path | None,
            typer.Option(
                "--config",
                callback=_configured,
                is_eager=True,
                help="Options as TOML; the command line goes before.",
            ),
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on with the rows in the folder.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    ) -> None:
        """Compare all methods on one model, and write a report: index.html, report.md, rows.json, figures.

        Example: de-plugin compare --model lenet5 --data mnist --hosts torch-pruning,nni --sparsity 0.7,0.9
        --task weights,channels --budget 1000 --seeds 0,1,2 --output report

        The folder's compare.toml makes the same run again: de-plugin compare --config report/compare.toml.
        Several processes share the rows: torchrun --nproc-per-node 4 -m de_plugin compare ...
        """
        check()
        options: dict[str, Any] = {
            "task": _several("task", task, str) or ["weights"],
            "sparsities": _several("sparsity", sparsity, float) or [0.5, 0.7, 0.9],
            "ratios": _several("ratio", ratio, float) or [0.25, 0.5, 0.75],
            "bits": _several("bits", bits, float) or [4.0, 3.0, 2.0],
            "seeds": _several("seeds", seeds, int) or [0],
            "hosts": None if hosts == "all" else [] if hosts == "none" else _several("hosts", [hosts], str),
            "methods": methods or None,
        }
        rows = prepared(output) / ROWS
        if rows.exists() and not resume:
            raise FileError(f"--output {output}: has rows already; add --resume, or give another folder")
        command = written(
            {n: v for n, v in context.params.items() if n not in _NOT_KEPT and v not in (None, [], ())}
        )

        def write_config() -> None:
            with whole(output / CONFIG) as draft:
                draft.write_text(f"{command}\n", encoding="utf-8")

        network, batches, test = first_alone(rank, lambda: loaded(model, data, checkpoint))
        with _bar(console, as_json or rank > 0) as bar:
            shown = bar.add_task("beginning", total=None)

            def tell(step: Step) -> None:
                if not (output / CONFIG).exists():
                    write_config()
                what = f"{step.method.host}: {step.method.name}, {amount(step.method.task, step.sparsity)}"
                bar.update(shown, total=step.total, completed=step.done, description=what)

            try:
                found = run(
                    network,
                    batches,
                    test=test,
                    budget=Budget(budget or None, seconds or None),
                    granularity=granularity,
                    include=include or (),
                    exclude=exclude or (),
                    keep=keep or None,
                    divergence=divergence,
                    samples=samples or None,
                    batch_size=batch_size,
                    path=rows,
                    progress=tell,
                    **options,
                )
            except KeyboardInterrupt:
                console.print(f"interrupted; what is done is in {rows}: go on with --resume")
                raise typer.Exit(_INTERRUPTED) from None
        if rank > 0:
            return
        write_config()
        again = f"de-plugin compare --config {shlex.quote(str(output / CONFIG))} --output another"
        files = found.report(output, command=f"{again}\n\n# {CONFIG}\n{command}")
        _print(found, files.page, as_json)


_NOT_KEPT = ("_config", "resume", "as_json")
"""Options that a run is not repeated with."""


def _bar(console: Console, quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=quiet, transient=True)


def _several(option: str, values: list[str] | None, kind: type[Any]) -> list[Any]:
    """Return what was given by commas or several times."""
    parts = [part.strip() for value in values or [] for part in str(value).split(",") if part.strip()]
    try:
        return [kind(part) for part in parts]
    except ValueError as error:
        raise ArgumentError(f"--{option} {','.join(parts)}: {error}; expected numbers by commas") from error


def _print(found: Comparison, page: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.to_dict(), allow_nan=False))
        return
    typer.echo(str(found))
    typer.echo(f"\n{page}")
