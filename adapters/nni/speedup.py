"""NNI's ModelSpeedup on current torch: the pruned channels leave the model, its outputs stay."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from de_plugin.adapters.nni.alignment import (
    HALF,
    Checked,
    Masks,
    align,
    arguments,
    checked,
    names_of,
    positive,
    replace,
)
from de_plugin.adapters.nni.student import unwrapped
from de_plugin.adapters.nni.tracing import located, stuck, traced
from de_plugin.errors import DEWarning, MissingDependencyError, StructureError

try:
    with warnings.catch_warnings():  # the host registers types with torch that torch already knows
        warnings.simplefilter("ignore")
        from nni.compression.speedup import ModelSpeedup
        from nni.compression.speedup.replacement import replace_module as known
        from nni.compression.speedup.replacer import Replacer
except ImportError as missing:
    raise MissingDependencyError(f"speedup needs {missing.name}: pip install 'de_plugin[nni]'") from missing

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_EXCLUDE = "exclude the layers before it from pruning (exclude_op_names)"


def speedup(model: nn.Module, masks: Masks, example: Any) -> nn.Module:
    """Return a smaller model without the pruned channels, with the outputs of the masked one.

    The masked model is that of :func:`de_plugin.adapters.nni.alignment.aligned`: in eval mode the outputs
    of both agree to 1e-5. Works on a copy; the model given, its wrappers and masks stay as they are. Channels
    that the structure cannot lose (the two branches of a sum are masked differently, the groups of a
    convolution would differ in size) are kept, as zeros.

    Args:
        model: wrapped by NNI or not; any device and floating dtype.
        masks: ``{module: {"weight": mask, "bias": mask or None}}`` as from the pruner's ``compress()``.
        example: input of one forward pass: a tensor, a tuple of arguments or a dict of them; the batch is
            the first dimension, of at least one sample.

    Warns:
        DEWarning: the outputs differ more than that on the example, because a pruned channel passes a
            layer that makes something else of zeros (sigmoid, group and layer norm).

    Raises:
        ArgumentError: the masks or the example do not belong to the model, or it cannot be unwrapped.
        StructureError: the model cannot be traced, or a layer cannot be made smaller, or the masks remove
            outputs of the model; the message names the module or the operator.
    """
    with torch.inference_mode(False), torch.enable_grad():
        reference = unwrapped(model)
        given = checked(reference, masks)
        inputs = arguments(reference, example)
        mode = {n: m.training for n, m in reference.named_modules()}
        reference.eval()
        twin = positive(reference)
        graph = traced(twin, len(inputs))
        _hand_on(graph, given)
        with located(twin, "the forward pass on the example fails", "Give an example that the model takes"):
            align(reference, given, twin, inputs)
        small = unwrapped(reference)
        with _setting(small):
            _shrink(small, graph, given, inputs)
        _compare(reference, small, inputs)
        if _size(small) == _size(reference):
            warnings.warn(
                "speedup: nothing became smaller. The masks empty no whole channel, or only channels that "
                "the structure cannot lose: mask all layers that meet in a sum alike (dependency_group_id) "
                "and as many channels in each group of a convolution",
                DEWarning,
                stacklevel=2,
            )
        for name, module in small.named_modules():
            module.training = mode.get(name, model.training)
        return small


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class _Speedup(ModelSpeedup):
    """The host's, for layers of one output too, and with its conflicts resolved until none is left."""

    masks: Checked

    def tensor_propagate_check(self, obj: Tensor) -> bool:
        return bool(obj.numel() >= self.batch_size and obj.numel() % self.batch_size == 0)

    def fix_mask_conflict(self) -> None:
        """Give back the channels that the structure cannot lose.

        The host asks for outputs or for inputs, whichever the masks have emptied more of, and takes single
        weights for either: so it gets emptied outputs and emptied inputs one after the other, and no more.
        Once sizes are inferred (its second call) the masks count no more.
        """
        if self.node_infos and any(i.param_masks is not None for i in self.node_infos.values()):
            return
        whole = self.masks
        outputs = {n: {t: _lines(m, 0) for t, m in ts.items()} for n, ts in whole.items()}
        inputs = {n: {t: _lines(m, 1) for t, m in ts.items() if m.dim() > 1} for n, ts in whole.items()}
        for self.masks in (outputs, {n: ts for n, ts in inputs.items() if ts}):
            before = -1.0
            while self.masks and (kept := _kept(self.masks)) != before:  # each round only gives back
                before = kept
                super().fix_mask_conflict()
        for name, targets in whole.items():
            for target in targets:
                both = [part[name][target] for part in (outputs, inputs) if target in part[name]]
                targets[target] = torch.stack(both).amin(0)
        self.masks = whole


def _lines(mask: Tensor, dim: int) -> Tensor:
    """Ones, but for the lines along a dimension that are all zero."""
    others = [d for d in range(mask.dim()) if d != dim]
    alive = mask.amax(others, keepdim=True) if others else mask
    return alive.expand_as(mask).clone()


def _lost(mask: Tensor) -> list[int]:
    """Return which channels, along the dimension behind the batch, are masked whole."""
    alive = (
        (mask != 0).transpose(0, min(1, mask.dim() - 1)).flatten(1) if mask.dim() > 1 else mask[:, None] != 0
    )
    return [i for i, kept in enumerate(alive.any(1).tolist()) if not kept]


def _kept(masks: Checked) -> float:
    return float(sum(m.sum(dtype=torch.float64) for t in masks.values() for m in t.values()))


