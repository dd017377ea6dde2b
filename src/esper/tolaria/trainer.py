"""Trains and evaluates one growing model: model, optimizer, data order, random streams, ledger."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esper.kasmina.gradients import tensor_norms, total_norm
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.replay import Tape, evaluate_configs
from esper.kasmina.state import Incubation
from esper.leyline import AlphaConfig, EnvSpec, SeedStage, Sink, TrainResult
from esper.tolaria import ledger, rates, schedules, surgery
from esper.tolaria.ledger import Ledger, Macs
from esper.tolaria.rng import Streams
from esper.tolaria.setup import GrowthTask, MakeSetup, TrainerConfig

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One env under its configurations: arrays ``[configs]``; standard errors are of the difference to the first."""

    metric: Floats
    loss: Floats
    metric_se: Floats
    loss_se: Floats
    examples: int
    passes: float
    shared: bool
    seconds: float


@dataclass(slots=True)
class Epoch:
    """One epoch of training as it goes on."""

    steps: int
    probing: list[str]
    """Slots whose seed learns in a second pass."""
    measured: frozenset[int]
    """Steps at which gradients are measured."""
    total: Tensor
    """Sum of the loss over examples."""
    step: int = 0
    examples: int = 0
    waited: float = 0.0
    host_norm: float | None = None
    started: float = field(default_factory=time.perf_counter)


