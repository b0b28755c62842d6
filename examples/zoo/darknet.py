"""Detectors of the Darknet family (YOLOv3, YOLOv3-tiny, YOLOv4-tiny) from their cfg and weights files."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from de_plugin.errors import ArgumentError, DataError

from .darknet_cfg import read_cfg
from .darknet_layers import Convolutional, Shortcut, Yolo
from .darknet_plan import Plan
from .darknet_weights import read_weights

_MAX_PARAMETERS = 1 << 28


def darknet(
    cfg: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    eps: float = 1e-5,
) -> Darknet:
    """A Darknet detector in eval mode on the CPU.

    Args:
        cfg: the file that describes the layers.
        weights: the file with the trained numbers; without it they are drawn (He et al., 2015), with
            batch-norm statistics 0 and 1 and outputs around 1, and the network knows nothing.
        seed: of the draw, 0 or more; None draws from torch's generator. Without effect on trained
            numbers.
        eps: added to the variances of batch norm. The C program adds 1e-5 where it runs on a GPU, on
            which such networks are trained; on a CPU it adds 1e-6 to the deviations instead, to
            which 1e-12 comes closest.

    Raises:
        ArgumentError: ``seed`` is below 0 or ``eps`` is not above 0.
        DataError: a file is missing or malformed, the two don't belong together, or the cfg alone
            asks for more than 268 million parameters.
    """
    if seed is not None and seed < 0:
        raise ArgumentError(f"seed is {seed}, expected 0 or more")
    if not eps > 0:
        raise ArgumentError(f"eps is {eps}, expected a number above 0, such as 1e-5")
    model = Darknet(cfg, eps)
    if weights is not None:
        read_weights([layer for layer in model.layers if isinstance(layer, Convolutional)], weights)
    else:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if parameters > _MAX_PARAMETERS:
            raise DataError(
                f"{cfg} asks for {parameters:,} parameters, expected at most {_MAX_PARAMETERS:,}: give its "
                "weights file as well, or a smaller network"
            )
        _draw(model, None if seed is None else torch.Generator().manual_seed(seed))
    return model.eval()


class Darknet(nn.Module):
    """The layers of a cfg file; its parameters take no memory before ``darknet`` fills them.

    Attributes:
        layers: one module a section, numbered as [route] and [shortcut] count them.
        sources: the layers that each layer reads; -1 is the images.
        channels: of the images.
        size: (height, width) of the images that the cfg names; multiples of the network's stride
            work as well.
        heads: how the outputs are to be read, in their order.

    Raises:
        DataError: the file is missing or describes no network; the message names line and section.
    """

    def __init__(self, cfg: str | os.PathLike[str], eps: float = 1e-5) -> None:
        super().__init__()
        sections = read_cfg(cfg)
        if not sections or sections[0].kind not in ("net", "network"):
            raise DataError(f"{cfg} doesn't start with the section [net]: give a Darknet cfg file")
        net = sections[0]
        self.channels = net.integer("channels", 3)
        self.size = (net.integer("height"), net.integer("width"))
        plan = Plan(self.channels, *self.size, eps)
        for section in sections[1:]:
            plan.add(section)
        self.layers = nn.ModuleList(plan.layers)
        self.sources = tuple(plan.sources)
        self.heads = tuple(layer.head for layer in self.layers if isinstance(layer, Yolo))
        if not self.heads:
            raise DataError(f"{cfg} has no section [yolo]: give the cfg of a detector of the YOLOv3 kind")
        self._outputs = tuple(index for index, layer in enumerate(self.layers) if isinstance(layer, Yolo))
        self._finished = self._last_readers()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Raw outputs, one tensor (n, heads[i].channels, h_i, w_i) a head, of images (n, channels, h, w).

        Images are from 0 to 1, red first. What no later layer reads is let go of at once.
        """
        kept = {-1: images}
        for index, (layer, sources) in enumerate(zip(self.layers, self.sources, strict=True)):
            kept[index] = layer(*[kept[source] for source in sources])
            for source in self._finished[index]:
                del kept[source]
        return tuple(kept[index] for index in self._outputs)

    def _last_readers(self) -> list[list[int]]:
        """For every layer, what nobody reads after it."""
        last = {index: index for index in range(len(self.layers))} | {-1: 0}
        for index, sources in enumerate(self.sources):
            last.update(dict.fromkeys(sources, index))
        finished: list[list[int]] = [[] for _ in self.layers]
        for source, reader in last.items():
            if source not in self._outputs:
                finished[reader].append(source)
        return finished


def _draw(model: Darknet, generator: torch.Generator | None) -> None:
    """New parameters on the CPU; what [shortcut] layers add is scaled, so that many don't blow it up."""
    pairs = list(zip(model.layers, model.sources, strict=True))
    added = {sources[0] for layer, sources in pairs if isinstance(layer, Shortcut)}
    for index, (layer, _) in enumerate(pairs):
        if isinstance(layer, Convolutional):
            layer.to_empty(device="cpu").draw(generator, len(added) ** -0.5 if index in added else 1.0)
