"""A small vision transformer for 28x28 grey images, written so that its heads and widths can be pruned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CLASSES = 10
_SIDE = 28


class Attention(nn.Module):
    """Self-attention with one projection to queries, keys and values, as timm has it.

    Attributes:
        num_heads: read at every call, so that a pruner that takes heads away can set it; the width of
            a head is what is left of ``qkv`` for it.
        scale: of the products of queries and keys; it stays when heads get narrower, so that a
            channel that is taken away is one that was zero.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = float((dim // num_heads) ** -0.5)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens (n, tokens, dim) of tokens of the same shape."""
        n, tokens = inputs.shape[0], inputs.shape[1]
        qkv = self.qkv(inputs).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        outputs: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, tokens, -1))
        return outputs


class TransformerBlock(nn.Module):
    """Attention, then two linear layers with GELU; each behind a layer norm and added to its input."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens (n, tokens, dim) of tokens of the same shape."""
        mixed = inputs + self.attn(self.norm1(inputs))
        outputs: Tensor = mixed + self.fc2(F.gelu(self.fc1(self.norm2(mixed))))
        return outputs


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., arXiv:2010.11929): no class token, a mean over all tokens."""

    def __init__(self, patch: int, dim: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, dim, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (_SIDE // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, num_heads, 4 * dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, _CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, 10) of inputs (n, 1, 28, 28)."""
        tokens = self.embed(inputs).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.fc(self.norm(self.blocks(tokens)).mean(1))
        return logits
