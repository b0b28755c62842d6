"""`DEQuantConfig`: Directed Evolution's levels as a config of the host, checked where the host is silent."""
# The host evaluates the annotations of __init__: they must not be postponed.

import copy
import difflib
import inspect
import itertools
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from neural_compressor.common.base_config import BaseConfig, ComposableConfig, register_config
from neural_compressor.common.utils import DEFAULT_WHITE_LIST
from neural_compressor.torch.quantization.config import OperatorConfig, TorchBaseConfig
from torch import nn

from de_plugin.adapters.neural_compressor.composing import Composition
from de_plugin.adapters.neural_compressor.layers import Info, layer_info
from de_plugin.adapters.neural_compressor.resolving import (
    TUNED,
    ForeignError,
    check_white_list,
    escaped,
    is_plain,
    listed,
    resolved,
)
from de_plugin.adapters.neural_compressor.settings import BITS, SHARED, Choice, Settings, check_bits, same
from de_plugin.assess.divergence import Divergence
from de_plugin.assess.layers import PRUNABLE
from de_plugin.assess.teacher import Forward
from de_plugin.errors import ArgumentError

NAME = "de_quant"
"""What the host calls the algorithm, as in ``quantize(model, {"de_quant": {"bits": 4}})``."""

Mapping = OrderedDict[tuple[str, str], Any]

_DATA = ("batches", "teacher", "forward")


@register_config(framework_name="torch", algo_name=NAME, priority=85)
class DEQuantConfig(TorchBaseConfig):
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
        seed: int = 0,
        white_list: list[Any] | str | None = DEFAULT_WHITE_LIST,
        **kwargs: Any,
    ) -> None:
        for unknown in kwargs:
            near = difflib.get_close_matches(unknown, _parameters(), n=1, cutoff=0.3)
            raise ArgumentError(
                f"DEQuantConfig({unknown}=...): no such argument"
                + (f"; did you mean {near[0]}?" if near else f"; expected some of {', '.join(_parameters())}")
            )
        check_white_list(white_list)
        super().__init__(white_list=white_list)
        self.non_tunable_params = [n for n in _parameters() if n not in TUNED]
        self.dtype = dtype
        self.bits = bits
        self.group_size = group_size
        self.codebook = codebook
        self.granularity = granularity
        self.price = price
        self.bits_per_layer = bits_per_layer
        self.batches = batches
        self.teacher = teacher
        self.divergence = divergence
        self.forward = forward
        self.samples = samples
        self.weighting = weighting
        self.biases = biases
        self.recovery = recovery
        self.seed = seed
        self._info: Info | None = None
        self._fits: dict[Any, Any] | None = None
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
        Settings(**self.shared())
        super()._post_init()

    def _tried(self) -> tuple[Any, ...]:
        return self.bits, self.codebook, self.granularity, self.price

    # -- what the host reads ---------------------------------------------------------------------

    def get_params_dict(self) -> dict[str, Any]:
        """Return the arguments but the white list, by name."""
        return {name: getattr(self, name) for name in _parameters() if name != "white_list"}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; data, networks and functions are left out."""
        plain = {n: v for n, v in self.get_params_dict().items() if n not in _DATA and is_plain(v)}
        if not self.local_config:
            return plain
        result: dict[str, Any] = {"local": {n: c.to_dict() for n, c in self.local_config.items()}}
        return {**result, "global": plain} if self.global_config else result

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> "DEQuantConfig":
        """Return the config that `to_dict` was made of.

        Raises:
            ArgumentError: a key is none of the arguments, "global" or "local".
        """
        if not {"global", "local"} & set(config_dict):
            return cls(**config_dict)
        if strangers := sorted(set(config_dict) - {"global", "local"}):
            raise ArgumentError(f"{strangers[0]!r}: beside 'global' and 'local' there is no other key")
        whole = config_dict.get("global")
        config = cls(**whole) if whole is not None else cls(white_list=None)
        for name, values in (config_dict.get("local") or {}).items():
            config.set_local(name, cls(**values))
        return config

    @classmethod
    def from_json_file(cls, filename: str) -> "DEQuantConfig":
        """Return the config of a file that `to_json_file` has written."""
        return cls.from_dict(json.loads(Path(filename).read_text(encoding="utf-8")))

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
        """Return a config for each combination of what is listed."""
        names = [n for n in TUNED if isinstance(getattr(self, n), list)]
        given = {**self.get_params_dict(), "white_list": self.white_list}
        own = self.white_list if isinstance(self.white_list, list) else []
        result = []
        for values in itertools.product(*(getattr(self, n) for n in names)):
            config = type(self)(**{**given, **dict(zip(names, values, strict=True))})
            for key, local in self.local_config.items():
                if key not in own or not local._same_arguments(self):
                    config.local_config[key] = local
            result.append(config)
        return result

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

    # -- copies and comparisons ------------------------------------------------------------------

    def _same_arguments(self, other: "DEQuantConfig") -> bool:
        mine, theirs = self.get_params_dict(), other.get_params_dict()
        return all(same(value, theirs[name]) for name, value in mine.items())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DEQuantConfig):
            return False
        return (
            self._same_arguments(other)
            and list(self.local_config.items()) == list(other.local_config.items())
            and bool(self.global_config == other.global_config)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "DEQuantConfig":
        """Copy all but data, networks and levels, which are shared."""
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        kept = {*SHARED, "_fits", "_info"}
        for name, value in self.__dict__.items():
            result.__dict__[name] = value if name in kept else copy.deepcopy(value, memo)
        return result

    def __getattr__(self, name: str) -> Any:
        if name in ("use_sym", "quant_zero"):
            raise ForeignError(
                "DEQuantConfig beside TEQ or HQQ: the host's entries of those take every layer for theirs; "
                "quantize in two calls, each with a white_list"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def _parameters() -> list[str]:
    names = list(inspect.signature(DEQuantConfig.__init__).parameters)
    return [n for n in names if n not in ("self", "kwargs")]
