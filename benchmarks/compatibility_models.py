"""The models of the table of compatibility: from packages, small, with random weights, and odd ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import compatibility_odd as odd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

EXAMPLES = 4


@dataclass(frozen=True)
class Model:
    """A model, what a batch of it is, and how its user calls it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    """Of one batch; called under another seed for each."""
    forward: Callable[[nn.Module, Any], Any] | None = None
    at: str | Sequence[str] | Mapping[str, str] = "auto"
    batches: int = 3
    """In each split; eight where a batch cannot be divided into its examples."""

    def examples(self, inputs: Any) -> int:
        """How many there are in a batch: the length of its first tensor, or of molecules how many there are."""
        return EXAMPLES if self.inputs is molecules else len(inputs[0] if isinstance(inputs, tuple) else inputs)


def images(channels: int = 3, size: int = 32) -> Callable[[], Tensor]:
    return lambda: torch.randn(EXAMPLES, channels, size, size)


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(EXAMPLES, *shape)


def words(length: int = 7, vocabulary: int = 40) -> Callable[[], Tensor]:
    return lambda: torch.randint(3, vocabulary, (EXAMPLES, length))


def padded(length: int = 8) -> Tensor:
    tokens = torch.randint(1, 20, (EXAMPLES, length))
    lengths = torch.randint(length // 2, length + 1, (EXAMPLES, 1))
    return tokens.masked_fill(torch.arange(length) >= lengths, 0)


def graph() -> tuple[Tensor, Tensor]:
    """Nodes and edges; how many differs from batch to batch."""
    nodes = int(torch.randint(6, 12, ()))
    return torch.randn(nodes, 8), torch.randint(0, nodes, (2, 3 * nodes))


def molecules() -> tuple[Tensor, Tensor, Tensor]:
    """Several graphs in one: nodes, edges, and to which graph each node belongs."""
    sizes = torch.randint(3, 7, (EXAMPLES,)).tolist()
    starts = [sum(sizes[:i]) for i in range(EXAMPLES)]
    edges = [torch.randint(0, size, (2, 2 * size)) + start for size, start in zip(sizes, starts, strict=True)]
    return (
        torch.randn(sum(sizes), 8),
        torch.cat(edges, 1),
        torch.arange(EXAMPLES).repeat_interleave(torch.tensor(sizes)),
    )


def spread_out(model: nn.Module, inputs: Any) -> Any:
    return model(*inputs)


# --- torchvision ---------------------------------------------------------------------------------------------------


def vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(num_classes=4, **options)

    return build


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=4)


def vision_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 24, [2, 2, 2], [2, 2, 2], [4, 4], num_classes=4)


def vision_dense() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 2, 2), 16, num_classes=4)


# --- timm, open_clip, segmentation_models_pytorch ------------------------------------------------------------------


def timm_model(name: str, checkpointed: bool = False, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        model = timm.create_model(name, num_classes=4, **options)
        if checkpointed:
            model.set_grad_checkpointing(True)
        return model

    return build


def timm_mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=4, img_size=32, patch_size=8, num_blocks=3, embed_dim=32)


def clip() -> nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=3, width=32, head_width=16, patch_size=8, image_size=32)
    return CLIP(16, vision, CLIPTextCfg(context_length=8, vocab_size=40, width=32, heads=2, layers=3))


def pictures_and_words() -> tuple[Tensor, Tensor]:
    return torch.randn(EXAMPLES, 3, 32, 32), torch.randint(3, 40, (EXAMPLES, 8))


def matched(model: nn.Module, inputs: Any) -> Tensor:
    """How much each picture is like each text."""
    pictures, texts, _ = model(*inputs)
    said: Tensor = pictures @ texts.T
    return said


def segmentation(kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, kind)("timm-mobilenetv3_small_minimal_100", encoder_weights=None, classes=2)

    return build


# --- transformers --------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def hub(model: str, config: str, checkpointed: bool = False, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        built: Any = getattr(transformers, model)(getattr(transformers, config)(**options))
        if checkpointed:
            built.activation_checkpointing_enable({"use_reentrant": False})
        return built

    return build


def logits(model: nn.Module, inputs: Any) -> Any:
    return model(input_ids=inputs, use_cache=False).logits


def translated(model: nn.Module, inputs: Any) -> Any:
    return model(input_ids=inputs, decoder_input_ids=inputs.flip(1), use_cache=False).logits


def pictures(model: nn.Module, inputs: Any) -> Any:
    return model(pixel_values=inputs)


def sound(model: nn.Module, inputs: Any) -> Any:
    return model(input_values=inputs)


# --- x_transformers, vit_pytorch, torch_geometric ------------------------------------------------------------------


