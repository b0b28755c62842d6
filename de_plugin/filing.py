"""The commands about files: compress a model, read a file back, tell what is in it."""

import json
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.progress import Progress as Bar
from torch import Tensor, nn

from de_plugin import encode
from de_plugin.errors import ArgumentError
from de_plugin.loading import check_writable, first_alone, found_zoos, load_model, loaded, zoo_of
from de_plugin.pipeline import Stage
from de_plugin.pipeline import compress as run

_VALIDATION = 0.1
_SEED = 0xDE


def add(app: typer.Typer, rank: int) -> None:
    """Give the command line its commands about files."""
    console = Console(stderr=True)

    @app.command()
    def compress(
        model: Annotated[str, typer.Option(help="Zoo name or package.module:function.")],
        output: Annotated[Path, typer.Option(help="The file, *.de.safetensors by custom.")],
        data: Annotated[str, typer.Option(help="Zoo name or package.module:function.")] = "mnist",
        sparsity: Annotated[
            list[float] | None,
            typer.Option(help="Fraction of weights to zero; several: the best is kept. Default 0.9."),
        ] = None,
        bits: Annotated[
            int | None, typer.Option(help="Goal: bytes of so many bits a survivor. Default 4.")
        ] = None,
        target_bytes: Annotated[
            int | None, typer.Option(help="Goal: a file of at most so many bytes.")
        ] = None,
        max_divergence: Annotated[
            float | None, typer.Option(help="Goal: the smallest file within it.")
        ] = None,
        max_loss: Annotated[
            float | None,
            typer.Option(help="Goal: the smallest file with so many percent more errors on held-out data."),
        ] = None,
        criterion: Annotated[str, typer.Option(help="See `de-plugin criteria`.")] = "de",
        cycles: Annotated[int, typer.Option(help="Pruning cycles; 0 = default.")] = 0,
        recovery: Annotated[list[str] | None, typer.Option(help="After each cycle; see prune.")] = None,
        finish: Annotated[list[str] | None, typer.Option(help="Once, after pruning.")] = None,
        retrain: Annotated[
            list[str] | None,
            typer.Option(help="After levels: bias, batchnorm, levels, straight-through, distill."),
        ] = None,
        rounding: Annotated[
            str,
            typer.Option(help="nearest, or compensated: levels that make good each other's errors."),
        ] = "nearest",
        biases: Annotated[int, typer.Option(help="Bits of biases, 2 to 8; 0 = exact.")] = 8,
        include: Annotated[list[str] | None, typer.Option(help="Name patterns; repeatable.")] = None,
        exclude: Annotated[list[str] | None, typer.Option(help="Name patterns; repeatable.")] = None,
        divergence: Annotated[str, typer.Option(help="kl, js, mse, cosine.")] = "kl",
        samples: Annotated[int, typer.Option(help="Calibration samples; 0 = all.")] = 0,
        checkpoint: Annotated[Path | None, typer.Option(help="Weights as safetensors.")] = None,
        seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    ) -> None:
        """Make a model a small file: prune, quantize, encode, and read it again.

        Example: de-plugin compress --model lenet5 --max-loss 0.5 --output lenet5.de.safetensors
        """
        check_writable(output)
        network, batches, test = first_alone(rank, lambda: loaded(model, data, checkpoint))
        metric = None
        if max_loss is not None:
            batches, held_out = _split(batches)
            accuracy = zoo_of(found_zoos()).accuracy

            def metric(candidate: nn.Module) -> float:
                return 100.0 - float(accuracy(candidate, *held_out))

        with Bar(console=console, disable=as_json or rank > 0, transient=True) as bar:
            task = bar.add_task("reading", total=None)

            def tell(stage: Stage) -> None:
                bar.update(task, description=f"{stage.name} at sparsity {stage.sparsity:.1%}")

            found = run(
                network,
                batches,
                output,
                sparsity or 0.9,
                bits=bits,
                target_bytes=target_bytes,
                max_divergence=max_divergence,
                max_loss=max_loss,
                metric=metric,
                pruning={
                    "criterion": criterion,
                    "schedule": cycles or None,
                    "recovery": recovery or None,
                    "finish": finish or None,
                },
                quantizing={
                    "recovery": retrain or None,
                    "rounding": rounding,
                    "biases": biases or "exact",
                },
                progress=tell,
                include=include or (),
                exclude=exclude or (),
                divergence=divergence,
                samples=samples or None,
                seed=seed,
            )
        if rank > 0:
            return
        result = found.to_dict()
        if test is not None:
            again = encode.load(output, into=network)
            result["tensors"] = len(again)
            result["accuracy"] = zoo_of(found_zoos()).accuracy(network, *test)
        if as_json:
            typer.echo(json.dumps(result, default=float))
            return
        typer.echo(str(found))
        if "accuracy" in result:
            typer.echo(f"test accuracy of the file {result['accuracy']:.2f} %")

    @app.command()
    def load(
        file: Annotated[Path, typer.Argument(help="A compressed network.")],
        output: Annotated[Path | None, typer.Option(help="Write plain safetensors here.")] = None,
        model: Annotated[str, typer.Option(help="Check that it fits this model.")] = "",
        data: Annotated[str, typer.Option(help="Measure the model's accuracy on it.")] = "",
        as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    ) -> None:
        """Read a compressed network, bit for bit as it was written.

        Example: de-plugin load lenet5.de.safetensors --output lenet5.safetensors
        """
        if output is not None:
            check_writable(output)
            encode.to_dense(file, output)
        state = encode.load(file)
        result: dict[str, Any] = {
            "tensors": len(state),
            "numbers": sum(x.numel() for x in state.values()),
            "output": None if output is None else str(output),
        }
        if model:
            network, _, test = _fitting(model, data or "mnist")
            encode.load(file, into=network)
            if data and test is not None:
                result["accuracy"] = zoo_of(found_zoos()).accuracy(network, *test)
        if as_json:
            typer.echo(json.dumps(result))
            return
        typer.echo(f"{result['tensors']} tensors, {result['numbers']:,} numbers, all checksums right")
        if "accuracy" in result:
            typer.echo(f"test accuracy {result['accuracy']:.2f} %")

    @app.command()
    def inspect(
        file: Annotated[Path, typer.Argument(help="A compressed network.")],
        as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    ) -> None:
        """Tell what is in a compressed network: shape, sparsity, bits, bytes and ratio of each layer."""
        info = encode.inspect(file)
        typer.echo(json.dumps(info.to_dict(), default=float) if as_json else str(info))


def _fitting(model: str, data: str) -> tuple[nn.Module, Any, Any]:
    if ":" in data or ":" not in model:
        return loaded(model, data, None)
    return load_model(model, data, None), None, None


def _split(batches: Any) -> tuple[Any, Any]:
    """Hold samples back for the error, which neither search nor training sees."""
    if not (isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(x, Tensor) for x in batches)):
        raise ArgumentError(
            "--max-loss: needs data of tensors (inputs, labels); use --max-divergence, or "
            "de_plugin.compress(max_loss=..., metric=...)"
        )
    inputs, labels = cast("tuple[Tensor, Tensor]", batches)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(_SEED))
    held = max(1, round(_VALIDATION * len(inputs)))
    mine, other = order[held:], order[:held]
    return (inputs[mine], labels[mine]), (inputs[other], labels[other])
