"""`de-plugin` on the command line: prune a model, list the criteria, and what other modules add."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torch.distributed as dist

from de_plugin.errors import DEError, MissingDependencyError
from de_plugin.loading import check_apart, first_alone, found_zoos, loaded, zoo_of


def _build(rank: int = 0) -> Any:
    try:
        import typer
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        raise MissingDependencyError(
            f"the command line needs {error.name}: pip install 'de_plugin[cli]'"
        ) from error

    import de_plugin
    from de_plugin import terminal
    from de_plugin.compare.command import add as add_comparing
    from de_plugin.extensions import extended
    from de_plugin.filing import add, write_weights
    from de_plugin.prune import Budget
    from de_plugin.prune import prune as run
    from de_plugin.prune.target import Scope

    app = typer.Typer(
        cls=extended(rank),
        no_args_is_help=True,
        epilog=terminal.EXIT_CODES,
        pretty_exceptions_enable=False,
    )

    def version(asked: bool) -> None:
        if asked:
            typer.echo(de_plugin.__version__)
            raise typer.Exit

    @app.callback()
    def top(
        _version: Annotated[
            bool,
            typer.Option("--version", callback=version, is_eager=True, help="Print the version."),
        ] = False,
    ) -> None:
        """Directed Evolution: make a trained network small by trying what can go.

        Example: de-plugin prune --model lenet300 --data mnist --sparsity 0.95 --output pruned.safetensors
        """

    @app.command()
    def prune(
        context: typer.Context,
        model: terminal.Model,
        data: terminal.Data = "mnist",
        sparsity: Annotated[
            float | None,
            typer.Option(help="Fraction of units to zero, in [0, 1). Default: 0.9, or the pattern's own."),
        ] = None,
        criterion: terminal.Criterion = "de",
        granularity: terminal.Granularity = "weight",
        scope: terminal.Scope = "global",
        cycles: Annotated[int, typer.Option(help="Cycles up to the target; 0 = default.")] = 0,
        recovery: terminal.Recovery = None,
        finish: terminal.Finish = None,
        include: terminal.Include = None,
        exclude: terminal.Exclude = None,
        divergence: terminal.Divergence = "kl",
        samples: Annotated[int, typer.Option(help="Calibration samples; 0 = all.")] = 0,
        evaluations: Annotated[int, typer.Option(help="Budget in evaluations; 0 = none.")] = 0,
        seconds: Annotated[float, typer.Option(help="Budget in seconds; 0 = none.")] = 0.0,
        checkpoint: terminal.Weights = None,
        output: Annotated[Path | None, typer.Option(help="Write the pruned weights here.")] = None,
        seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
        resume: terminal.Resume = None,
        _config: terminal.Config = None,
        save_config: terminal.SaveConfig = None,
        as_json: terminal.Json = False,
    ) -> None:
        """Prune a model and report what it cost.

        Example: de-plugin prune --model lenet5 --data mnist --sparsity 0.95 --output pruned.safetensors

        Example: de-plugin prune --config prune.toml --sparsity 0.98

        On several cores or machines: torchrun --nproc-per-node 4 -m de_plugin prune ...
        """
        check_apart({"--output": output, "--save-config": save_config}, {"--checkpoint": checkpoint})
        if sparsity is None and ":" not in granularity:
            sparsity = 0.9
        budget = Budget(evaluations or None, seconds or None)

        with (
            terminal.interruptible(lambda: terminal.kept(resume, output), rank),
            terminal.working("reading", as_json=as_json, rank=rank) as tell,
        ):
            network, calibration, test = first_alone(rank, lambda: loaded(model, data, checkpoint, tell))
            tell("pruning")
            report = run(
                network,
                calibration,
                sparsity,
                criterion,
                scope=cast(Scope, scope),
                granularity=granularity,
                schedule=cycles or None,
                recovery=recovery or None,
                finish=finish or None,
                include=include or (),
                exclude=exclude or (),
                divergence=divergence,
                samples=samples or None,
                budget=budget,
                seed=seed,
                checkpoint=resume,
                progress=lambda p: tell(
                    f"sparsity {p.sparsity:.1%} divergence {p.divergence:.4g}", p.cycle, p.cycles
                ),
            )
            result = report.to_dict()
            if test is not None and rank == 0:
                tell("measuring")
                result["accuracy"] = zoo_of(found_zoos()).accuracy(network, *test)
        if rank > 0:
            return
        if output is not None:
            write_weights(network, output)
            result["output"] = str(output)
        if save_config is not None:
            terminal.keep(save_config, context, sparsity=sparsity)
        if as_json:
            typer.echo(terminal.document(result))
            return
        typer.echo(str(report))
        if "accuracy" in result:
            typer.echo(f"test accuracy {result['accuracy']:.2f} %")

    @app.command()
    def criteria(as_json: terminal.Json = False) -> None:
        """List the criteria that rank units.

        Example: de-plugin criteria --json
        """
        known = de_plugin.describe()
        if as_json:
            typer.echo(terminal.document(known))
            return
        table = Table("name", "what it asks")
        for name, text in known.items():
            table.add_row(name, text)
        Console().print(table)

    add(app, rank)
    add_comparing(app, rank)
    return app


@contextmanager
def ranks() -> Iterator[int]:
    """Join the other processes where `torchrun` has started this one; yield its rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_available():
        yield 0
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank()
    except SystemExit as end:  # how the command line comes to an end
        if not end.code:
            dist.barrier()  # nobody leaves while another still reads
        raise
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Run the command line; errors that de_plugin raises end with their message and exit code 2.

    Under `torchrun` the processes share the work, and the first alone prints and writes.
    """
    torch.set_num_threads(max(1, min(torch.get_num_threads(), 8)))
    try:
        with ranks() as rank:
            _build(rank)(prog_name="de-plugin")  # also as `python -m de_plugin`: completion is by this name
    except DEError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:  # before there are commands
        sys.stderr.write("interrupted; every file is whole\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
