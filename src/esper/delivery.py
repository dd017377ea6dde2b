"""What growing leaves behind: a plain model, its evidence, and where both are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from esper.karn.evidence import RunEvidence
from esper.karn.notebook import evidence_html
from esper.karn.report import as_text, markdown, read_evidence, write_report
from esper.kasmina.applied import tell_of_adapters
from esper.leyline import TelemetryEventType, UsageError
from esper.run.open import Job, RunOpening, open_run
from esper.run.session import Session
from esper.run.together import how_to_go_on, tell
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.executor import EpisodeResult, Executor


@dataclass(frozen=True, slots=True, repr=False)
class GrowResult:
    """The result of growing."""

    model: nn.Module
    """A plain model in evaluation mode, which needs no Esper. Of a sharded host it is on rank 0 alone."""
    report: RunEvidence
    """The evidence for every seed. ``print(result)`` shows it as a page, a notebook with the grown network."""
    run_dir: Path
    """Holds the journal, the report and the exported model."""
    epoch: int
    """After which the model was as it is here; none was better on validation."""
    delivered: str
    """``last``, as training left it, or ``best``. Validation chose it, so that its figure there flatters it."""

    def __str__(self) -> str:
        return as_text(markdown(self.report, (), ()))

    def __repr__(self) -> str:
        return (
            f"GrowResult(model={type(self.model).__name__}(...), epoch={self.epoch}, run_dir={str(self.run_dir)!r},"
            f" report={self.report!r})"
        )

    def _repr_html_(self) -> str:
        return evidence_html(self.report, self.run_dir)


class Elsewhere(nn.Module):
    """Stands for the plain model of a host that was spread over processes, where rank is not 0."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ``UsageError``."""
        raise UsageError(f"the plain model was put together on rank 0 alone; it is in {self.path}, model.load() there")


class Delivery:
    """What a run leaves, whatever ends it: the model and its files, then the report."""

    def __init__(self) -> None:
        self.executor: Executor | None = None
        """Once there is one."""
        self.over = False
        """Whether the run is closed."""
        self.how: Callable[[], str] | None = None
        """What to do where a rank was lost, if it is not what the library's own user does."""
        self._session: Session | None = None
        self._episode: EpisodeResult | None = None
        self._grown: nn.Module | None = None
        self._result: GrowResult | None = None

    @property
    def session(self) -> Session:
        """Once the run is open."""
        assert self._session is not None
        return self._session

    @contextmanager
    def outlasting(self, opening: RunOpening, job: Job) -> Iterator[None]:
        """Open the run; when it is closed again the result is made, after an error from the best state so far."""
        try:
            with open_run(opening, job) as session:
                self._session = session
                if self.executor is not None:
                    self.executor.scratch = session.path
                try:
                    yield
                except BaseException as error:
                    if (lost := session.ranks.lost(error)) is None:
                        self._salvage(error)
                        raise
                    tell(lost, how_to_go_on(opening.about, session.directory) if self.how is None else self.how())
                    session.stop.end()  # what is left is written, whatever the launcher sends
                    self._salvage(lost)
                    raise lost from lost.__cause__
        except BaseException as error:
            self.over = True
            if self._grown is not None and self.session.writes:
                self._result = self._reported()
                error.add_note(f"The model of epoch {self.result().epoch} is in {self.result().run_dir / 'model'}")
            raise
        self.over = True
        if self._grown is not None:
            told = self.session.ranks.first(lambda: replace(self._reported(), model=nn.Identity()))
            self._result = replace(told, model=self._grown)

    def write(self, episode: EpisodeResult) -> None:
        """Write what the episode delivers as a plain model."""
        engine, session = self._engine, self.session
        self._episode = episode
        if not self._spread:
            if session.writes:
                self._save()
            self._grown = engine.materialise(0)
            return

        def deliver() -> None:
            self._save()
            self._grown = engine.materialise(0)

        with engine.put_together(0):
            session.ranks.first(deliver)
        if not session.writes:
            self._grown = Elsewhere(session.directory.model)

    def _save(self) -> None:
        exported = self._engine.save(0, self.session.directory.model)
        self.session.say(TelemetryEventType.MODEL_EXPORTED, **exported.payload())

    @property
    def _spread(self) -> bool:
        """Whether each rank has a part of the model."""
        return self._engine.trainer(0).model.sharding is not None

    @property
    def _engine(self) -> ModuleEngine:
        assert self.executor is not None and isinstance(self.executor.engine, ModuleEngine)
        return self.executor.engine

    def result(self) -> GrowResult:
        """Raises ``UsageError`` before it is there."""
        if self._result is None:
            raise UsageError("the grown model is there when the with block has ended, after one epoch or more")
        return self._result

    def _salvage(self, error: BaseException) -> None:
        """Deliver the best state so far; what goes wrong with that is a note on the error that was there before."""
        if self.executor is None or self._grown is not None or not self.session.writes:
            return
        if self.executor.envs and self._spread:
            return  # a part of it is with others, who may be gone
        interrupted = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            results = self.executor.salvage(getattr(error, "status", interrupted))
            if results is not None:
                self.write(results[0])
        except Exception as another:
            error.add_note(f"The model so far could not be written: {type(another).__name__}: {another}")

    def _reported(self) -> GrowResult:
        """Write the report."""
        assert self._grown is not None and self._episode is not None
        path = self.session.path
        write_report(path)
        tell_of_adapters(self._grown, path)
        told = self._episode
        assert told.delivered and told.delivered_epoch is not None
        return GrowResult(self._grown, read_evidence(path)[0], path, told.delivered_epoch, told.delivered)
