"""Hosts that are drawn, and what grew in them, as events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from karn.streams import Recorder


class Grows(NamedTuple):
    """A seed of the story."""

    slot: str
    blueprint: str
    stage: str
    alpha: float = 1.0
    cost: float | None = None
    parameters: int = 100
    macs: int = 1000


def part(path: str, parameters: int = 10, macs: int = 20, **more: Any) -> dict[str, Any]:
    return {"path": path, "kind": "Linear", "parameters": parameters, "macs": macs, "calls": 1, **more}


def host(parts: Sequence[dict[str, Any]], at: Sequence[str]) -> dict[str, Any]:
    """A record; ``at`` as a user writes it."""
    sites = [
        {"slot": path.lstrip("+").replace(".", "_"), "path": path.lstrip("+"), "beside": path.startswith("+")}
        for path in at
    ]
    return {"macs": sum(one["macs"] for one in parts), "sites": sites, "parts": list(parts)}


def transformer(layers: int = 12) -> dict[str, Any]:
    """Two places beside linear maps in every layer."""
    inner = ("attention.query", "attention.key", "attention.value", "output")
    parts = [part("embeddings"), *(part(f"layer.{n}.{name}") for n in range(layers) for name in inner), part("head")]
    return host(parts, [f"+layer.{n}.attention.{name}" for n in range(layers) for name in ("query", "value")])


def grown_run(record: dict[str, Any] | None, seeds: Sequence[Grows], slots: Sequence[str] = ()) -> list[TelemetryEvent]:
    """A run of 15 epochs that is not over; seed n germinates in epoch n, its cost is of epoch 8 + n."""
    rec = Recorder()
    names = [site["slot"] for site in record["sites"]] if record is not None else list(slots)
    size = sum(one["parameters"] for one in record["parts"]) if record is not None else 500
    metric = {"name": "accuracy", "unit": "%", "higher_is_better": True}
    rec.say(
        T.TRAINING_STARTED, run_id="20261129-1", kind="library", task="Net", policy="heuristic", metric=metric,
        slots=names, blueprints=["lora4"], episodes=1, envs=1, max_epochs=20, device="cpu", threads=1, examples={},
        host_parameters=size, **({} if record is None else {"host": record}),
    )  # fmt: skip
    where: dict[str, Any] = {"env_id": 0, "episode": 0}
    rec.say(
        T.EPISODE_STARTED,
        **where,
        epoch=0,
        seed=1,
        policy="heuristic",
        arm="grown",
        max_epochs=20,
        host_parameters=size,
    )
    stages, alphas, macs, total = dict.fromkeys(names, "DORMANT"), {}, {}, size
    for number, seed in enumerate(seeds, 1):
        about = {**where, "slot_id": seed.slot, "seed_id": f"e0-r0-s{number}"}
        what = {"blueprint": seed.blueprint, "parameters": seed.parameters}
        plan = {"blend": "linear", "incubation": "probe", "tempo": 3, "alpha_target": 1.0}
        rec.say(T.SEED_GERMINATED, **about, epoch=number, **what, **plan)
        if seed.cost is not None:
            rec.say(
                T.COUNTERFACTUAL_COMPUTED, **about, epoch=8 + number, removal_cost=seed.cost, unit="%", examples=100,
                shared_prefix=True, passes=1.0, alpha=seed.alpha,
            )  # fmt: skip
        if seed.stage == "FOSSILIZED":
            rec.say(T.SEED_FOSSILIZED, **about, epoch=12, age_epochs=9, **what)
        if seed.stage == "PRUNED":
            rec.say(
                T.SEED_PRUNED, **about, epoch=12, age_epochs=9, reason="no worth", by="policy", from_="HOLDING", **what
            )
            rec.say(T.SEED_STAGE_CHANGED, **about, epoch=12, from_="HOLDING", to="DORMANT")
            continue
        stages[seed.slot], alphas[seed.slot], macs[seed.slot] = seed.stage, seed.alpha, seed.macs
        total += seed.parameters
    measured = {} if record is None else {"inference_macs": record["macs"] + sum(macs.values()), "seed_macs": macs}
    rec.say(
        T.EPOCH_COMPLETED, **where, epoch=15, arm="grown", train_loss=1.0, validation_loss=1.0, validation_metric=60.0,
        parameters=total, live_seeds=len(alphas), alphas=alphas, stages=stages, **measured,
    )  # fmt: skip
    return rec.events
