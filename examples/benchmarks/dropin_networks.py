"""What `dropin.py` prunes: each network with its data, accuracy, divergence, loss, and what no host may cut.

Image networks answer with logits of classes: the divergence is KL(teacher || student) of their softmax in
nats, accuracy is on all test images. CREPE answers with 360 sigmoids around the pitch, which are normalised
to a distribution over bins: its divergence is the KL of these, in nats a frame (that of 360 independent
Bernoulli distributions was tried first; it is lowest where the network says little of any bin, whatever
pitch is found). Its accuracy is the share of test frames whose pitch is found within 50 cents, the same
tones for all seeds and none of those that choose. Its labels are the true bins, and the host's criteria
that use labels get its training loss: the binary cross-entropy to a Gaussian of 25 cents around the true
bin (arXiv:1802.06182, 2). MiniLM answers with embeddings of sentences of at most 32 word pieces: divergence
and loss are 1 - their cosine with the intact network's, a mean over sentences, and its accuracy is that
cosine in percent; its embedding tables stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from de_plugin import KL, Cosine, DirectedEvolution
from de_plugin.assess.divergence import Divergence
from de_plugin.zoo import DATA, Dataset, crepe, found_pitch, minilm, sentences, teacher, token_ids, tones

IMAGES = ("lenet300", "lenet5", "resnet", "vit")
"""Networks that take every image set."""
OTHERS = {"crepe": "tones", "minilm": "sentences"}
"""Networks that take data of their own, and what it is called."""
NETWORKS = (*IMAGES, *OTHERS)
"""All that can be asked for."""
QUANTIZED = ("minilm",)
"""Networks that no host here can prune."""
SAMPLES = {**dict.fromkeys(IMAGES, 2000), "crepe": 256, "minilm": 64}
"""For the choice of what goes, where no other number is given."""
MARGIN, MINILM_MARGIN = 0.1, 0.75
"""How much of another's divergence a search for levels may cause, see `Case.margin`."""
CENTS_A_BIN = 20.0
_TEST_FRAMES = 500
_TEST_SENTENCES, _HELD_OUT_SENTENCES, _LONGEST = 256, 256, 32


@dataclass(frozen=True, eq=False)
class Case:
    """A network, and all that hosts and measurements need to know about it.

    Attributes:
        name: of the network.
        data: of the data.
        model: intact, in eval mode.
        inputs: for the choice of what goes, ``(samples, ...)``.
        labels: their classes, int64, or the intact model's outputs where there are no classes.
        test_inputs: for what is told at the end.
        test_labels: the same for them.
        right: which of the model's outputs on them are right, or how right each is.
        divergence: between the outputs of the pruned and the intact model.
        losses: ``fn(outputs, labels) -> (samples,)`` for criteria that use labels.
        ignored: layers that keep all their outputs.
        heads: attention heads by the name of the layer that makes queries, keys and values.
        sums: layers whose outputs are added to one another, so that they lose the same channels.
        norms: the layer that each batch norm follows, by its name.
        masked: layers that lose outputs where the host can only mask.
        held_out: none of the inputs for the choice and the test; None: those of the image set that the seed
            draws next.
        levels: what a search for levels may choose from, options of `DEQuantConfig`; empty: the usual.
        margin: how much of another's divergence on held-out data a search for levels may cause, to have no
            more loss on the test data. Far below 1 where labels make the loss: rounding moves the intact
            network's loss up or down.
        search: what Directed Evolution prunes by.
    """

    name: str
    data: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    right: Callable[[Tensor], Tensor]
    divergence: Divergence
    losses: Callable[[Tensor, Tensor], Tensor]
    ignored: tuple[str, ...]
    masked: tuple[str, ...]
    heads: dict[str, int] = field(default_factory=dict)
    sums: tuple[tuple[str, ...], ...] = ()
    norms: dict[str, str] = field(default_factory=dict)
    held_out: Tensor | None = None
    levels: dict[str, Any] = field(default_factory=dict)
    margin: float = MARGIN
    search: DirectedEvolution = field(default_factory=DirectedEvolution.brief)

    @cached_property
    def intact(self) -> Tensor:
        """The model's outputs on the test data."""
        return self._outputs(self.model)

    def measured(self, pruned: nn.Module) -> dict[str, float]:
        """Return loss, divergence and accuracy, in percent, of a changed model on the test data."""
        outputs = self._outputs(pruned)
        return {
            "loss": float(self.losses(outputs, self.test_labels).double().mean()),
            "divergence": float(self.divergence(outputs, self.intact, None)),
            "accuracy": 100.0 * float(self.right(outputs).double().mean()),
        }

    def _outputs(self, model: nn.Module) -> Tensor:
        model.eval()
        with torch.no_grad():
            return torch.cat([model(x) for x in self.test_inputs.split(250)])


