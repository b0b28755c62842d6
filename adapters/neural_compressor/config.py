"""`DEQuantConfig`: Directed Evolution's levels as a config of the host, checked where the host is silent."""
# The host evaluates the annotations of __init__: they must not be postponed.

import difflib
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

from neural_compressor.common.base_config import BaseConfig, ComposableConfig, register_config
from neural_compressor.common.utils import DEFAULT_WHITE_LIST
from neural_compressor.torch.quantization.config import OperatorConfig
from torch import nn

from de_plugin.adapters.neural_compressor.composing import Composition
from de_plugin.adapters.neural_compressor.described import Described
from de_plugin.adapters.neural_compressor.layers import Info, layer_info
from de_plugin.adapters.neural_compressor.resolving import (
    TUNED,
    check_white_list,
    escaped,
    listed,
    plain_numbers,
    resolved,
)
from de_plugin.adapters.neural_compressor.settings import BITS, SHARED, Choice, Settings, check_bits
from de_plugin.assess.divergence import Divergence
from de_plugin.assess.layers import PRUNABLE
from de_plugin.assess.teacher import Forward
from de_plugin.errors import ArgumentError
from de_plugin.quantize.rounding import Compensated

NAME = "de_quant"
"""What the host calls the algorithm, as in ``quantize(model, {"de_quant": {"bits": 4}})``."""

_COMBINATIONS = 10_000  # of what is listed, for the host's own loop

_INSTEAD = {
    "use_sym": "give codebook='uniform' for symmetric levels, 'affine' for others",
    "group_dim": "give granularity='channel' for levels of each output channel's own",
    "quant_lm_head": "the last layer is quantized like others; set_local('lm_head', "
    "DEQuantConfig(dtype='fp32')) leaves it alone",
}
"""What to give for arguments of the host's own configs, which resemble others of ours by chance."""

Mapping = OrderedDict[tuple[str, str], Any]


