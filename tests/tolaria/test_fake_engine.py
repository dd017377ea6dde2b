"""The fake must pass what real engines pass, or tests on it prove nothing."""

from __future__ import annotations

from engine_conformance import EngineConformance
from fake_engine import FakeEngine

from esper.leyline import HostEngine


class TestFakeEngine(EngineConformance):
    def make_engine(self) -> HostEngine:
        return FakeEngine()