class _Untouched(Replacer):
    """Leaves the layers that have no size, or lose nothing, as they are; refuses the others."""

    def replace_modules(self, speedup: Any) -> None:
        calls: dict[str, list[list[int]]] = {}
        for node, info in speedup.node_infos.items():
            if node.op != "call_module":
                continue
            module = speedup.bound_model.get_submodule(node.target)
            around = [speedup.node_infos[n].output_masks for n in node.all_input_nodes]
            seen = tree_leaves([around, info.output_masks])
            lost = [_lost(m) for m in seen if isinstance(m, Tensor)]
            if calls.setdefault(node.target, lost) != lost:
                raise StructureError(
                    f"{node.target} ({type(module).__name__}): is called several times, and other channels "
                    "are pruned around each call; mask the layers before its calls and itself alike, or none"
                )
            if type(module).__name__ in known:
                continue
            sized = next(module.parameters(), None) is not None or next(module.buffers(), None) is not None
            if sized and any(isinstance(m, Tensor) and bool((m == 0).any()) for m in seen):
                raise StructureError(
                    f"{node.target} ({type(module).__name__}): NNI cannot make this kind of layer smaller, "
                    f"and pruned channels reach it; {_EXCLUDE}"
                )
            info.replaced = True


def _shrink(model: nn.Module, graph: GraphModule, masks: Checked, inputs: tuple[Any, ...]) -> None:
    names = names_of(model)
    old = dict(model.named_modules())
    lively = tuple(
        x.float() if isinstance(x, Tensor) and x.dtype in HALF else x for x in inputs
    )  # as the graph's twin
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            host = _Speedup(
                model,
                lively,
                masks,
                graph_module=graph,
                customized_replacers=[_Untouched()],
                logger=logging.getLogger(__name__),
            )
            host.speedup_model()
    except StructureError:
        raise
    except Exception as error:
        where, module = stuck(error, graph)
        if isinstance(module, nn.RNNBase):
            raise StructureError(
                f"{where}: NNI cannot make this kind of layer smaller, nor what it is given; {_EXCLUDE}"
            ) from error
        raise StructureError(
            f"{where}: NNI cannot take the pruned channels out here "
            f"({type(error).__name__}{': ' * bool(str(error))}{error}); keep at least one channel of each "
            "layer and as many in each group, or exclude the layer from pruning"
        ) from error
    for name, before in old.items():
        after = model.get_submodule(name) if name else model
        if after is not before:
            _inherit(before, after)
            replace(model, names[id(before)], after)


def _inherit(before: nn.Module, after: nn.Module) -> None:
    """Give a replaced layer what the host forgets of the old one."""
    some = next(before.parameters(), None)
    if some is not None:
        after.to(some.device, some.dtype)
    else:
        after.to(next((b.device for b in before.buffers()), torch.device("cpu")))
    old = {**dict(before.named_parameters()), **dict(before.named_buffers())}
    for name, parameter in after.named_parameters():
        parameter.requires_grad_(old[name].requires_grad)
    for name, buffer in after.named_buffers():
        if buffer.shape == old[name].shape:
            buffer.copy_(old[name])


def _hand_on(graph: GraphModule, masks: Checked) -> None:
    """Mask the layer before a masked batch norm too, where nothing else sees its outputs."""
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        mask = masks.get(str(node.target), {}).get("weight")
        before = node.args[0] if node.args else None
        if not isinstance(module, _BatchNorm) or mask is None or not isinstance(before, Node):
            continue
        name = str(before.target)
        layer = modules.get(name) if before.op == "call_module" else None
        if not isinstance(layer, _LAYERS) or len(before.users) > 1:
            continue
        targets = masks.setdefault(name, {})
        weight = targets.setdefault("weight", torch.ones_like(layer.weight, dtype=torch.float32))
        weight[mask == 0] = 0


@contextmanager
def _setting(model: nn.Module) -> Iterator[None]:
    """Let the host draw and create as the model needs it, silently; all that was changed comes back."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    default = torch.get_default_dtype()
    log = logging.getLogger("nni")
    level = log.level
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        try:
            log.setLevel(logging.ERROR)
            torch.set_default_dtype(default if first is None else first.dtype)
            yield
        finally:
            log.setLevel(level)
            torch.set_default_dtype(default)


_SMALLER = (
    "A size that its forward counts on is smaller now: write none out (flatten(1) in place of "
    "view(-1, 256)), or exclude the layers that give it from pruning (exclude_op_names)"
)


@torch.no_grad()
def _compare(reference: nn.Module, small: nn.Module, inputs: tuple[Any, ...]) -> None:
    small.eval()
    with located(small, "the forward pass of the smaller model fails", _SMALLER):
        got = [x for x in tree_leaves(small(*inputs)) if isinstance(x, Tensor)]
    expected = [x for x in tree_leaves(reference(*inputs)) if isinstance(x, Tensor)]
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            raise StructureError(
                f"masks: they remove outputs of the model, {tuple(a.shape)} would become {tuple(b.shape)}; "
                "exclude its last layer from pruning (exclude_op_names)"
            )
        if a.is_floating_point() and a.numel():
            exact = 1e-5 if a.dtype in (torch.float32, torch.float64) else 2e-2
            scale = max(1.0, float(a.abs().max()))
            worst = max(worst, float((a - b).abs().max()) / scale / exact * 1e-5)
    if worst > 1e-5:
        odd = [f"{n} ({type(m).__name__})" for n, m in reference.named_modules() if _makes_of_zero(m)]
        warnings.warn(
            f"speedup: masked and smaller model differ by {worst:.2g} of the largest output. A pruned "
            "channel passes something that turns zeros into other values "
            f"({', '.join(odd) or 'a function in forward'}); "
            "exclude the layers before it from pruning, or fine-tune the smaller model",
            DEWarning,
            stacklevel=3,
        )


def _makes_of_zero(module: nn.Module) -> bool:
    kinds = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, nn.Softmax, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, kinds)
