"""A deep look at a model every few epochs: gradients by layer, classes, activations, the loss around the weights."""

from __future__ import annotations

import fnmatch
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from esper.leyline import TelemetryEvent, TelemetryEventType, UsageError
from esper.nissa.profiles import TelemetryConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

VANISHING: Final = 1e-7
"""A gradient entry below this counts as vanished."""
EXPLODING: Final = 1e3
"""A gradient entry above this counts as exploded."""
PERCENTILES: Final = (1, 25, 50, 75, 99)
_SAMPLE: Final = 1 << 16
"""Entries of a layer that percentiles are taken of, evenly spaced."""


@dataclass(frozen=True, slots=True)
class LayerGradient:
    """A layer's gradient, averaged over the steps looked at. Shares are of entries, in [0, 1]."""

    norm: float
    vanishing: float
    exploding: float
    parameters: int
    steps: int
    percentiles: dict[str, float] | None = None
    """Of the last step looked at."""


@dataclass(frozen=True, slots=True)
class LayerActivation:
    """A layer's output, averaged over the steps looked at. ``zeros`` is a share of entries, in [0, 1]."""

    mean: float
    std: float
    zeros: float
    steps: int


@dataclass(frozen=True, slots=True)
class ClassScore:
    """``accuracy`` in percent; ``None`` for a class without examples."""

    examples: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class RedFlag:
    """Something a person should look at, with the figure and the limit it broke."""

    id: str
    measured: float
    threshold: float
    layer: str | None = None


