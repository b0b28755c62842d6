"""From a config and what it says of single layers to the config of each layer."""

from __future__ import annotations

from collections import OrderedDict
from numbers import Integral, Real
from typing import Any

from neural_compressor.common.utils import DEFAULT_WHITE_LIST

from de_plugin.adapters.neural_compressor.layers import Info, check_keys, matches
from de_plugin.adapters.neural_compressor.settings import DEFAULTS, SHARED, same
from de_plugin.errors import ArgumentError, SelectionError

TUNED = ("dtype", "bits", "codebook", "granularity", "price")
"""Arguments that may be lists where the host or the tuner chooses."""


class ForeignError(ArgumentError, AttributeError):
    """Another algorithm of the host takes this one's layers for its own."""


def resolved(config: Any, info: Info) -> OrderedDict[tuple[str, str], Any]:
    """Return each layer's config, complete and single-valued, in the model's order.

    A name or regular expression is stronger than a type, and the later of two than the earlier.

    Raises:
        SelectionError: a name or type means no layer, or nothing would be quantized.
        ArgumentError: a list stands where one value is needed.
    """
    own = config.white_list if isinstance(config.white_list, list) else []
    check_keys("white_list", own, info)
    check_keys("set_local", [k for k in config.local_config if k not in own], info)
    fixed = config.bits_per_layer or {}
    check_keys("bits_per_layer", fixed, info, exact=True)
    names = [name for name, _ in info]
    order = sorted(config.local_config, key=lambda k: isinstance(k, str))
    result: OrderedDict[tuple[str, str], Any] = OrderedDict()
    for name, kind in info:
        found = config.global_config
        for key in order:
            if matches(key, name, kind, names):
                found = config.local_config[key]
        if found is None and name in fixed:
            found = config
        if found is not None:
            result[name, kind] = _of_layer(config, found, fixed.get(name))
    if not any(x.dtype != "fp32" for x in result.values()):
        raise SelectionError(
            "DEQuantConfig: quantizes no layer; give a white_list, set_local or bits_per_layer that means "
            "one, and dtype='int'"
        )
    return result


def _of_layer(whole: Any, config: Any, bits: int | None) -> Any:
    """Return a layer's config; what concerns the whole network comes from `whole` where it is unset."""
    values = {**config.get_params_dict(), "bits_per_layer": None, "white_list": None}
    for name in SHARED:
        if same(values[name], DEFAULTS[name]):
            values[name] = getattr(whole, name)
    if bits is not None:
        values |= {"bits": bits, "dtype": "int"}
    for name in TUNED:
        if isinstance(values[name], list):
            if len(values[name]) != 1:
                raise ArgumentError(
                    f"{name}={values[name]!r}: a list is for autotune and tune; give one value here"
                )
            values[name] = values[name][0]
    result = type(whole)(**values)
    result._fits = whole._fits
    return result


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and a single value as a list."""
    return value if isinstance(value, list) else [value]


def plain_numbers(value: Any) -> Any:
    """Return Python's own numbers in place of those of arrays, in lists and dicts too."""
    if isinstance(value, list):
        return [plain_numbers(x) for x in value]
    if isinstance(value, dict):
        return {key: plain_numbers(x) for key, x in value.items()}
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def escaped(name: str) -> str:
    """Return a regular expression that is just this text."""
    return "".join(c if c.isalnum() or c == "_" else f"\\{c}" for c in name)


def is_plain(value: Any) -> bool:
    """Tell what JSON can hold."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(x) for key, x in value.items())
    return value is None or isinstance(value, str | int | float)


def check_white_list(value: Any) -> None:
    """Refuse what is no white list.

    Raises:
        ArgumentError: it is none.
    """
    listed_ = isinstance(value, list) and len(value) > 0 and all(isinstance(x, str | type) for x in value)
    if not (listed_ or value is None or (isinstance(value, str) and value == DEFAULT_WHITE_LIST)):
        raise ArgumentError(
            f"white_list={value!r}: expected '*', None, or a list of names, regular expressions and types, "
            "as in ['fc1', torch.nn.Conv2d]"
        )
