"""Contracts (leyline: the lines everything runs along). Stages, gates, events and their payloads, actions,
observations, views, protocols. Data and enums only; importing it loads no torch.
"""

from esper.leyline.actions import (
    ALPHA_TARGETS,
    BLENDS,
    HEADS,
    RELEVANT_HEADS,
    TEMPOS,
    WAIT,
    ActionOutcome,
    ActionSpace,
    Blend,
    Decision,
    FactoredAction,
    Op,
)
from esper.leyline.decoding import as_type, decode_json
from esper.leyline.errors import DataError, EsperError, MissingExtraError, UsageError, unknown
from esper.leyline.gates import GateCheck, GateResult, GateThresholds
from esper.leyline.metric import Metric
from esper.leyline.mixing import Positions, SiteMixing
from esper.leyline.observation import Feature, ObservationLayout
from esper.leyline.payloads import REGISTRY, PayloadSpec
from esper.leyline.plugins import load_attribute, plugins_in
from esper.leyline.protocols import (
    AlphaConfig,
    EnvCost,
    EnvSpec,
    EpochMeasurement,
    EvalResult,
    HostEngine,
    ModelExport,
    Policy,
    Settled,
    Sink,
    TrainResult,
)
from esper.leyline.stages import GATE_FOR, LEGAL_MOVES, LIVE, PRUNABLE, GateLevel, SeedStage
from esper.leyline.telemetry import SCHEMA_VERSION, SEVERITIES, Delivery, Severity, TelemetryEvent, TelemetryEventType
from esper.leyline.text import visible
from esper.leyline.views import EnvView, Fact, KeptView, Paired, Promise, SlotFacts, SlotView

__all__ = [
    "ALPHA_TARGETS",
    "BLENDS",
    "GATE_FOR",
    "HEADS",
    "LEGAL_MOVES",
    "LIVE",
    "PRUNABLE",
    "REGISTRY",
    "RELEVANT_HEADS",
    "SCHEMA_VERSION",
    "SEVERITIES",
    "TEMPOS",
    "WAIT",
    "ActionOutcome",
    "ActionSpace",
    "AlphaConfig",
    "Blend",
    "DataError",
    "Decision",
    "Delivery",
    "EpochMeasurement",
    "EsperError",
    "EvalResult",
    "FactoredAction",
    "Fact",
    "Feature",
    "GateCheck",
    "GateLevel",
    "GateResult",
    "GateThresholds",
    "HostEngine",
    "Metric",
    "MissingExtraError",
    "ModelExport",
    "ObservationLayout",
    "Op",
    "Paired",
    "PayloadSpec",
    "Policy",
    "Promise",
    "Positions",
    "EnvCost",
    "EnvSpec",
    "EnvView",
    "SeedStage",
    "Settled",
    "Severity",
    "Sink",
    "SiteMixing",
    "SlotFacts",
    "KeptView",
    "SlotView",
    "TelemetryEvent",
    "TelemetryEventType",
    "TrainResult",
    "UsageError",
    "as_type",
    "decode_json",
    "load_attribute",
    "plugins_in",
    "visible",
    "unknown",
]
