"""Who emits what. Generated from the source by ``python tools/audit.py``; not for editing."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

PRODUCERS: Final = MappingProxyType(
    {
        "ANALYTICS_SNAPSHOT": ("nissa.diagnostics", "simic.scribe", "simic.vectorized"),
        "CHECKPOINT_LOADED": ("run.resume", "simic.training"),
        "CHECKPOINT_SAVED": ("run.resume", "simic.training"),
        "COMMAND_EXECUTED": ("tolaria.narrator",),
        "COMMAND_FAILED": ("tolaria.narrator",),
        "COMMAND_ISSUED": ("tolaria.narrator",),
        "COMPUTE_SPENT": ("tolaria.narrator",),
        "COUNTERFACTUAL_COMPUTED": ("tolaria.narrator",),
        "COUNTERFACTUAL_UNAVAILABLE": ("tolaria.narrator",),
        "DEGRADATION_DETECTED": ("simic.detectors",),
        "EPISODE_ENDED": ("tolaria.narrator",),
        "EPISODE_STARTED": ("tolaria.narrator",),
        "EPOCH_COMPLETED": ("tolaria.narrator",),
        "GOVERNOR_PANIC": ("tolaria.governor",),
        "GOVERNOR_ROLLBACK": ("tolaria.governor",),
        "GOVERNOR_SNAPSHOT": ("tolaria.governor",),
        "HEAD_COLLAPSE_DETECTED": ("simic.detectors",),
        "IMPROVEMENT_DETECTED": ("simic.detectors",),
        "ISOLATION_VIOLATION": ("kasmina.slot",),
        "MEMORY_WARNING": ("simic.detectors",),
        "MODEL_EXPORTED": ("library", "scripts.heuristic"),
        "NUMERICAL_INSTABILITY_DETECTED": ("simic.detectors",),
        "PERFORMANCE_DEGRADATION": ("simic.detectors",),
        "PLATEAU_DETECTED": ("simic.detectors",),
        "PPO_UPDATE_COMPLETED": ("simic.vectorized",),
        "RATIO_COLLAPSE_DETECTED": ("simic.detectors",),
        "RATIO_EXPLOSION_DETECTED": ("simic.detectors",),
        "REWARD_COMPUTED": ("simic.scribe",),
        "REWARD_HACKING_SUSPECTED": ("simic.detectors",),
        "SEED_ALPHA_RETARGETED": ("kasmina.slot",),
        "SEED_FOSSILIZED": ("kasmina.slot",),
        "SEED_GATE_EVALUATED": ("kasmina.slot",),
        "SEED_GERMINATED": ("kasmina.slot",),
        "SEED_PRUNED": ("kasmina.slot",),
        "SEED_STAGE_CHANGED": ("kasmina.slot",),
        "TELEMETRY_DROPPED": ("nissa.hub",),
        "TELEMETRY_LEVEL_SET": ("nissa.hub",),
        "TRAINING_ENDED": ("run.session",),
        "TRAINING_STARTED": ("run.session",),
        "TRANSITION_VETOED": ("kasmina.slot", "tolaria.governor"),
        "VALUE_COLLAPSE_DETECTED": ("simic.detectors",),
        "WORKER_REPLACED": ("simic.workers",),
        "action_distribution": ("simic.scribe",),
        "diagnostic_snapshot": ("nissa.diagnostics",),
        "last_action": ("simic.scribe",),
        "mask_hit_rates": ("simic.scribe",),
        "reward_summary": ("simic.scribe",),
        "throughput": ("simic.vectorized",),
    }
)
"""name of an event, or kind of an ``ANALYTICS_SNAPSHOT`` -> the modules that emit it."""
