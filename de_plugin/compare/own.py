"""The methods that need no host: Directed Evolution, its hybrids, criteria and codebooks, and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

from de_plugin.assess.layers import output_dim
from de_plugin.compare.bounded import bounded
from de_plugin.compare.case import Case, Host, Method, Pruned, layer_bits, mean_bits
from de_plugin.criteria import Criterion, blend, criterion, nest
from de_plugin.prune import DirectedEvolution, Evolving, prune
from de_plugin.quantize import LevelSearch, Quantized, RateSearch, codebook, quantize
from de_plugin.version import __version__

CRITERIA = ("magnitude", "wanda", "taylor", "fisher", "obs", "random")
"""The engine's criteria that need one pass."""

CODEBOOKS = ("uniform", "kmeans")
"""The engine's codebooks that are compared without a search."""

_CYCLES = 10
_A_CYCLE = 200
"""Evaluations without which a further cycle of a search is not worth its beginning."""

_A_GENERATION = 100
"""Evaluations that a generation of rates is worth: bringing genomes to equal bytes takes most of its time."""

_THOROUGH = 2000
"""Evaluations from which on a search has the settings that `prune` and `quantize` have by default."""

_WIDEN = 1.1
"""How much more the first of a nest picks: twice as much is all there is from a sparsity of one half on."""

HYBRIDS: dict[str, Callable[[Criterion], Criterion]] = {
    "nest(magnitude, de)": lambda de: nest("magnitude", de, widen=_WIDEN),
    "nest(fisher, de)": lambda de: nest("fisher", de, widen=_WIDEN),
    "blend(de, magnitude)": lambda de: blend({de: 0.5, "magnitude": 0.5}),
    "blend(de, fisher)": lambda de: blend({de: 0.5, "fisher": 0.5}),
}
"""Directed Evolution together with another criterion, made from a search."""


def engine() -> Host:
    """Return what de_plugin offers without a host."""
    methods = []
    for task in ("weights", "channels"):
        methods.append(Method(task, "de_plugin", "de", _evolved, "chooses by measuring"))
        for name, join in HYBRIDS.items():
            methods.append(Method(task, "de_plugin", name, partial(_evolved, join=join), "a hybrid"))
        methods += [
            Method(task, "de_plugin", name, partial(_pruned, partial(criterion, name)), "one pass")
            for name in CRITERIA
        ]
    methods.append(
        Method("bits", "de_plugin", "de", _evolved_levels, "steps, levels and bits of layers evolve")
    )
    for name in CODEBOOKS:
        about = "the same number of levels in each layer, no search"
        methods.append(Method("bits", "de_plugin", name, partial(_equal_levels, name), about))
    return Host("de_plugin", {"de_plugin": __version__}, tuple(methods))


def torch_own() -> Host:
    """Return what `torch.nn.utils.prune` offers."""

    def method(task: str, name: str, run: Callable[[Case, nn.Module], None], about: str) -> Method:
        return Method(task, "torch", name, partial(_by_torch, run), about)

    l1, random = torch_prune.L1Unstructured, torch_prune.RandomUnstructured
    each_l1, each_random = torch_prune.l1_unstructured, torch_prune.random_unstructured
    return Host(
        "torch",
        {"torch": torch.__version__},
        (
            method("weights", "l1_unstructured (global)", partial(_global, l1), "the smallest of all layers"),
            method("weights", "l1_unstructured", partial(_each, each_l1), "the smallest of each layer"),
            method("weights", "random_unstructured (global)", partial(_global, random), "any of all layers"),
            method("weights", "random_unstructured", partial(_each, each_random), "any of each layer"),
            method("channels", "ln_structured (l1)", partial(_channels, 1), "channels of the least l1 norm"),
            method("channels", "ln_structured (l2)", partial(_channels, 2), "channels of the least l2 norm"),
            method("channels", "random_structured", partial(_channels, None), "any channels"),
        ),
        ("torch masks the weights of a channel and leaves its bias; here the bias goes with it",),
    )