class Trainer:
    """One growing model with all it needs to learn. Knows nothing of policies, gates or episodes."""

    def __init__(
        self, spec: EnvSpec, task: GrowthTask, prepare: MakeSetup, config: TrainerConfig, on_telemetry: Sink
    ) -> None:
        self.task, self.config = task, config
        self.max_epochs = spec.max_epochs
        self.streams = Streams(spec.seed)
        self.setup = prepare(spec, self.streams)
        self.gates = replace(config.thresholds, metric=task.metric)
        """What the gates ask."""
        self.model = GrowingModel.wrap(
            self.setup.host,
            task.sites,
            self.setup.sample,
            thresholds=self.gates,
            config=config.slot,
            on_telemetry=on_telemetry,
        )
        self.host_parameters = [p for p in self.model.host_parameters() if p.requires_grad]
        self.host_size = sum(p.numel() for p in self.model.host_parameters())
        """Parameters of the host, frozen ones too."""
        self.optimizer = self.setup.optimizer
        self.batches = self.setup.batches
        self.ledger = Ledger()
        self.completed = 0
        """Epochs trained so far; a rollback takes it back."""
        self.births: dict[str, float] = {}
        """slot -> time of birth of its live seed, epochs."""
        self.past_births: list[float] = []
        self._macs: Macs | None = None
        self.on_backward: Callable[[], None] | None = None
        """Called after every backward pass, when all gradients are there."""
        self._epoch = self.begin_epoch(0)
        self._second_pass: tuple[Tape, Callable[[Any], Tensor]] | None = None

    # --- topology -------------------------------------------------------------------------------------------------

    def adopt(self, slot: str) -> None:
        """Give a freshly germinated seed its parameter group and its own schedule."""
        number = rates.neighbour(self.optimizer, self.model.host, self.model.places[slot].path)
        beside, multiple = surgery.host_groups(self.optimizer)[number], self.config.schedule.seed_multiplier
        base = float(beside.get(surgery.BASE_RATE, beside["lr"])) * multiple
        options = rates.inherited(self.optimizer, number)
        group = surgery.add_seed_group(self.optimizer, slot, self._seed_named(slot), lr=base, **options)
        if self.config.schedule.shape == "external":
            group |= {rates.HOST_GROUP: number, rates.MULTIPLE: multiple}
            rates.follow(self.optimizer)
        self.births[slot] = float(self.completed)
        self._macs = None

    def release(self, slot: str, seed_id: str) -> None:
        """Forget a pruned seed: its parameter group, its schedule, and book what it cost as discarded."""
        surgery.remove_seed_group(self.optimizer, slot)
        self.past_births.append(self.births.pop(slot))
        self.ledger.discard(seed_id)
        self._macs = None

    @property
    def macs(self) -> Macs:
        """MACs per example of the present topology with every live seed in play."""
        if self._macs is None:
            seeds = {slot_id: slot.seed for slot_id, slot in self.model.slots.items() if slot.seed is not None}
            split = self.setup.splits["validation"]
            inputs = split.inputs[:2].to(self.config.device)
            with self.model.alphas(dict.fromkeys(seeds, 1.0)):
                self._macs = ledger.count(
                    lambda: self.setup.forward(self.model, inputs),
                    len(inputs),
                    seeds,
                    model=self.model,
                )
        return self._macs

    def state(self) -> dict[str, Any]:
        """All it takes to continue bit for bit: ``{"tensors": {name: tensor}, "plain": JSON-able}``; no aliases."""
        optimizer = surgery.named_state(self.optimizer, self.model.named_parameters())
        tensors = {f"model/{name}": tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.tensors.items()}
        tensors |= {f"stream/{name}": tensor for name, tensor in self.streams.state().items()}
        tensors |= {f"batches/{name}": tensor for name, tensor in self.batches.state().items()}
        return {
            "tensors": tensors,
            "plain": {
                "topology": self.model.topology(),
                "optimizer": optimizer.plain,
                "completed": self.completed,
                "births": dict(self.births),
                "past_births": list(self.past_births),
                "ledger": self.ledger.state(),
            },
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`, also from another topology."""
        plain = state["plain"]
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "stream": {}, "batches": {}}
        for name, tensor in state["tensors"].items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        for slot in list(self.births):
            surgery.remove_seed_group(self.optimizer, slot)
        self.model.restore_topology(plain["topology"])
        self.model.load_state_dict(parts["model"])
        self.births = dict(plain["births"])
        for slot in self.births:
            surgery.add_seed_group(self.optimizer, slot, self._seed_named(slot))
        saved = surgery.OptimizerState(parts["optimizer"], plain["optimizer"])
        surgery.load_named_state(self.optimizer, self.model.named_parameters(), saved)
        self.streams.load(parts["stream"])
        self.batches.load(parts["batches"])
        self.completed = int(plain["completed"])
        self.past_births = list(plain["past_births"])
        self.ledger = Ledger.load(plain["ledger"])
        self._macs = None

    def rewind(self, state: Mapping[str, Any]) -> None:
        """:meth:`load` an earlier state; rates that somebody else moves stay where they are."""
        with ExitStack() as stack:
            if self.config.schedule.shape == "external":
                stack.enter_context(rates.host_rates_kept(self.optimizer))
            self.load(state)

    def network(self) -> dict[str, Any]:
        """What the model computes, on the CPU: ``{"tensors", "plain"}`` without optimizer, streams and ledger."""
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
        return {"tensors": tensors, "plain": self.model.topology()}

    def become(self, network: Mapping[str, Any], seeds: Collection[str]) -> None:
        """Compute what :meth:`network` was taken from; of its seeds only those with the ids ``seeds`` live on.

        The optimizer keeps what it knows of the host, and begins anew with the seeds.
        """
        for slot_id in list(self.births):
            surgery.remove_seed_group(self.optimizer, slot_id)
        self.births.clear()
        self.model.load(network["plain"], network["tensors"])
        for slot_id, slot in self.model.slots.items():
            if slot.state is not None and slot.state.seed_id in seeds:
                self.adopt(slot_id)
            elif slot.state is not None:
                slot.clear()
        self._macs = None

    def _seed_named(self, slot: str) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.slots[slot].named_parameters())

    # --- training -------------------------------------------------------------------------------------------------

    def train_epoch(self) -> TrainResult:
        """One pass over the training split."""
        epoch = self.begin_epoch(len(self.batches))
        with self.streams.active("train"):
            for inputs, targets, wait in _timed(self.batches.epoch()):
                epoch.waited += wait
                self._set_rates(epoch.step, epoch.steps)
                self.optimizer.zero_grad(set_to_none=True)
                loss = self.loss(inputs, targets)
                torch.autograd.backward(loss)
                self.after_backward()
                self.optimizer.step()
        return self.end_epoch()

    def begin_epoch(self, steps: int) -> Epoch:
        """Make ready for an epoch of ``steps`` steps (0: not known), each of them :meth:`loss`, backward and
        :meth:`after_backward`."""
        samples = self.config.gradient_samples
        measured = frozenset(steps - 1 - i * steps // samples for i in range(samples)) if steps else frozenset({0})
        self.model.train()
        self._epoch = Epoch(steps, self._probing(), measured, torch.zeros((), device=self.config.device))
        return self._epoch

    def loss(self, inputs: Any, targets: Tensor) -> Tensor:
        """Training loss of one batch. What seeds behind the host need to learn from it is kept for the second pass."""
        epoch, forward = self._epoch, self.setup.forward

        def criterion(output: Any) -> Tensor:
            return self.setup.criterion(output, targets)

        if epoch.probing:
            with self.model.record(epoch.probing) as tape:
                loss = criterion(forward(self.model, inputs))
            self._second_pass = tape, criterion
        else:
            loss = criterion(forward(self.model, inputs))
        epoch.total.add_(loss.detach(), alpha=len(targets))
        epoch.examples += len(targets)
        return loss

    def after_backward(self) -> None:
        """Teach the seeds behind the host, and measure gradients where it is their turn. The optimizer steps next."""
        epoch = self._epoch
        if epoch.probing and self._second_pass is not None:
            tape, criterion = self._second_pass
            for slot in epoch.probing:
                probe_backward(self.model, tape, criterion, slot)
            self._second_pass = None
        if epoch.step in epoch.measured:
            epoch.host_norm = self._measure_gradients()
        if self.on_backward is not None:
            self.on_backward()
        epoch.step += 1

    def end_epoch(self) -> TrainResult:
        """Sum up the epoch and book its work."""
        epoch = self._epoch
        self.completed += 1
        self._charge_training(epoch.examples, epoch.probing)
        return TrainResult(
            loss=float(epoch.total) / epoch.examples,
            examples=epoch.examples,
            learning_rate=float(surgery.host_groups(self.optimizer)[0]["lr"]),
            host_gradient_norm=epoch.host_norm,
            weights_finite=self._weights_finite(),
            seconds=time.perf_counter() - epoch.started,
            input_wait_seconds=epoch.waited,
        )

    def _probing(self) -> list[str]:
        return [
            slot_id
            for slot_id, slot in self.model.slots.items()
            if slot.state is not None and slot.stage is SeedStage.TRAINING and slot.state.incubation is Incubation.PROBE
        ]

    def _set_rates(self, step: int, steps: int) -> None:
        now = schedules.moment(self.config.schedule, self.completed, step, steps)
        host, seeds = schedules.learning_rates(
            self.config.schedule, now, float(self.max_epochs), self.births, self.past_births
        )
        surgery.set_rates(self.optimizer, host, seeds)

    def _measure_gradients(self) -> float | None:
        """Note each live seed's gradient ratio and health; returns the norm of the host's gradient."""
        host_norm = total_norm(tensor_norms(p.grad for p in self.host_parameters))
        host_size = sum(p.numel() for p in self.host_parameters)
        for slot_id in self.births:
            slot = self.model.slots[slot_id]
            slot.record_gradients([p.grad for p in slot.seed_parameters()], host_norm, host_size)
        return host_norm

    def _weights_finite(self) -> bool:
        tensors = [t.detach() for t in (*self.model.parameters(), *self.model.buffers()) if t.is_floating_point()]
        norms = torch.stack(torch._foreach_norm(tensors, ord=math.inf))
        return bool(torch.isfinite(norms).all())

    def _charge_training(self, examples: int, probing: Sequence[str]) -> None:
        macs = self.macs
        taken = {slot: n for slot, n in macs.inside.items() if slot not in probing}
        forward = macs.forward - sum(macs.inside[slot] for slot in probing)
        self._charge("train_forward", examples, forward, taken)
        self._charge("train_backward", examples, ledger.backward(forward), {s: 2 * n for s, n in taken.items()})
        for slot in probing:
            seed, behind = (
                macs.inside[slot],
                macs.behind[slot]
                - sum(macs.inside[other] for other in probing if other != slot and other in self._behind(slot)),
            )
            work = seed + behind + ledger.backward(seed, passed=behind)
            self._charge("probe", examples, work, {slot: work})

    def _behind(self, slot: str) -> list[str]:
        order = list(self.model.slots)
        return order[order.index(slot) + 1 :]

    def _charge(self, purpose: str, examples: int, each: int, seeds: dict[str, int] | None = None) -> None:
        ids = {slot_id: slot.state.seed_id for slot_id, slot in self.model.slots.items() if slot.state is not None}
        by_seed = {ids[slot]: examples * n for slot, n in (seeds or {}).items()}
        self.ledger.charge(purpose, examples * each, by_seed)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, configs: Sequence[AlphaConfig], split: str) -> Evaluation:
        """Metric and loss under each configuration, without a trace in model, buffers or random state."""
        started = time.perf_counter()
        data = self.setup.splits[split]
        chunks = data.chunks(self.config.evaluation_batch)
        loss = self.task.loss_figure.tally(len(configs), len(chunks))
        metric = self.task.metric_figure.tally(len(configs), len(chunks))
        passes, shared, examples = 0.0, False, len(data)
        self.model.eval()
        with torch.no_grad(), self.streams.active("counterfactual"):
            for chunk in chunks:
                inputs, targets = data.inputs[chunk].to(self.config.device), data.targets[chunk].to(self.config.device)
                run = evaluate_configs(self.model, inputs, configs, self.setup.forward)
                loss.add(run.outputs, targets)
                metric.add(run.outputs, targets)
                passes += run.passes * len(targets) / examples
                shared = shared or run.shared
        scores, losses = metric.summary(), loss.summary()
        self._charge_evaluation(examples, passes, split, configs[0])
        seconds = time.perf_counter() - started
        return Evaluation(scores.value, losses.value, scores.se, losses.se, examples, passes, shared, seconds)

    @torch.no_grad()
    def outputs(self, split: str) -> tuple[Any, Tensor]:
        """What the model as it is says of a split, in eval mode, with the targets."""
        data = self.setup.splits[split]
        self.model.eval()
        parts = [data.inputs[c].to(self.config.device) for c in data.chunks(self.config.evaluation_batch)]
        outputs = [self.setup.forward(self.model, inputs) for inputs in parts]
        self._charge("validation", len(data), self.macs.forward)
        return torch.cat(outputs), data.targets.to(self.config.device)

    def _charge_evaluation(self, examples: int, passes: float, split: str, first: AlphaConfig) -> None:
        """``passes`` counts passes of the first configuration, in which a seed at alpha 0 does no work."""
        seeds = self.macs.inside.items()
        whole = self.macs.forward - sum(n for slot, n in seeds if first.get(slot, self.model.slots[slot].alpha) == 0.0)
        if split == "test":
            self._charge("test", examples, whole)
            return
        self._charge("validation", examples, whole)
        self.ledger.charge("counterfactual", max(0, round((passes - 1.0) * whole * examples)))


def _timed(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Each batch with the seconds it kept its consumer waiting."""
    while True:
        before = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield *batch, time.perf_counter() - before