def case(name: str, data: str, samples: int | None, seed: int) -> Case:
    """Return a network with data for one run; the seed chooses the samples.

    Args:
        name: one of ``NETWORKS``.
        data: one of the zoo's image sets; without effect on CREPE and MiniLM, which have their own.
        samples: for the choice of what goes; None: 2,000 images, 256 frames, 64 sentences.
        seed: 0 or more.
    """
    count = samples or SAMPLES[name]
    if name in OTHERS:
        return {"crepe": _crepe, "minilm": _minilm}[name](count, seed)
    return _images(name, data, count, seed)


_SETS: dict[str, Dataset] = {}


def _images(name: str, data: str, samples: int, seed: int) -> Case:
    if data not in _SETS:
        _SETS[data] = DATA[data]()
    images = _SETS[data]
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images.train_inputs), generator=draw)[:samples]
    model: Any = teacher(name, images).eval()
    facts: dict[str, Any] = {
        "lenet300": {"ignored": ("fc3",), "masked": ("fc1", "fc2")},
        "lenet5": {"ignored": ("fc2",), "masked": ("conv1", "conv2", "fc1")},
        "resnet": {"ignored": ("fc",), **_residual()},
        "vit": {
            "ignored": ("fc",),
            "heads": {n: m.num_heads for n, m in _attention(model)},
            "masked": tuple(n for n, _ in model.named_modules() if n.endswith("fc1")),
        },
    }[name]
    return Case(
        name=name,
        data=data,
        model=model,
        inputs=images.train_inputs[order],
        labels=images.train_labels[order],
        test_inputs=images.test_inputs,
        test_labels=images.test_labels,
        right=lambda outputs: outputs.argmax(1) == images.test_labels,
        divergence=KL(),
        losses=lambda outputs, labels: F.cross_entropy(outputs, labels, reduction="none"),
        **facts,
    )


def _attention(model: nn.Module) -> list[tuple[str, Any]]:
    return [(f"{n}.qkv", m) for n, m in model.named_modules() if hasattr(m, "num_heads")]


def _residual() -> dict[str, Any]:
    """Return which layers of the residual network meet in a sum, and which norm follows which layer."""
    blocks = [f"block{n}" for n in (1, 2, 3, 4)]
    norms = {"norm": "conv"}
    for block in blocks:
        norms |= {f"{block}.norm{n}": f"{block}.conv{n}" for n in (1, 2)}
    norms |= {f"{block}.shortcut.1": f"{block}.shortcut.0" for block in ("block2", "block4")}
    return {
        "sums": (
            ("conv", "block1.conv2"),
            ("block2.conv2", "block2.shortcut.0", "block3.conv2"),
            ("block4.conv2", "block4.shortcut.0"),
        ),
        "norms": norms,
        "masked": tuple(norms.values()),
    }


def _crepe(samples: int, seed: int) -> Case:
    model = crepe()
    train, test = tones(samples, seed=seed + 1), tones(_TEST_FRAMES, seed=0)
    convolutions = [f"convs.{n}" for n in range(6)]
    bins = torch.arange(360) * CENTS_A_BIN

    def losses(outputs: Tensor, labels: Tensor) -> Tensor:
        away = (bins.to(outputs.device) - CENTS_A_BIN * labels[:, None]) / 25
        targets = (-away.square() / 2).exp()
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1)

    return Case(
        name="crepe",
        data="tones",
        model=model,
        inputs=train.frames,
        labels=train.bins,
        test_inputs=test.frames,
        test_labels=test.bins,
        right=lambda outputs: (found_pitch(outputs) - test.cents).abs() <= 50,
        divergence=KL(logits=F.logsigmoid),
        losses=losses,
        ignored=("classifier",),
        masked=tuple(convolutions),
        norms={f"norms.{n}": name for n, name in enumerate(convolutions)},
    )


def _minilm(samples: int, seed: int) -> Case:
    model = minilm()
    texts = sentences()
    order = torch.randperm(len(texts.calibration), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [texts.calibration[n] for n in order[: samples + _HELD_OUT_SENTENCES]]
    ids, test_ids = token_ids(drawn, _LONGEST), token_ids(texts.evaluation[:_TEST_SENTENCES], _LONGEST)
    with torch.no_grad():
        known, test_known = model(ids[:samples]), model(test_ids)

    def losses(outputs: Tensor, labels: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(outputs, labels)

    return Case(
        name="minilm",
        data="sentences",
        model=model,
        inputs=ids[:samples],
        labels=known,
        test_inputs=test_ids,
        test_labels=test_known,
        right=lambda outputs: F.cosine_similarity(outputs, test_known),
        divergence=Cosine(),
        losses=losses,
        ignored=(),
        masked=(),
        held_out=ids[samples:],
        levels={"bits": [3, 4, 5, 6], "codebook": "entropy", "price": 0.25},  # each costs a pass a layer
        margin=MINILM_MARGIN,  # its loss is its divergence
    )


def size(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Return multiplications a sample, those of attention too, and parameters."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(example[:1])
    parameters = sum(p.numel() for p in model.parameters())
    return {"macs": counter.get_total_flops() // 2, "params": parameters}
