"""What all commands have in common: options, progress, JSON, and what they say after Ctrl-C."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from de_plugin import config
from de_plugin.criteria import describe
from de_plugin.loading import Tell, found_zoos, untold
from de_plugin.prune.recover import recoveries
from de_plugin.prune.target import Scope as Scopes
from de_plugin.version import __version__

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

EXIT_CODES = (
    "Exit codes: 0 done; 2 an argument, a file or data cannot work, and the message says why; "
    "130 Ctrl-C, files are as they were or whole; 1 anything else, which is a fault."
)
"""What the exit codes mean, for the end of the help."""

DIVERGENCES = ("kl", "js", "mse", "cosine")
GRANULARITIES = ("weight", "2:4", "4x4", "kernel", "channel")
SCOPES: tuple[str, ...] = get_args(Scopes)
ROUNDINGS = ("nearest", "compensated")
RETRAININGS = ("bias", "batchnorm", "levels", "straight-through", "distill")

_NOT_KEPT = ("context", "_config", "save_config", "resume", "as_json", "help", "return")
"""What is no option of a file: a run is not repeated with it."""


def among(names: Iterable[str] | Mapping[str, str]) -> Callable[[str], list[Any]]:
    """Return what completes a word of the command line to a name; a mapping tells what each name means."""
    known: list[Any] = list(names.items() if isinstance(names, Mapping) else names)

    def completed(incomplete: str) -> list[Any]:
        return [x for x in known if (x if isinstance(x, str) else x[0]).startswith(incomplete)]

    return completed


def _of_zoos(kind: str) -> list[str]:
    """Return the names that the zoos have; none where no zoo can be imported."""
    try:
        return sorted({name for zoo in found_zoos() for name in getattr(zoo, kind)})
    except Exception:  # importing a zoo may raise anything, and is no matter of most commands
        return []


def _zoo_or_own(known: list[str]) -> str:
    return f"{', '.join(known)}, or package.module:function." if known else "package.module:function."


def _configured(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file's options be the defaults of the command line."""
    if path is not None and not context.resilient_parsing:
        function: Any = context.command.callback
        kinds = get_type_hints(inspect.unwrap(function))
        options = config.read(path, {n: kind for n, kind in kinds.items() if n not in _NOT_KEPT})
        context.default_map = {**(context.default_map or {}), **options}
    return path


_MODELS, _DATA = _of_zoos("MODELS"), _of_zoos("DATA")
MODELS, DATA = among(_MODELS), among(_DATA)
"""What completes the names that the zoos have."""

Model = Annotated[str, typer.Option(help=_zoo_or_own(_MODELS), autocompletion=MODELS)]
Data = Annotated[str, typer.Option(help=_zoo_or_own(_DATA), autocompletion=DATA)]
Weights = Annotated[Path | None, typer.Option(help="Weights as safetensors.")]
Criterion = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(describe())}; see `de-plugin criteria`.", autocompletion=among(describe())
    ),
]
Divergence = Annotated[
    str, typer.Option(help=f"{', '.join(DIVERGENCES)}.", autocompletion=among(DIVERGENCES))
]
Granularity = Annotated[
    str, typer.Option(help=f"{', '.join(GRANULARITIES)}.", autocompletion=among(GRANULARITIES))
]
Scope = Annotated[str, typer.Option(help=f"{' or '.join(SCOPES)}.", autocompletion=among(SCOPES))]
Recovery = Annotated[
    list[str] | None,
    typer.Option(
        help=f"After each cycle: {', '.join(recoveries())}; repeatable.", autocompletion=among(recoveries())
    ),
]
Finish = Annotated[
    list[str] | None,
    typer.Option(help="The same, once after pruning; repeatable.", autocompletion=among(recoveries())),
]
Include = Annotated[
    list[str] | None, typer.Option(help="Name patterns of weights to take; repeatable. Default: all.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Name patterns of weights to leave alone; repeatable.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_configured,
        is_eager=True,
        help="Options as TOML; the command line goes before.",
    ),
]
SaveConfig = Annotated[
    Path | None,
    typer.Option(help="When done, write the TOML that makes the same run again with --config."),
]
Resume = Annotated[
    Path | None, typer.Option(help="Folder that keeps the work; the same call goes on from there.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and show no progress.")]


def options(context: typer.Context) -> dict[str, Any]:
    """Return what a command was called with, defaults among it, in the order of its help."""
    order = [param.name for param in context.command.params if param.name not in _NOT_KEPT]
    given = {str(name): context.params.get(str(name)) for name in order}
    return {name: value for name, value in given.items() if value not in (None, [], ())}


def keep(path: Path, context: typer.Context, **resolved: Any) -> None:
    """Write the TOML that makes a command's run again, with what bits depend on beside it.

    Args:
        path: the file.
        context: of the command.
        resolved: options as they were used, where they had not been given; None: there is none.
    """
    given = {**options(context), **{name: x for name, x in resolved.items() if x is not None}}
    config.save(path, given, surroundings())


def surroundings() -> str:
    """Return in a line what the bits of a run depend on beside its options."""
    return f"de_plugin {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def document(value: Any) -> str:
    """Return plain data as JSON; None stands for numbers that are not finite, which JSON does not have.

    >>> document({"divergence": float("inf"), "layers": ["fc1"]})
    '{"divergence": null, "layers": ["fc1"]}'
    """
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


@contextmanager
def working(what: str, *, as_json: bool, rank: int = 0) -> Iterator[Tell]:
    """Show on a terminal's stderr what is being done; yield a function that says what comes next.

    Nothing is shown with ``--json``, by other processes than the first, or where stderr is no terminal. With
    ``--json``, what a user's model or data print goes to stderr: stdout is for the document.
    """
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        if as_json or rank > 0 or not sys.stderr.isatty():
            yield untold
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        mixed = sys.stdout.isatty()  # elsewhere what a model prints stays on stdout
        bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=mixed)
        with bar:
            task = bar.add_task(what, total=None)

            def tell(what: str, done: float = 0, total: float | None = None) -> None:
                bar.tasks[0].total = total  # update cannot make it unknown again
                bar.update(task, description=what, completed=done)

            yield tell


@contextmanager
def interruptible(kept: Callable[[], str], rank: int = 0) -> Iterator[None]:
    """End with a line on stderr and exit code 130 where Ctrl-C ends the block.

    Args:
        kept: says what is kept, and how to go on.
        rank: only the first process says it.
    """
    try:
        yield
    except KeyboardInterrupt:
        if rank == 0:
            typer.echo(f"interrupted; {kept()}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def kept(folder: Path | None, output: Path | None) -> str:
    """Say what a command that was cut off has kept.

    Args:
        folder: of --resume.
        output: the file that it would have written.
    """
    old = "" if output is None else f", and {output} is as it was"
    if folder is None:
        return f"nothing is kept{old}; with --resume FOLDER the same call goes on where it was"
    names = ("search.safetensors", "*-part-*", "levels.jsonl")
    if not any(any(folder.glob(place)) for name in names for place in (name, f"*/{name}")):
        return f"nothing is kept yet{old}"
    return f"the work is kept in {folder}{old}: the same call goes on there"
