"""Configs of several algorithms for one model, each with its own layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from neural_compressor.common.base_config import BaseConfig, ComposableConfig

from de_plugin.adapters.neural_compressor.layers import check_keys
from de_plugin.errors import ArgumentError, SelectionError

_LEAKED = ("use_layer_wise", "use_block_wise", "model_path", "quant_lm_head")
"""What the host's entries of RTN and GPTQ read from the last config, whosever it is."""

_WHOLE = ("static_quant", "pt2e_dynamic_quant", "smooth_quant")
"""Algorithms of the host that take a whole model, traced or exported, and tell none of its layers."""


class Composition(ComposableConfig):
    """A config of Directed Evolution and what was added to it.

    Unlike the host's own, it knows white lists of types and configs that hold for all layers. Where two
    want a layer, the later one gets it.

    Raises:
        ArgumentError: one of the host's algorithms takes whole models.
    """

    def __init__(self, configs: Sequence[BaseConfig]) -> None:
        for config in configs:
            if config.name in _WHOLE:
                raise ArgumentError(
                    f"DEQuantConfig beside {type(config).__name__}: the host gives {config.name} a whole "
                    "model and cannot leave layers to others; quantize in two calls, DEQuantConfig first"
                )
        super().__init__(list(configs))

    def __add__(self, other: BaseConfig) -> Composition:
        """Return a composition of all; the host's own would change this one."""
        more = other.config_list if isinstance(other, ComposableConfig) else [other]
        return Composition([*self.config_list, *more])

    def to_config_mapping(
        self, config_list: list[BaseConfig] | None = None, model_info: dict[str, Any] | None = None
    ) -> OrderedDict[tuple[str, str], BaseConfig]:
        """Return the config of each layer, Directed Evolution's first.

        Raises:
            SelectionError: one of the configs is left without a layer, or names one that there is not.
        """
        found: OrderedDict[tuple[str, str], BaseConfig] = OrderedDict()
        for config in self.config_list:
            info = (model_info or {})[config.name]
            own = config.white_list if isinstance(config.white_list, list) else []
            check_keys(f"{type(config).__name__}: white_list", own, info)
            found.update(config.to_config_mapping(model_info=info))
        for config in self.config_list:
            if not any(x.name == config.name and getattr(x, "dtype", "") != "fp32" for x in found.values()):
                raise SelectionError(
                    f"{type(config).__name__}: is left with no layer of this composition; give it a "
                    "white_list and one to the configs after it"
                )
        first = self.config_list[0].name
        order = {
            key: -1 if x.name == first else sum(hasattr(x, n) for n in _LEAKED) for key, x in found.items()
        }
        return OrderedDict(sorted(found.items(), key=lambda item: order[item[0]]))