@dataclass(frozen=True, slots=True)
class EpochSnapshot:
    """What was measured in one epoch. ``None`` (missing in :meth:`to_dict`) is what was not."""

    epoch: int
    train_loss: float | None = None
    val_loss: float | None = None
    val_metric: float | None = None
    gradient_norm: float | None = None
    """Norm over all parameters, averaged over the steps looked at."""
    layers: dict[str, LayerGradient] | None = None
    activations: dict[str, LayerActivation] | None = None
    classes: dict[str, ClassScore] | None = None
    confusion: list[list[int]] | None = None
    """Rows are true classes, columns predicted ones."""
    sharpness: float | None = None
    """Mean absolute change of the loss, per unit of relative step, over random directions."""
    red_flags: tuple[RedFlag, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, apart from NaN and the infinities, which the wire encodes."""
        plain: dict[str, Any] = _to_plain(self)
        return plain


def _to_plain(value: Any) -> Any:
    if is_dataclass(value):
        named = ((each.name, getattr(value, each.name)) for each in fields(value))
        return {name: _to_plain(item) for name, item in named if item is not None}
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def diagnostic_payload(snapshot: EpochSnapshot) -> dict[str, Any]:
    """The payload of an ``ANALYTICS_SNAPSHOT`` that carries ``snapshot``."""
    return {"kind": "diagnostic_snapshot", "snapshot": snapshot.to_dict()}


def diagnostic_event(
    snapshot: EpochSnapshot, *, env_id: int | None = None, episode: int | None = None
) -> TelemetryEvent:
    """The event that carries ``snapshot``."""
    return TelemetryEvent(
        event_type=TelemetryEventType.ANALYTICS_SNAPSHOT,
        severity="info",
        epoch=snapshot.epoch,
        env_id=env_id,
        episode=episode,
        data=diagnostic_payload(snapshot),
    )


@dataclass(slots=True)
class _Sums:
    steps: int = 0
    values: list[float] = field(default_factory=list)
    parameters: int = 0
    percentiles: dict[str, float] | None = None

    def add(self, values: list[float]) -> None:
        self.values = [old + new for old, new in zip(self.values or [0.0] * len(values), values, strict=True)]
        self.steps += 1

    def means(self) -> list[float]:
        return [value / self.steps for value in self.values]


class DiagnosticTracker:
    """Measures ``model`` while someone else trains it, without a trace in weights, gradients or random streams.

    Call :meth:`on_backward` after each backward pass and :meth:`end_epoch` after each epoch; :meth:`close` takes the
    hooks off. Layers are found anew each time, so that seeds which germinate later are seen too.
    """

    def __init__(self, model: nn.Module, config: TelemetryConfig, device: str = "cpu") -> None:
        """Raises ``UsageError`` for a layer pattern that matches no module with parameters."""
        self.model = model
        self.config = config
        self.device = device
        self.history: deque[EpochSnapshot] = deque(maxlen=config.history)
        self._steps = 0
        self._overall = _Sums()
        self._layers: dict[str, _Sums] = {}
        self._activations: dict[str, _Sums] = {}
        self._hooks: dict[str, tuple[nn.Module, Any]] = {}
        self._check_patterns()
        self._attach()

    def on_backward(self) -> None:
        """Look at the gradients as they are now, in one call of ``config.stride``."""
        turn, self._steps = self._steps, self._steps + 1
        if turn % self.config.stride:
            return
        gradients = [p.grad.detach() for p in self.model.parameters() if p.grad is not None]
        if not gradients:
            return
        self._overall.add([_norm(gradients)])
        for name, module in self._tracked():
            own = [p.grad.detach() for p in module.parameters(recurse=False) if p.grad is not None]
            if own:
                self._add_layer(name, own)

    def end_epoch(
        self,
        epoch: int,
        train_loss: float | None = None,
        val_loss: float | None = None,
        val_metric: float | None = None,
        *,
        predictions: Tensor | None = None,
        targets: Tensor | None = None,
        loss_at: Callable[[], float] | None = None,
    ) -> EpochSnapshot:
        """The snapshot of the epoch that has ended, and a fresh start for the next one.

        ``predictions`` (scores ``[N, classes]`` or class numbers ``[N]``) and ``targets`` ``[N]`` are for the classes;
        ``loss_at`` evaluates the model as it is (in eval mode, always on the same examples) for the landscape.
        """
        classes, confusion = self._class_scores(predictions, targets)
        layers = {name: _layer_gradient(sums) for name, sums in self._layers.items()}
        snapshot = EpochSnapshot(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=val_loss,
            val_metric=val_metric,
            gradient_norm=self._overall.means()[0] if self._overall.steps else None,
            layers=layers or None,
            activations={name: _layer_activation(sums) for name, sums in self._activations.items()} or None,
            classes=classes,
            confusion=confusion,
            sharpness=self._sharpness(loss_at),
        )
        snapshot = _with_flags(snapshot, tuple(self.history))
        self.history.append(snapshot)
        self._overall, self._layers, self._activations, self._steps = _Sums(), {}, {}, 0
        self._attach()
        return snapshot

    def close(self) -> None:
        """Take every hook off the model."""
        for _, handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()

    def _owners(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                yield name or "model", module

    def _tracked(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self._owners():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.config.layers):
                yield name, module

    def _check_patterns(self) -> None:
        names = [name for name, _ in self._owners()]
        for pattern in self.config.layers:
            if not fnmatch.filter(names, pattern):
                known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                raise UsageError(
                    f"layer pattern {pattern!r} matches nothing; modules with parameters: {known or '(none)'}"
                )

    def _attach(self) -> None:
        """Hook the layers that are there now, if activations are wanted; let go of those that have gone."""
        if not self.config.activations:
            return
        tracked = dict(self._tracked())
        for name, (module, handle) in list(self._hooks.items()):
            if tracked.get(name) is not module:
                handle.remove()
                del self._hooks[name]
        for name, module in tracked.items():
            if name not in self._hooks:
                self._hooks[name] = module, module.register_forward_hook(self._activation_hook(name))

    def _activation_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        import torch

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            wanted = module.training and torch.is_grad_enabled() and self._steps % self.config.stride == 0
            if not wanted or not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return
            with torch.no_grad():
                values = output.detach().float()
                figures = torch.stack((values.mean(), values.std(correction=0), (values == 0).float().mean()))
            self._activations.setdefault(name, _Sums()).add(figures.tolist())

        return look

    def _add_layer(self, name: str, gradients: list[Tensor]) -> None:
        import torch

        sums = self._layers.setdefault(name, _Sums())
        flat = torch.cat([gradient.flatten().float() for gradient in gradients])
        size = flat.abs()
        shares = torch.stack(((size < VANISHING).float().mean(), (size > EXPLODING).float().mean()))
        sums.add([_norm(gradients), *shares.tolist()])
        sums.parameters = flat.numel()
        if self.config.percentiles:
            sample = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE]
            points = torch.tensor(PERCENTILES, dtype=sample.dtype, device=sample.device) / 100
            values = torch.quantile(sample, points).tolist()
            sums.percentiles = {f"p{percent}": value for percent, value in zip(PERCENTILES, values, strict=True)}

    def _class_scores(
        self, predictions: Tensor | None, targets: Tensor | None
    ) -> tuple[dict[str, ClassScore] | None, list[list[int]] | None]:
        import torch

        if predictions is None or targets is None or not (self.config.per_class or self.config.confusion):
            return None, None
        scored = predictions.ndim == targets.ndim + 1
        guess = (predictions.argmax(dim=-1) if scored else predictions).flatten().cpu()
        truth = targets.flatten().cpu()
        count = int(predictions.shape[-1]) if scored else int(torch.cat((guess, truth)).max()) + 1
        table = torch.bincount(truth * count + guess, minlength=count * count).reshape(count, count)
        examples, right = table.sum(dim=1).tolist(), table.diagonal().tolist()
        classes = {
            str(number): ClassScore(n, 100.0 * hits / n if n else None)
            for number, (n, hits) in enumerate(zip(examples, right, strict=True))
        }
        return (
            classes if self.config.per_class else None,
            table.tolist() if self.config.confusion else None,
        )

    def _sharpness(self, loss_at: Callable[[], float] | None) -> float | None:
        """Mean of ``|L(w + step) - L(w)| / scale`` over random steps of relative length ``scale`` in every tensor."""
        import torch

        if loss_at is None or not self.config.landscape_samples:
            return None
        scale = self.config.landscape_scale
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            here = loss_at()
            changes = []
            for _ in range(self.config.landscape_samples):
                with _moved(self.model, scale, generator):
                    changes.append(abs(loss_at() - here) / scale)
        return sum(changes) / len(changes)


@contextmanager
def _moved(model: nn.Module, scale: float, generator: Any) -> Iterator[None]:
    """Step in a random direction; on the way out every weight is what it was, bit for bit."""
    import torch

    kept = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        for parameter, before in kept:
            direction = torch.randn(before.shape, generator=generator).to(before.device, before.dtype)
            length = direction.norm()
            if length > 0:
                parameter.data.add_(direction, alpha=float(scale * before.norm() / length))
        yield
    finally:
        for parameter, before in kept:
            parameter.data.copy_(before)


def _norm(tensors: list[Tensor]) -> float:
    import torch

    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t.float()) for t in tensors])))


def _layer_activation(sums: _Sums) -> LayerActivation:
    mean, std, zeros = sums.means()
    return LayerActivation(mean, std, zeros, sums.steps)


def _layer_gradient(sums: _Sums) -> LayerGradient:
    norm, vanishing, exploding = sums.means()
    return LayerGradient(norm, vanishing, exploding, sums.parameters, sums.steps, sums.percentiles)


_LIMITS: Final = {"vanishing": 0.5, "exploding": 0.01, "plateau": 0.005, "gap": 0.5, "sharpness": 1.0, "classes": 40.0}
"""Shares of a layer's entries, relative change, loss, loss per relative step, percentage points."""
_PLATEAU_EPOCHS: Final = 3


def _with_flags(snapshot: EpochSnapshot, history: tuple[EpochSnapshot, ...]) -> EpochSnapshot:
    return replace(snapshot, red_flags=tuple(_red_flags(snapshot, history)))


def _red_flags(snapshot: EpochSnapshot, history: tuple[EpochSnapshot, ...]) -> Iterator[RedFlag]:
    """What broke one of ``_LIMITS``. A plateau is three epochs in which the validation loss hardly moved."""
    for name, layer in (snapshot.layers or {}).items():
        if not math.isfinite(layer.norm):
            yield RedFlag("non_finite_gradient", layer.norm, EXPLODING, name)
        if layer.vanishing > _LIMITS["vanishing"]:
            yield RedFlag("vanishing_gradient", layer.vanishing, _LIMITS["vanishing"], name)
        if layer.exploding > _LIMITS["exploding"]:
            yield RedFlag("exploding_gradient", layer.exploding, _LIMITS["exploding"], name)
    if snapshot.train_loss is not None and snapshot.val_loss is not None:
        gap = snapshot.val_loss - snapshot.train_loss
        if gap > _LIMITS["gap"]:
            yield RedFlag("generalisation_gap", gap, _LIMITS["gap"])
    losses = [each.val_loss for each in (*history, snapshot)[-_PLATEAU_EPOCHS - 1 :] if each.val_loss is not None]
    if len(losses) > _PLATEAU_EPOCHS and losses[0] > 0:
        moved = (max(losses) - min(losses)) / losses[0]
        if moved < _LIMITS["plateau"]:
            yield RedFlag("plateau", moved, _LIMITS["plateau"])
    if snapshot.sharpness is not None and snapshot.sharpness > _LIMITS["sharpness"]:
        yield RedFlag("sharp_minimum", snapshot.sharpness, _LIMITS["sharpness"])
    scores = [each.accuracy for each in (snapshot.classes or {}).values() if each.accuracy is not None]
    if scores and max(scores) - min(scores) > _LIMITS["classes"]:
        yield RedFlag("class_spread", max(scores) - min(scores), _LIMITS["classes"])
