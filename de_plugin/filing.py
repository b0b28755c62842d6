"""The commands about files: compress a model, read a file back, tell what is in it."""

from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from de_plugin import encode, terminal
from de_plugin.encode.files import whole
from de_plugin.errors import ArgumentError, FileError
from de_plugin.loading import Tell, check_apart, first_alone, found_zoos, load_model, loaded, zoo_of
from de_plugin.pipeline import compress as run

MaxBytes = Annotated[
    int | None,
    typer.Option(help="Refuse a file whose tensors need more memory; default: by the file's size."),
]
"""The bound that keeps a damaged file from taking all memory."""

_VALIDATION = 0.1
_SEED = 0xDE


def add(app: typer.Typer, rank: int) -> None:
    """Give the command line its commands about files."""

    @app.command()
    def compress(
        context: typer.Context,
        model: terminal.Model,
        output: Annotated[Path, typer.Option(help="The file, *.de.safetensors by custom.")],
        data: terminal.Data = "mnist",
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
        criterion: terminal.Criterion = "de",
        cycles: Annotated[int, typer.Option(help="Pruning cycles; 0 = default.")] = 0,
        recovery: terminal.Recovery = None,
        finish: terminal.Finish = None,
        retrain: Annotated[
            list[str] | None,
            typer.Option(
                help=f"After levels: {', '.join(terminal.RETRAININGS)}; repeatable.",
                autocompletion=terminal.among(terminal.RETRAININGS),
            ),
        ] = None,
        rounding: Annotated[
            str,
            typer.Option(
                help="nearest, or compensated: levels that make good each other's errors.",
                autocompletion=terminal.among(terminal.ROUNDINGS),
            ),
        ] = "nearest",
        biases: Annotated[int, typer.Option(help="Bits of biases, 2 to 8; 0 = exact.")] = 8,
        include: terminal.Include = None,
        exclude: terminal.Exclude = None,
        divergence: terminal.Divergence = "kl",
        samples: Annotated[int, typer.Option(help="Calibration samples; 0 = all.")] = 0,
        checkpoint: terminal.Weights = None,
        seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
        resume: terminal.Resume = None,
        _config: terminal.Config = None,
        save_config: terminal.SaveConfig = None,
        as_json: terminal.Json = False,
    ) -> None:
        """Make a model a small file: prune, quantize, encode, and read it again.

        Example: de-plugin compress --model lenet5 --max-loss 0.5 --output lenet5.de.safetensors

        Example: de-plugin compress --config compress.toml --bits 3 --output smaller.de.safetensors
        """
        check_apart({"--output": output, "--save-config": save_config}, {"--checkpoint": checkpoint})
        sparsity = sparsity or [0.9]
        with (
            terminal.interruptible(lambda: terminal.kept(resume, output), rank),
            terminal.working("reading", as_json=as_json, rank=rank) as tell,
        ):
            network, batches, test = first_alone(rank, lambda: loaded(model, data, checkpoint, tell))
            metric = None
            if max_loss is not None:
                batches, held_out = _split(batches)
                accuracy = zoo_of(found_zoos()).accuracy

                def metric(candidate: nn.Module) -> float:
                    return 100.0 - float(accuracy(candidate, *held_out))

            found = run(
                network,
                batches,
                output,
                sparsity,
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
                    "progress": lambda p: tell(
                        f"prune: sparsity {p.sparsity:.1%} divergence {p.divergence:.4g}", p.cycle, p.cycles
                    ),
                },
                quantizing={
                    "recovery": retrain or None,
                    "rounding": rounding,
                    "biases": biases or "exact",
                    "progress": lambda p: tell(
                        f"quantize: {p.bytes:,.0f} bytes divergence {p.divergence:.4g} ({p.name})"
                    ),
                },
                progress=lambda stage: tell(f"{stage.name} at sparsity {stage.sparsity:.1%}"),
                include=include or (),
                exclude=exclude or (),
                divergence=divergence,
                samples=samples or None,
                seed=seed,
                checkpoint=resume,
            )
        if rank > 0:
            return
        if save_config is not None:
            terminal.keep(save_config, context, sparsity=sparsity)
        result = found.to_dict()
        if test is not None:
            with terminal.working(f"measuring {output}", as_json=as_json):
                result["tensors"] = len(encode.load(output, into=network))
                result["accuracy"] = zoo_of(found_zoos()).accuracy(network, *test)
        if as_json:
            typer.echo(terminal.document(result))
            return
        typer.echo(str(found))
        if "accuracy" in result:
            typer.echo(f"test accuracy of the file {result['accuracy']:.2f} %")

    @app.command()
    def load(
        file: Annotated[Path, typer.Argument(help="A compressed network.")],
        output: Annotated[Path | None, typer.Option(help="Write plain safetensors here.")] = None,
        model: Annotated[
            str,
            typer.Option(
                help="Check that it fits this model, before anything is written.",
                autocompletion=terminal.MODELS,
            ),
        ] = "",
        data: Annotated[
            str, typer.Option(help="Measure the model's accuracy on it.", autocompletion=terminal.DATA)
        ] = "",
        max_bytes: MaxBytes = None,
        as_json: terminal.Json = False,
    ) -> None:
        """Read a compressed network, bit for bit as it was written.

        Example: de-plugin load lenet5.de.safetensors --output lenet5.safetensors
        """
        check_apart({"--output": output}, {"FILE": file})
        kept = "nothing is changed" if output is None else f"{output} is as it was"
        with terminal.interruptible(lambda: kept), terminal.working("reading", as_json=as_json) as tell:
            tell(f"reading {file}")
            state = encode.load(file, max_bytes=max_bytes)
            result: dict[str, Any] = {
                "tensors": len(state),
                "numbers": sum(x.numel() for x in state.values()),
                "output": None if output is None else str(output),
            }
            if model:
                network, _, test = _fitting(model, data or "mnist", tell)
                encode.load(file, into=network, max_bytes=max_bytes)
                if data and test is not None:
                    tell("measuring")
                    result["accuracy"] = zoo_of(found_zoos()).accuracy(network, *test)
        if output is not None:
            with terminal.working(f"writing {output}", as_json=as_json):
                encode.to_dense(file, output, max_bytes=max_bytes)
        if as_json:
            typer.echo(terminal.document(result))
            return
        typer.echo(f"{result['tensors']} tensors, {result['numbers']:,} numbers, all checksums right")
        if "accuracy" in result:
            typer.echo(f"test accuracy {result['accuracy']:.2f} %")

    @app.command()
    def inspect(
        file: Annotated[Path, typer.Argument(help="A compressed network.")],
        max_bytes: MaxBytes = None,
        as_json: terminal.Json = False,
    ) -> None:
        """Tell what is in a compressed network: shape, sparsity, bits, bytes and ratio of each layer.

        Example: de-plugin inspect lenet5.de.safetensors
        """
        with (
            terminal.interruptible(lambda: f"{file} is as it was"),
            terminal.working(f"reading {file}", as_json=as_json),
        ):
            info = encode.inspect(file, max_bytes=max_bytes)
        typer.echo(terminal.document(info.to_dict()) if as_json else str(info))


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a model's state as safetensors, whole or not at all.

    Raises:
        FileError: the file cannot be written.
    """
    state = {name: x.detach().clone().contiguous() for name, x in model.state_dict().items()}
    with whole(path) as draft:
        try:
            save_file(state, draft)
        except SafetensorError as error:
            raise FileError(f"{path} cannot be written ({error})") from error


def _fitting(model: str, data: str, tell: Tell) -> tuple[nn.Module, Any, Any]:
    if ":" in data or ":" not in model:
        return loaded(model, data, None, tell)
    return load_model(model, data, None, tell), None, None


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