def decoder() -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    return TransformerWrapper(num_tokens=40, max_seq_len=16, attn_layers=Decoder(dim=32, depth=3, heads=2))


def encoder() -> nn.Module:
    from x_transformers import ContinuousTransformerWrapper, Encoder

    layers = Encoder(dim=32, depth=3, heads=2, rotary_pos_emb=True)
    return ContinuousTransformerWrapper(dim_in=8, dim_out=4, max_seq_len=16, attn_layers=layers)


def vit(module: str, kind: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from importlib import import_module

        return getattr(import_module(module), kind)(**options)

    return build


PATCHES = {"image_size": 32, "patch_size": 8, "num_classes": 4, "dim": 32, "depth": 3, "heads": 2, "mlp_dim": 64}


def node_model(kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torch_geometric

        return getattr(torch_geometric.nn, kind)(8, 16, 3, 4)

    return build


class GraphClassifier(nn.Module):
    """A mean over the nodes of each graph, behind message passing."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GIN

        self.body, self.head = GIN(8, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor, edges: Tensor, graphs: Tensor) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        return self.head(global_mean_pool(self.body(x, edges), graphs, EXAMPLES))


PACKAGES: dict[str, dict[str, Model]] = {
    "torch.nn": {
        "MLP": Model(lambda: nn.Sequential(*(odd.dense(i, 16) for i in (8, 16, 16)), nn.Linear(16, 4)), numbers(8)),
        "TransformerEncoder": Model(
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 3), numbers(6, 16)
        ),
        "Transformer, encoder and decoder": Model(
            lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True),
            lambda: (torch.randn(EXAMPLES, 6, 16), torch.randn(EXAMPLES, 5, 16)),
            spread_out,
        ),
        "LSTM, time first": Model(odd.LastStep, numbers(6, 8)),
        "LSTM, both ways": Model(partial(odd.LastStep, True), numbers(6, 8)),
        "GRU, last state": Model(partial(odd.LastState, nn.GRU), numbers(6, 8)),
        "LSTM, last state": Model(partial(odd.LastState, nn.LSTM), numbers(6, 8)),
        "GRUCell, step by step": Model(odd.Cells, numbers(6, 8)),
    },
    "torchvision": {
        "resnet18": Model(vision("resnet18"), images()),
        "mobilenet_v3_small": Model(vision("mobilenet_v3_small"), images()),
        "shufflenet_v2_x0_5": Model(vision("shufflenet_v2_x0_5"), images()),
        "DenseNet": Model(vision_dense, images()),
        "VisionTransformer": Model(vision_transformer, images()),
        "SwinTransformer": Model(vision_swin, images(3, 64)),
    },
    "timm": {
        "test_resnet": Model(timm_model("test_resnet"), images()),
        "vit_tiny": Model(timm_model("vit_tiny_patch16_224", img_size=32, depth=3), images()),
        "vit_tiny, checkpointed": Model(timm_model("vit_tiny_patch16_224", True, img_size=32, depth=3), images()),
        "test_convnext": Model(timm_model("test_convnext"), images(3, 64)),
        "test_efficientnet": Model(timm_model("test_efficientnet"), images()),
        "test_nfnet": Model(timm_model("test_nfnet"), images()),
        "swin_tiny": Model(
            timm_model(
                "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 1, 2, 1), num_heads=(2, 2, 2, 2)
            ),
            images(3, 56),
        ),
        "mixer": Model(timm_mixer, images()),
    },
    "transformers": {
        "BertForSequenceClassification": Model(
            hub("BertForSequenceClassification", "BertConfig", vocab_size=40, **SMALL), words()
        ),
        "GPT2LMHeadModel, checkpointed": Model(
            hub(
                "GPT2LMHeadModel",
                "GPT2Config",
                True,
                n_embd=32,
                n_layer=3,
                n_head=2,
                vocab_size=40,
                bos_token_id=1,
                eos_token_id=2,
            ),
            words(),
            logits,
        ),
        "LlamaForCausalLM": Model(
            hub("LlamaForCausalLM", "LlamaConfig", vocab_size=40, num_key_value_heads=2, **SMALL), words(), logits
        ),
        "T5ForConditionalGeneration": Model(
            hub(
                "T5ForConditionalGeneration",
                "T5Config",
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                vocab_size=40,
            ),
            words(),
            translated,
        ),
        "MambaForCausalLM": Model(
            hub("MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=3, state_size=4, vocab_size=40),
            words(),
            logits,
        ),
        "ViTForImageClassification": Model(
            hub("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, num_labels=4, **SMALL),
            images(),
            pictures,
        ),
        "SegformerForSemanticSegmentation": Model(
            hub(
                "SegformerForSemanticSegmentation",
                "SegformerConfig",
                num_labels=3,
                num_encoder_blocks=2,
                depths=[2, 2],
                sr_ratios=[2, 1],
                hidden_sizes=[16, 32],
                patch_sizes=[7, 3],
                strides=[4, 2],
                num_attention_heads=[1, 2],
                mlp_ratios=[2, 2],
                decoder_hidden_size=16,
            ),
            images(),
            pictures,
        ),
        "Wav2Vec2ForSequenceClassification": Model(
            hub(
                "Wav2Vec2ForSequenceClassification",
                "Wav2Vec2Config",
                vocab_size=40,
                conv_dim=(16, 16),
                conv_stride=(4, 2),
                conv_kernel=(8, 4),
                num_feat_extract_layers=2,
                num_conv_pos_embeddings=8,
                num_conv_pos_embedding_groups=2,
                classifier_proj_size=16,
                mask_time_prob=0.0,
                **SMALL,
            ),
            numbers(400),
            sound,
        ),
    },
    "segmentation_models_pytorch": {
        "Unet": Model(segmentation("Unet"), images()),
        "FPN": Model(segmentation("FPN"), images()),
    },
    "open_clip": {"CLIP": Model(clip, pictures_and_words, matched)},
    "x_transformers": {
        "TransformerWrapper(Decoder)": Model(decoder, words()),
        "ContinuousTransformerWrapper(Encoder)": Model(encoder, numbers(6, 8)),
    },
    "vit_pytorch": {
        "ViT": Model(vit("vit_pytorch", "ViT", **PATCHES), images()),
        "SimpleViT": Model(vit("vit_pytorch", "SimpleViT", **PATCHES), images()),
        "CCT": Model(
            vit(
                "vit_pytorch.cct",
                "CCT",
                img_size=32,
                embedding_dim=32,
                n_conv_layers=1,
                kernel_size=7,
                stride=2,
                padding=3,
                pooling_kernel_size=3,
                pooling_stride=2,
                pooling_padding=1,
                num_layers=3,
                num_heads=2,
                mlp_ratio=2.0,
                num_classes=4,
                positional_embedding="learnable",
            ),
            images(),
        ),
    },
    "torch_geometric": {
        "GCN": Model(node_model("GCN"), graph, spread_out, batches=8),
        "GraphSAGE": Model(node_model("GraphSAGE"), graph, spread_out, batches=8),
        "GIN over molecules": Model(GraphClassifier, molecules, spread_out, batches=8),
    },
    "odd": {
        "siamese": Model(odd.Siamese, numbers(2, 8)),
        "one block, three times": Model(odd.Repeated, numbers(8)),
        "U-Net": Model(odd.UNet, images(1, 16)),
        "detector, a dictionary": Model(odd.Detector, images(1, 16)),
        "dataclasses": Model(odd.SaysMore, numbers(8)),
        "get_extra_state": Model(odd.Remembers, numbers(8)),
        "head reads a hook": Model(odd.Hooked, numbers(8)),
        "graphs of other sizes": Model(odd.Graph, graph, spread_out, batches=8),
        "causal convolutions, weight_norm": Model(odd.Causal, numbers(4, 12)),
        "padding mask": Model(odd.Padded, padded),
        "reentrant checkpoints": Model(partial(odd.Recomputed, True), numbers(8)),
        "other checkpoints": Model(partial(odd.Recomputed, False), numbers(8)),
        "complex weights": Model(odd.Spectral, numbers(8)),
        "experts": Model(odd.Experts, numbers(8)),
        "stochastic depth": Model(odd.Skips, numbers(8)),
        "tied weights": Model(odd.Tied, words(7, 20)),
        "spectral_norm": Model(partial(odd.parametrized, parametrizations.spectral_norm), numbers(8)),
        "spectral_norm by hook": Model(partial(odd.parametrized, spectral_norm), numbers(8)),
        "weight_norm by hook": Model(partial(odd.parametrized, weight_norm), numbers(8)),
        "orthogonal": Model(partial(odd.parametrized, parametrizations.orthogonal), numbers(8)),
        "lazy layers": Model(odd.lazy, numbers(8)),
        "bfloat16 weights": Model(odd.narrow_weights, lambda: torch.randn(EXAMPLES, 8, dtype=torch.bfloat16)),
        "compile() in place": Model(odd.compiled, numbers(8)),
        "torch.compile": Model(lambda: torch.compile(odd.Siamese(), backend="eager"), numbers(2, 8)),
        "ScriptModule": Model(lambda: torch.jit.script(nn.Sequential(odd.dense(8, 16), nn.Linear(16, 4))), numbers(8)),
        "DataParallel": Model(lambda: nn.DataParallel(nn.Sequential(odd.dense(8, 16), nn.Linear(16, 4))), numbers(8)),
    },
}
