"""Who emits what. Generated from the source by ``python tools/audit.py``; not for editing."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

PRODUCERS: Final = MappingProxyType(
    {
        "ANALYTICS_SNAPSHOT": ("nissa.diagnostics", "nissa.vitals", "simic.event_writer", "simic.vectorized"),
        "CHECKPOINT_LOADED": ("run.resume", "simic.training"),
        "CHECKPOINT_SAVED": ("run.resume", "simic.training"),
        "COMMAND_EXECUTED": ("tolaria.event_writer",),
        "COMMAND_FAILED": ("tolaria.event_writer",),
        "COMMAND_ISSUED": ("tolaria.event_writer",),
        "COMPUTE_SPENT": ("tolaria.event_writer",),
        "COUNTERFACTUAL_COMPUTED": ("tolaria.event_writer",),
        "COUNTERFACTUAL_UNAVAILABLE": ("tolaria.event_writer",),
        "DEGRADATION_DETECTED": ("simic.detectors",),
        "EPISODE_ENDED": ("tolaria.event_writer",),
        "EPISODE_STARTED": ("tolaria.event_writer",),
        "EPOCH_COMPLETED": ("tolaria.event_writer",),
        "GOVERNOR_PANIC": ("tolaria.governor",),
        "GOVERNOR_ROLLBACK": ("tolaria.governor",),
        "GOVERNOR_SNAPSHOT": ("tolaria.governor",),
        "HEAD_COLLAPSE_DETECTED": ("simic.detectors",),
        "IMPROVEMENT_DETECTED": ("simic.detectors",),
        "ISOLATION_VIOLATION": ("kasmina.slot",),
        "MEMORY_WARNING": ("simic.detectors",),
        "MODEL_EXPORTED": ("delivery", "scripts.heuristic"),
        "NUMERICAL_INSTABILITY_DETECTED": ("simic.detectors",),
        "PERFORMANCE_DEGRADATION": ("simic.detectors",),
        "PLATEAU_DETECTED": ("simic.detectors",),
        "PPO_UPDATE_COMPLETED": ("simic.vectorized",),
        "PROMISES_MEASURED": ("tolaria.engine",),
        "RANKS_DIFFER": ("run.session",),
        "RATIO_COLLAPSE_DETECTED": ("simic.detectors",),
        "RATIO_EXPLOSION_DETECTED": ("simic.detectors",),
        "REWARD_COMPUTED": ("simic.event_writer",),
        "REWARD_HACKING_SUSPECTED": ("simic.detectors",),
        "SEED_ALPHA_RETARGETED": ("kasmina.slot",),
        "SEED_FOSSILIZED": ("kasmina.slot",),
        "SEED_GATE_EVALUATED": ("kasmina.slot",),
        "SEED_GERMINATED": ("kasmina.slot",),
        "SEED_PRUNED": ("kasmina.slot",),
        "SEED_STAGE_CHANGED": ("kasmina.slot",),
        "SLOT_REOPENED": ("kasmina.slot",),
        "TELEMETRY_DROPPED": ("nissa.hub",),
        "TELEMETRY_LEVEL_SET": ("nissa.hub",),
        "TRAINING_ENDED": ("run.session",),
        "TRAINING_STARTED": ("run.session",),
        "TRANSITION_VETOED": ("kasmina.slot", "tolaria.governor"),
        "VALUE_COLLAPSE_DETECTED": ("simic.detectors",),
        "WORKER_REPLACED": ("simic.workers",),
        "action_distribution": ("simic.event_writer",),
        "diagnostic_snapshot": ("nissa.diagnostics",),
        "host_vitals": ("nissa.vitals",),
        "last_action": ("simic.event_writer",),
        "mask_hit_rates": ("simic.event_writer",),
        "reward_summary": ("simic.event_writer",),
        "throughput": ("simic.vectorized",),
    }
)
"""name of an event, or kind of an ``ANALYTICS_SNAPSHOT`` -> the modules that emit it."""
