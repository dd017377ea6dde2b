"""Hosts that keep something apart: later tokens, padding, what a cache holds, the examples of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, TIME, WIDTH = 16, 12, 16


def tokens(n: int = 2, time: int = TIME, seed: int = 0) -> Tensor:
    return torch.randint(1, TOKENS, (n, time), generator=torch.Generator().manual_seed(seed))


class CausalBlock(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.convolution(F.pad(x, (2 * self.dilation, 0))))


class CausalConvolutions(nn.Module):
    """A temporal convolutional network over tokens; logits ``[batch, classes, time]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.Sequential(CausalBlock(1), CausalBlock(2))
        self.head = nn.Conv1d(WIDTH, TOKENS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x).transpose(1, 2)))


class AttentionBlock(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (each.unsqueeze(1) for each in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal).squeeze(1))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A language model; its output projections start at zero, as is usual. Logits ``[batch, time, classes]``."""

    def __init__(self, flat: bool = False, last: bool = False) -> None:
        super().__init__()
        self.flat, self.last = flat, last
        self.embed, self.place = nn.Embedding(TOKENS, WIDTH), nn.Embedding(TIME, WIDTH)
        self.blocks = nn.ModuleList(AttentionBlock(causal=True) for _ in range(2))
        self.head = nn.Linear(WIDTH, TOKENS)
        for block in self.blocks:
            nn.init.zeros_(block.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits = self.head(h)
        if self.last:
            return logits[:, -1]
        return logits.flatten(0, 1) if self.flat else logits


class Masked(nn.Module):
    """An encoder over tokens that are padded where ``attention_mask`` is 0 (or where the token is 0), pooled or not."""

    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        self.pooled = pooled
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(AttentionBlock(causal=False) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        real = x != 0 if attention_mask is None else attention_mask.bool()
        h = self.embed(x)
        for block in self.blocks:
            h = block(h, real[:, None, None, :])
        if not self.pooled:
            return self.head(h)
        h = h.masked_fill(~real[..., None], 0.0)
        return self.head(h.sum(1) / real.sum(1, keepdim=True))


class Pixels(nn.Module):
    """Pointwise convolutions that end in a map, so that every pixel is on its own; or in a pool."""

    def __init__(self, kernel: int = 1, pooled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(i, 8, kernel, padding=kernel // 2), nn.BatchNorm2d(8), nn.ReLU()) for i in (1, 8))
        )
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.blocks(x))
        return out.amax((2, 3)) if self.pooled else out


class Centred(nn.Module):
    """Looks at each example beside the others of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Autoregressive(nn.Module):
    """Output i depends on inputs before i alone, by masked weights (MADE)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 6)
        degree, order = torch.arange(20) % 5, torch.arange(6)
        self.register_buffer("into", (degree[:, None] >= order).float())
        self.register_buffer("out", (order[:, None] > degree).float())

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(F.linear(x, self.first.weight * self.into, self.first.bias))
        return F.linear(h, self.last.weight * self.out, self.last.bias)


class Recurrent(nn.Module):
    """A language model that can be run step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(TOKENS, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.middle, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, TOKENS)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, state = self.cell(self.embed(x), state)
        return self.head(self.middle(h)), state


def llama(use_cache: bool = True) -> Any:
    """A Llama of Hugging Face with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=TOKENS,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
            use_cache=use_cache,
        )
    )
