"""Models as nobody's package has them: shared parts, dead outputs, containers, weights that are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class LastState(nn.Module):
    """Reads the state that a recurrent layer ends in, and drops what it said on the way."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(8, 16, 2, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = self.rnn(x)[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


class LastStep(nn.Module):
    """A recurrent classifier; time comes first inside, and it may look both ways."""

    def __init__(self, both_ways: bool = False) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, bidirectional=both_ways)
        self.head = nn.Linear(32 if both_ways else 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.transpose(0, 1))[0].mean(0))


class Cells(nn.Module):
    """A cell that is called once for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


def dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU())


class Siamese(nn.Module):
    """Compares two views by one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(dense(8, 16), dense(16, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.encoder(x[:, 0]) - self.encoder(x[:, 1])).abs())


class Repeated(nn.Module):
    """One block, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(8, 16), dense(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(3):
            h = h + self.block(h)
        return self.head(h)


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Skip connections from the way down to the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([convolutions(1, 8), convolutions(8, 16)])
        self.middle = convolutions(16, 16)
        self.up = nn.ModuleList([convolutions(32, 16), convolutions(24, 8)])
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2), kept.pop()], 1))
        return self.out(x)


class Detector(nn.Module):
    """Gives boxes and classes by name, for several scales."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(convolutions(1, 8), nn.MaxPool2d(2), convolutions(8, 8), nn.MaxPool2d(2))
        self.classes, self.boxes = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = self.body(x)
        return {"classes": self.classes(h), "boxes": [self.boxes(h)], "scales": 1}


@dataclass
class Said:
    """What a block says."""

    logits: Tensor
    hidden: Tensor


class SaysMore(nn.Module):
    """Blocks and model give dataclasses."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Said:
            return Said(self.norm(torch.relu(self.linear(x))), x)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x: Tensor) -> Said:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h).logits
        return Said(self.head(h), h)


class Remembers(nn.Module):
    """Keeps something beside tensors in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(dense(8, 16), dense(16, 16)), nn.Linear(16, 4)
        self.scale = 0.5

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.scale


class Hooked(nn.Module):
    """Its head reads what a hook saw of an inner layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(dense(8, 16), dense(16, 16), dense(16, 16))
        self.head = nn.Linear(16, 4)
        self.seen: list[Tensor] = []
        self.body[1].register_forward_hook(self.look)

    def look(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen = [output]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) + self.seen.pop())


class Graph(nn.Module):
    """Averages neighbours, node by node; every batch is another graph, of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            h = layer(x)
            x = torch.relu(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]) / 4)
        return self.head(x)


class Causal(nn.Module):
    """A temporal convolutional network that looks back only: numbers in, numbers out, step by step."""

    class Block(nn.Module):
        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.reach = 2 * dilation
            self.convolution = nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 16, 3, dilation=dilation))

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.convolution(F.pad(x, (self.reach, 0))))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(4, 16, 1), nn.Conv1d(16, 4, 1)
        self.blocks = nn.Sequential(*(self.Block(2**i) for i in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Padded(nn.Module):
    """Attention that leaves out what a mask says is padding, and a mean over the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        h = self.layers(self.embed(tokens), src_key_padding_mask=padding).masked_fill(padding[..., None], 0.0)
        return self.head(h.sum(1) / (~padding).sum(1, keepdim=True))


class Recomputed(nn.Module):
    """Blocks behind checkpoints."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(nn.Sequential(dense(16, 16), nn.Dropout(0.1)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + checkpoint(block, h, use_reentrant=self.reentrant)
        return self.head(h)


class Spectral(nn.Module):
    """Complex weights between a Fourier transform and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.filter = nn.Parameter(torch.randn(9, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.fft.irfft(torch.fft.rfft(torch.relu(self.stem(x))) * self.filter, n=16)
        return self.head(torch.relu(self.middle(h)))


class Experts(nn.Module):
    """Two of four experts for each example, so that some are not called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = dense(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.experts = nn.ModuleList(dense(16, 16) for _ in range(4))
        self.mix = dense(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        weights, chosen = self.gate(h).softmax(-1).topk(2)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, expert(h[rows]) * weights[rows, place, None])
        return self.head(self.mix(h + out))


class Skips(nn.Module):
    """Leaves blocks out at random while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(nn.Sequential(dense(16, 16), nn.Linear(16, 16)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.7:
                h = h + block(h)
        return self.head(h)


class Tied(nn.Module):
    """A language model whose last layer has the weights of its first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.body = nn.Sequential(dense(16, 16), dense(16, 16))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)))


def parametrized(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Layers whose weights are computed from others."""
    layers = [change(nn.Linear(i, o)) for i, o in ((8, 16), (16, 16), (16, 16))]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.GELU())), nn.Linear(16, 4))


def lazy() -> nn.Module:
    """Layers that learn their width from the first batch."""
    return nn.Sequential(
        nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 4)
    )


def narrow_weights() -> nn.Module:
    """Weights in bfloat16 between layers that cast."""
    return nn.Sequential(dense(8, 16), dense(16, 16), nn.Linear(16, 4)).bfloat16()


def compiled() -> nn.Module:
    """A model that is compiled in place, by a backend that needs no compiler of another language."""
    model = Skips()
    model.compile(backend="eager")
    return model