@register_config(framework_name="torch", algo_name=NAME, priority=85)
class DEQuantConfig(Described):
    """Levels for Linear, Conv, ConvTranspose, Embedding and attention weights; zeros stay exactly zero.

    Where the host expects lists (`autotune`), `dtype`, `bits`, `codebook`, `granularity` and `price` may be
    lists.
    What concerns the whole network (`batches` and all that is named below it) may stand in any of the
    configs that make up one, but not differently.

    Args:
        dtype: "int", or "fp32": the layer is left alone.
        bits: 2 to 8; at most ``2**bits`` levels, zero among them.
        group_size: -1; the host's statistics ask for it. Levels are shared as `granularity` says.
        codebook: "uniform", "affine", "power", "kmeans", "entropy" (which also zeroes weights), or "best":
            the one of the least divergence, or of the least squared error where there are no batches.
        granularity: "tensor", or "channel": each output channel has levels of its own.
        price: of a bit for "entropy", 1 being the optimum at high rates; more zeroes more weights.
        bits_per_layer: bits by exact layer name, before all other settings.
        batches: calibration data as for `de_plugin.prune`. Without it the inputs are used that the network
            sees in the host's `run_fn`, or between `prepare` and `convert`, if any.
        teacher: gives the answers in place of the network itself, such as the one before pruning.
        divergence: "kl", "js", "mse", "cosine", or a callable on (student outputs, teacher outputs).
        forward: ``fn(model, inputs) -> outputs`` for networks that need more than a call.
        samples: read at most so many.
        weighting: of errors: "auto", "fisher", "activations", "none".
        biases: bits of the layers' bias vectors, 2 to 8, or "exact".
        recovery: after levels are chosen: None, "bias", "batchnorm", "levels", "distill", or an object.
        rounding: "nearest": each weight gets its level alone; "compensated": the levels of a layer make good
            each other's errors, which needs batches, equal steps ("uniform"; "entropy" for a price) and one
            step a layer; or ``Compensated(samples=2000)``.
        seed: of every draw; the same seed gives the same levels.
        white_list: "*": all layers; or a list of names, regular expressions and module types. None: no
            layer by itself, for what is given to `set_local`.

    Raises:
        ArgumentError: a value cannot work, or a keyword is unknown.
    """

    name = NAME
    supported_configs: ClassVar[list[OperatorConfig]] = []

    # What the host's entry of RTN or GPTQ reads of whichever config comes last in a composition.
    use_layer_wise = False
    use_block_wise = False
    quant_lm_head = False
    model_path = ""

    def __init__(
        self,
        dtype: str | list[str] = "int",
        bits: int | list[int] = 4,
        group_size: int = -1,
        codebook: str | list[str] = "best",
        granularity: str | list[str] = "tensor",
        price: float | list[float] = 1.0,
        bits_per_layer: dict[str, int] | None = None,
        batches: Any = None,
        teacher: nn.Module | None = None,
        divergence: str | Divergence | Callable[[Any, Any], Any] = "kl",
        forward: Forward | None = None,
        samples: int = 1024,
        weighting: str = "auto",
        biases: int | str = "exact",
        recovery: Any = None,
        rounding: str | Compensated = "nearest",
        seed: int = 0,
        white_list: list[Any] | str | None = DEFAULT_WHITE_LIST,
        **kwargs: Any,
    ) -> None:
        for unknown in kwargs:
            near = difflib.get_close_matches(unknown, self.parameters(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(self.parameters())}"
            raise ArgumentError(
                f"DEQuantConfig({unknown}=...): no such argument; {_INSTEAD.get(unknown, hint)}"
            )
        check_white_list(white_list)
        super().__init__(white_list=white_list)
        self.non_tunable_params = [n for n in self.parameters() if n not in TUNED]
        self.dtype = dtype
        self.bits = plain_numbers(bits)
        self.group_size = group_size
        self.codebook = codebook
        self.granularity = granularity
        self.price = plain_numbers(price)
        self.bits_per_layer = plain_numbers(bits_per_layer)
        self.batches = batches
        self.teacher = teacher
        self.divergence = divergence
        self.forward = forward
        self.samples = plain_numbers(samples)
        self.weighting = weighting
        self.biases = plain_numbers(biases)
        self.recovery = recovery
        self.rounding = rounding
        self.seed = plain_numbers(seed)
        self._info: Info | None = None
        self._fits: Any = None
        self._post_init()

    def _post_init(self) -> None:
        """Check, then make the configs of all layers or of the white list, as the host does."""
        choices = [Choice(*values) for values in itertools.product(*map(listed, self._tried()))]
        if not choices:
            raise ArgumentError(f"{self._tried()}: an empty list; give at least one value")
        for dtype in listed(self.dtype):
            if dtype not in ("int", "fp32"):
                raise ArgumentError(f"dtype={dtype!r}: expected 'int', or 'fp32' for layers left alone")
        if isinstance(self.group_size, bool) or self.group_size != -1:
            raise ArgumentError(
                f"group_size={self.group_size!r}: expected -1; for levels of each channel's own give "
                "granularity='channel'"
            )
        if self.bits_per_layer is not None:
            if not isinstance(self.bits_per_layer, dict):
                raise ArgumentError(
                    f"bits_per_layer={self.bits_per_layer!r}: expected a dict of names to bits"
                )
            for layer, bits in self.bits_per_layer.items():
                check_bits(f"bits_per_layer[{layer!r}]", bits)
        settings = Settings(**self.shared())
        for choice in choices:
            settings.check_choice(choice)
        super()._post_init()

    def _tried(self) -> tuple[Any, ...]:
        return self.bits, self.codebook, self.granularity, self.price

    # -- what the host reads ---------------------------------------------------------------------

    @classmethod
    def register_supported_configs(cls) -> None:
        """Tell the host which values each type of layer takes."""
        config = cls(bits=list(BITS), granularity=["tensor", "channel"])
        cls.supported_configs = [OperatorConfig(config=config, operators=list(PRUNABLE))]

    @classmethod
    def get_config_set_for_tuning(cls) -> "DEQuantConfig":
        """Return what the host's `get_all_config_set` tries: all numbers of bits, fine ones first."""
        return cls(bits=list(reversed(BITS)))

    def expand(self) -> list["DEQuantConfig"]:
        """Return a config for each combination of what is listed, for all layers and for single ones.

        Those that would leave every layer alone are left out where there are others.

        Raises:
            ArgumentError: there are too many; `tune` needs no combinations.
        """
        wholes, locals_ = self._varied()
        count = len(wholes) * math.prod(map(len, locals_.values()))
        if count > _COMBINATIONS:
            raise ArgumentError(
                f"DEQuantConfig: its lists make {count:,} combinations, expected at most {_COMBINATIONS:,}; "
                "give shorter ones, or use tune or DETuner, which search among them"
            )
        result = self._combined(wholes, locals_)
        return [c for c in result if c._quantizes()] or result

    def _combined(
        self, wholes: list[dict[str, Any]], locals_: dict[Any, list["DEQuantConfig"]]
    ) -> list["DEQuantConfig"]:
        return [
            self._single(whole, dict(zip(locals_, chosen, strict=True)))
            for whole in wholes
            for chosen in itertools.product(*locals_.values())
        ]

    def _quantizes(self) -> bool:
        """Tell whether some layer may get levels; values are single ones."""
        own = [self.global_config, *self.local_config.values()]
        return bool(self.bits_per_layer) or any(c is not None and c.dtype != "fp32" for c in own)

    def spread(self) -> list["DEQuantConfig"]:
        """Return configs among which each layer meets all that is listed for it, not every combination."""
        wholes, locals_ = self._varied()
        return [
            self._single(
                wholes[min(n, len(wholes) - 1)],
                {key: own[min(n, len(own) - 1)] for key, own in locals_.items()},
            )
            for n in range(max([len(wholes), *map(len, locals_.values())]))
        ]

    def _varied(self) -> tuple[list[dict[str, Any]], dict[Any, list["DEQuantConfig"]]]:
        """Return the single values for all layers, and the configs of single ones that are their own."""
        names = [n for n in TUNED if isinstance(getattr(self, n), list)]
        own = self.white_list if isinstance(self.white_list, list) else []
        locals_ = {
            key: local._combined(*local._varied())
            if any(isinstance(getattr(local, n), list) for n in TUNED)
            else [local]
            for key, local in self.local_config.items()
            if key not in own or not local._same_arguments(self)
        }
        combined = itertools.product(*(getattr(self, n) for n in names))
        return [dict(zip(names, values, strict=True)) for values in combined], locals_

    def _single(self, values: dict[str, Any], locals_: dict[Any, "DEQuantConfig"]) -> "DEQuantConfig":
        """Return this config with other values, and with configs of their own for single layers."""
        config = type(self)(**{**self.get_params_dict(), "white_list": self.white_list, **values})
        config.local_config = {
            key: locals_[key] if key in locals_ else config.local_config[key] for key in self.local_config
        }  # in the order in which they count
        return config

    def set_local(self, operator_name_or_list: Any, config: BaseConfig) -> "DEQuantConfig":
        """Give layers a config of their own, before what holds for all.

        Args:
            operator_name_or_list: a layer's name, which means this one alone; a regular expression that
                names begin with; a module type; or a list of these. What means no layer is refused
                when the model is known.
            config: theirs.

        Raises:
            ArgumentError: the config belongs to another algorithm.
        """
        if not isinstance(config, DEQuantConfig):
            raise ArgumentError(
                f"set_local(..., {type(config).__name__}): expected a DEQuantConfig; add configs of other "
                "algorithms: DEQuantConfig(white_list=[...]) + RTNConfig(white_list=[...])"
            )
        given = operator_name_or_list
        for key in given if isinstance(given, list) else [given]:
            self.local_config.pop(key, None)  # the later of two counts, and this is the latest now
            self.local_config[key] = config
        return self

    def get_model_info(self, model: nn.Module, *args: Any, **kwargs: Any) -> Info:
        """Return names and types of the layers that can be quantized; check what this config says of them.

        Raises:
            SelectionError: a name or type means no layer, or nothing would be quantized.
            ArgumentError: a list stands where one value is needed.
        """
        info = layer_info(model)
        self.resolved(info)
        self._info = info
        return info

    def to_config_mapping(
        self, config_list: list[BaseConfig] | None = None, model_info: Info | None = None
    ) -> Mapping:
        """Return the config of each layer, by name and type."""
        info = model_info if model_info is not None else self._info
        if info is None:
            raise ArgumentError("model_info: expected what get_model_info(model) returns")
        return self.resolved(info)

    def _get_op_name_op_type_config(self) -> tuple[dict[str, Any], dict[Any, Any]]:
        """Return every layer's config by its exact name: the host's compositions know no other way."""
        if self._info is None:
            found: tuple[dict[str, Any], dict[Any, Any]] = super()._get_op_name_op_type_config()
            return found
        return {}, {f"{escaped(name)}$": c for (name, _), c in self.resolved(self._info).items()}

    def __add__(self, other: BaseConfig) -> BaseConfig:
        if isinstance(other, ComposableConfig):
            return Composition([self, *other.config_list])
        if not isinstance(other, DEQuantConfig):
            return Composition([self, other])
        if other == self or not other.local_config:
            raise ArgumentError(
                "DEQuantConfig + DEQuantConfig: the second would replace the first, or it was read twice "
                "(the host sees the first alone of a dict of several algorithms); give it a white_list, and "
                "add configs of several algorithms: DEQuantConfig(...) + RTNConfig(...)"
            )
        if other.global_config is not None or other.bits_per_layer is not None:
            raise ArgumentError(
                "DEQuantConfig + DEQuantConfig: the second holds for all layers too, or has bits_per_layer, "
                "which the first would lose; give it a white_list, and bits_per_layer to the first"
            )
        for key, config in other.local_config.items():
            self.set_local(key, config)
        return self

    # -- what is asked ---------------------------------------------------------------------------

    def resolved(self, info: Info) -> Mapping:
        """Return each layer's config, complete and single-valued, in the model's order.

        Raises:
            SelectionError: a name or type means no layer, or nothing would be quantized.
            ArgumentError: a list stands where one value is needed.
        """
        return resolved(self, info)

    @property
    def choice(self) -> Choice:
        """What is asked of one layer.

        Raises:
            ArgumentError: there are lists.
        """
        return Choice(*self._tried())

    def shared(self) -> dict[str, Any]:
        """Return what concerns the whole network, by name."""
        return {name: getattr(self, name) for name in SHARED}
