"""`de-plugin compare` on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from de_plugin import config, terminal
from de_plugin.compare.comparison import Comparison
from de_plugin.compare.figures import check
from de_plugin.compare.hosts import known
from de_plugin.compare.report import ROWS, prepared
from de_plugin.compare.row import TASKS
from de_plugin.compare.run import compare as run
from de_plugin.compare.runner import Step
from de_plugin.compare.text import amount
from de_plugin.errors import ArgumentError, FileError
from de_plugin.loading import first_alone, loaded
from de_plugin.prune import Budget

CONFIG = "compare.toml"
"""Name of the file, in the report's folder, that makes the same run again."""
_GRANULARITIES = tuple(name for name in terminal.GRANULARITIES if name != "channel")


def add(app: typer.Typer, rank: int) -> None:
    """Give the command line its command that compares."""

    @app.command()
    def compare(
        context: typer.Context,
        model: terminal.Model,
        output: Annotated[Path, typer.Option(help="Folder for the report; made if it does not exist.")],
        data: terminal.Data = "mnist",
        hosts: Annotated[
            str,
            typer.Option(
                help=f"Installed frameworks, by commas: {', '.join(known())}; all, or none.",
                autocompletion=terminal.among(("all", "none", *known())),
            ),
        ] = "all",
        task: Annotated[
            list[str] | None,
            typer.Option(
                help="weights, channels or bits; repeatable, or by commas. Default: weights.",
                autocompletion=terminal.among(TASKS),
            ),
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
        granularity: Annotated[
            str,
            typer.Option(help=f"{', '.join(_GRANULARITIES)}.", autocompletion=terminal.among(_GRANULARITIES)),
        ] = "weight",
        include: terminal.Include = None,
        exclude: terminal.Exclude = None,
        keep: Annotated[
            list[str] | None,
            typer.Option(help="Layers that keep all channels; repeatable. Default: the last one."),
        ] = None,
        divergence: terminal.Divergence = "kl",
        batch_size: Annotated[int, typer.Option(help="Samples in a forward pass.")] = 256,
        checkpoint: terminal.Weights = None,
        _config: terminal.Config = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on with the rows in the folder.")] = False,
        as_json: terminal.Json = False,
    ) -> None:
        """Compare all methods on one model, and write a report: index.html, report.md, rows.json, figures.

        Example: de-plugin compare --model lenet5 --data mnist --hosts torch-pruning,nni --sparsity 0.7,0.9
        --task weights,channels --budget 1000 --seeds 0,1,2 --output report

        Example: de-plugin compare --config report/compare.toml --output again

        The folder's compare.toml makes the same run again.
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
        chosen = terminal.options(context)

        def kept() -> str:
            if not rows.exists():
                return "nothing is measured yet"
            return f"what is done is in {rows}: go on with --resume"

        with (
            terminal.interruptible(kept, rank),
            terminal.working("reading", as_json=as_json, rank=rank) as tell,
        ):
            network, batches, test = first_alone(rank, lambda: loaded(model, data, checkpoint, tell))
            tell("beginning")

            def progress(step: Step) -> None:
                if not (output / CONFIG).exists():
                    config.save(output / CONFIG, chosen, terminal.surroundings())
                name = f"{step.method.host}: {step.method.name}, {amount(step.method.task, step.sparsity)}"
                tell(f"{step.done} of {step.total}, {name}", step.done, step.total)

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
                progress=progress,
                **options,
            )
            if rank > 0:
                return
            tell("drawing")
            config.save(output / CONFIG, chosen, terminal.surroundings())
            again = f"de-plugin compare --config {shlex.quote(str(output / CONFIG))} --output another"
            files = found.report(output, command=f"{again}\n\n# {CONFIG}\n{config.written(chosen)}")
        _print(found, files.page, as_json)


def _several(option: str, values: list[str] | None, kind: type[Any]) -> list[Any]:
    """Return what was given by commas or several times."""
    parts = [part.strip() for value in values or [] for part in str(value).split(",") if part.strip()]
    try:
        return [kind(part) for part in parts]
    except ValueError as error:
        raise ArgumentError(f"--{option} {','.join(parts)}: {error}; expected numbers by commas") from error


def _print(found: Comparison, page: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(terminal.document(found.to_dict()))
        return
    typer.echo(str(found))
    typer.echo(f"\n{page}")