def _evolved(case: Case, join: Callable[[Criterion], Criterion] | None = None) -> Pruned:
    """Prune a copy by Directed Evolution, alone or joined with another criterion."""
    limit = case.budget.evaluations
    short = case.task == "channels" or (limit is not None and limit < _THOROUGH)
    search = DirectedEvolution.brief() if short else DirectedEvolution()
    return _pruned(lambda: search if join is None else join(search), case)


def _pruned(make: Callable[[], Criterion], case: Case) -> Pruned:
    """Prune a copy by a criterion of the engine."""
    model, search = case.copy(), bounded(make(), case.budget)
    limit, evolving = case.budget.evaluations, isinstance(search, Evolving)
    cycles = max(1, min(_CYCLES, limit // _A_CYCLE)) if limit is not None and evolving else None
    channels = case.task == "channels"
    report = prune(
        model,
        case.batches,
        case.sparsity,
        search,
        scope="layer" if channels else "global",
        budget=case.budget,
        schedule=cycles,
        granularity="channel" if channels else case.granularity,
        include=case.modules if channels else case.include,
        exclude=() if channels else case.exclude,
        **case.asked(),
    )
    return Pruned(model, evaluations=report.evaluations, curve=tuple(search.curve))


def _evolved_levels(case: Case) -> Pruned:
    """Give a copy levels that evolve at the bytes of so many bits; biases stay exact, as hosts leave them."""
    model, limit = case.copy(), case.budget.evaluations
    short = limit is not None and limit < _THOROUGH
    search = RateSearch()
    if limit is not None:
        search = replace(search, generations=max(1, min(search.generations, limit // _A_GENERATION)))
    report = quantize(
        model,
        case.batches,
        bits=case.bits,
        biases="exact",
        budget=case.budget,
        search=search,
        levels=None if short else LevelSearch(),
        include=case.include,
        exclude=case.exclude,
        **case.asked(),
    )
    found = {name: report.quantization[name] for name in case.weights if name in report.quantization}
    bits = mean_bits(found.values())
    return Pruned(model, evaluations=report.evaluations, bits=bits, layers=layer_bits(found))


def _equal_levels(name: str, case: Case) -> Pruned:
    """Give a copy the levels of one codebook, each layer as many as its bits can tell apart."""
    model, count, levels = case.copy(), 2**case.bits, dict[str, Quantized]()
    for parameter in case.weights:
        weight = model.get_parameter(parameter).data
        kept = (weight != 0).cpu()
        # a codebook keeps one level for zeros, which is free where there are none
        book = codebook(name, levels=min(256, count + int(kept.all())))
        levels[parameter] = book.fit(weight.cpu(), kept)
        weight.copy_(levels[parameter].dequantize())
    return Pruned(model, evaluations=0, bits=mean_bits(levels.values()), layers=layer_bits(levels))


def _by_torch(run: Callable[[Case, nn.Module], None], case: Case) -> Pruned:
    model = case.copy()
    run(case, model)
    _, places = _places(case, model)
    for module, name in places:
        torch_prune.remove(module, name)
    return Pruned(model, evaluations=0)


def _places(case: Case, model: nn.Module) -> tuple[list[str], list[tuple[nn.Module, str]]]:
    """Return the names of the weights, and the modules that own them."""
    split = [name.rpartition(".") for name in case.weights]
    return list(case.weights), [(model.get_submodule(owner), own) for owner, _, own in split]


def _global(kind: type, case: Case, model: nn.Module) -> None:
    case.check_single_weights()
    torch_prune.global_unstructured(_places(case, model)[1], kind, amount=case.sparsity)


def _each(mask: Callable[..., nn.Module], case: Case, model: nn.Module) -> None:
    case.check_single_weights()
    for module, name in _places(case, model)[1]:
        mask(module, name, amount=case.sparsity)


def _channels(norm: int | None, case: Case, model: nn.Module) -> None:
    for module, name in _places(case, model)[1]:
        dim = output_dim(module)
        if norm is None:
            torch_prune.random_structured(module, name, case.sparsity, dim)
        else:
            torch_prune.ln_structured(module, name, case.sparsity, norm, dim)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            mask = getattr(module, f"{name}_mask")
            gone = ~mask.movedim(dim, 0).flatten(1).any(1)
            bias.data[gone] = 0
