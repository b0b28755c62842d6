"""`de-plugin` on the command line: prune a model, list the criteria, and what other modules add."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torch.distributed as dist

from de_plugin.errors import DEError, MissingDependencyError
from de_plugin.loading import check_writable, first_alone, found_zoos, loaded, zoo_of


def _build(rank: int = 0) -> Any:
    try:
        import typer
        from rich.console import Console
        from rich.progress import Progress as Bar
        from rich.table import Table
    except ImportError as error:
        raise MissingDependencyError(
            f"the command line needs {error.name}: pip install 'de_plugin[cli]'"
        ) from error

    import de_plugin
    from de_plugin.compare.command import add as add_comparing
    from de_plugin.extensions import extended
    from de_plugin.filing import add
    from de_plugin.prune import Budget
    from de_plugin.prune import prune as run
    from de_plugin.prune.recover import recoveries
    from de_plugin.prune.target import Scope

    app = typer.Typer(
        cls=extended(),
        no_args_is_help=True,
        help="Directed Evolution: make a trained network small by trying what can go.",
        pretty_exceptions_enable=False,
    )
    console = Console(stderr=True)

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
        """Directed Evolution: make a trained network small by trying what can go."""

    @app.command()
    def prune(
        model: Annotated[str, typer.Option(help="Zoo name or package.module:function.")],
        data: Annotated[str, typer.Option(help="Zoo name or package.module:function.")] = "mnist",
        sparsity: Annotated[
            float | None,
            typer.Option(help="Fraction of units to zero, in [0, 1). Default: 0.9, or the pattern's own."),
        ] = None,
        criterion: Annotated[str, typer.Option(help="See `de-plugin criteria`.")] = "de",
        granularity: Annotated[str, typer.Option(help="weight, 2:4, 4x4, kernel, channel.")] = "weight",
        scope: Annotated[str, typer.Option(help="global or layer.")] = "global",
        cycles: Annotated[int, typer.Option(help="Cycles up to the target; 0 = default.")] = 0,
        recovery: Annotated[
            list[str] | None,
            typer.Option(help=f"After each cycle: {', '.join(recoveries())}; repeatable."),
        ] = None,
        finish: Annotated[list[str] | None, typer.Option(help="The same, once at the end.")] = None,
        include: Annotated[
            list[str] | None, typer.Option(help="Name patterns of weights to prune; repeatable.")
        ] = None,
        exclude: Annotated[
            list[str] | None, typer.Option(help="Name patterns of weights to leave alone; repeatable.")
        ] = None,
        divergence: Annotated[str, typer.Option(help="kl, js, mse, cosine.")] = "kl",
        samples: Annotated[int, typer.Option(help="Calibration samples; 0 = all.")] = 0,
        evaluations: Annotated[int, typer.Option(help="Budget in evaluations; 0 = none.")] = 0,
        seconds: Annotated[float, typer.Option(help="Budget in seconds; 0 = none.")] = 0.0,
        checkpoint: Annotated[Path | None, typer.Option(help="Weights as safetensors.")] = None,
        output: Annotated[Path | None, typer.Option(help="Write the pruned weights here.")] = None,
        seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
        resume: Annotated[
            Path | None, typer.Option(help="Folder that keeps the search; the same call goes on from there.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    ) -> None:
        """Prune a model and report what it cost.

        Example: de-plugin prune --model lenet5 --data mnist --sparsity 0.95 --output pruned.safetensors

        On several cores or machines: torchrun --nproc-per-node 4 -m de_plugin prune ...
        """
        if output is not None:
            check_writable(output)
        if sparsity is None and ":" not in granularity:
            sparsity = 0.9
        network, calibration, test = first_alone(rank, lambda: loaded(model, data, checkpoint))
        budget = Budget(evaluations or None, seconds or None)
        with Bar(console=console, disable=as_json or rank > 0, transient=True) as bar:
            task = bar.add_task("pruning", total=None)
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
                progress=lambda p: bar.update(
                    task,
                    total=p.cycles,
                    completed=p.cycle,
                    description=f"sparsity {p.sparsity:.1%} divergence {p.divergence:.4g}",
                ),
            )
        if rank > 0:
            return
        result = report.to_dict()
        if test is not None:
            result["accuracy"] = zoo_of(found_zoos()).accuracy(network, *test)
        if output is not None:
            from safetensors.torch import save_file

            save_file({k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}, output)
            result["output"] = str(output)
        if as_json:
            typer.echo(json.dumps(result, default=float))
            return
        typer.echo(str(report))
        if "accuracy" in result:
            typer.echo(f"test accuracy {result['accuracy']:.2f} %")

    @app.command()
    def criteria(
        as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    ) -> None:
        """List the criteria that rank units."""
        known = de_plugin.describe()
        if as_json:
            typer.echo(json.dumps(known))
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
            _build(rank)()
    except DEError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
