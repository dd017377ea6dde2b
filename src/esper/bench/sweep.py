"""A sweep: settings that Optuna chooses, each trial a run of its own on the same seeds as every other.

A sweep that was killed goes on as if nothing had been: a trial's draws follow from the sweep's seed, its number and the
trials before it. Only where it was killed in the moment in which a trial is chosen, that number is gone. Validation
chooses; the test split is looked at only to compare what was chosen with the settings that the sweep started from.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from esper.karn.runs import describe_run
from esper.karn.stats import Interval, described
from esper.leyline import DataError, EsperError, MissingExtraError, UsageError, unknown
from esper.leyline import TelemetryEventType as T
from esper.leyline.files import Folder
from esper.nissa.reader import read_journal
from esper.run.config import CommonConfig, flag_of, resolve
from esper.tolaria.rng import derive

BASE: Final = "base"
"""The run without any of the sweep's choices."""
STUDY: Final = "sweep.db"
SHARED: Final = frozenset(
    {"task", "seed", "episodes", "run_dir", "device", "threads", "quiet", "telemetry_level", "telemetry_lifecycle_only"}
)
"""Settings that all trials have in common: they would not be compared on the same seeds, or say nothing of a result."""

NEED: Final = "NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=VALUE|VALUE is needed"


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that is searched: between ``low`` and ``high``, or one of ``values``, as a configuration has them."""

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    values: tuple[str, ...] = ()

    def value(self, chosen: Any) -> Any:
        """What Optuna chose, as a configuration takes it."""
        return _literal(chosen) if self.values else chosen

    def distribution(self) -> Any:
        """For Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.values:
            return CategoricalDistribution(self.values)
        if self.low is None or self.high is None:
            raise RuntimeError("an axis has bounds or values")
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def axis(of: type[CommonConfig], text: str) -> Axis:
    """Read ``NAME=LOW..HIGH``, ``NAME=LOW..HIGH:log`` or ``NAME=VALUE|VALUE``. Raises ``UsageError``."""
    name, equals, said = text.partition("=")
    name = name.strip().replace("-", "_")
    known = [each.name for each in fields(of) if flag_of(each) is not None and each.name not in SHARED]
    if not equals or not said:
        raise UsageError(f"--over {text!r}: {NEED}")
    if name in SHARED:
        raise UsageError(f"--over {text!r}: {name} is the same in every trial")
    if name not in known:
        raise unknown("setting", name, known)
    found = _span(of, name, text, said) if ".." in said else Axis(name, values=tuple(said.split("|")))
    ends = found.values or (found.low, found.high)
    if len(set(ends)) < 2:
        raise UsageError(f"--over {text!r}: {'two values' if found.values else 'two bounds'} or more are needed")
    for end in ends:
        resolve(of, {name: int(end) if found.whole and end is not None else found.value(end)})
    return found


def _span(of: type[CommonConfig], name: str, text: str, said: str) -> Axis:
    bounds, _, scale = said.partition(":")
    if scale not in ("", "log"):
        raise UsageError(f"--over {text!r}: scale {scale!r}; legal: log")
    kind = get_type_hints(of)[name]
    parts = set(get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)) - {NoneType}
    if not parts <= {int, float}:
        raise UsageError(f"--over {text!r}: {name} is no number; {name}=VALUE|VALUE is needed")
    whole = float not in parts
    try:
        low, high = (int(each) if whole else float(each) for each in bounds.split(".."))
    except ValueError:
        what = "whole numbers" if whole else "numbers"
        raise UsageError(f"--over {text!r}: LOW..HIGH must be two {what}") from None
    if not low <= high:
        raise UsageError(f"--over {text!r}: LOW is above HIGH")
    if scale and not low > 0:
        raise UsageError(f"--over {text!r}: a logarithmic scale begins above 0")
    return Axis(name, low, high, bool(scale), whole)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What is searched, and how long."""

    kind: str
    """Of the runs, as ``esper train`` names them."""
    settings: Mapping[str, Any]
    """What every trial is given."""
    axes: tuple[Axis, ...]
    trials: int = 20
    seed: int = 0
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError(f"trials is {self.trials}; it must be 1 or more")
        if not self.axes:
            raise UsageError(f"nothing is searched: --over {NEED}")
        names = [each.name for each in self.axes]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"--over names {name} twice")

    @property
    def identity(self) -> str:
        """What must not change when a sweep goes on; it may become longer."""
        return json.dumps({**asdict(self), "trials": None}, sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """A run's episodes: seed -> metric, and how it went."""

    name: str
    chosen: Mapping[str, Any]
    validation: Mapping[int, float] = field(default_factory=dict)
    test: Mapping[int, float] = field(default_factory=dict)
    why: str | None = None
    """Why there is no result."""

    @property
    def mean(self) -> float:
        """Over its seeds, by validation."""
        return sum(self.validation.values()) / len(self.validation)


Play = Callable[[Mapping[str, Any], Path, bool], None]
"""``(settings, run directory, go on)``: play a run to its end, or go on with it. Raises ``EsperError``."""


def sweep(plan: SweepPlan, folder: Path, play: Play, tell: Callable[[TrialResult], None]) -> list[TrialResult]:
    """Play what is missing, in ``folder``; returns the base run, then every trial. Called again it goes on.

    Raises ``UsageError`` where the folder holds another sweep or another process is at it, and what the base run
    raises: no trial can mend that. A trial that fails is told of, and others follow.
    """
    with _opened(plan, folder) as study:
        base = _run(plan, folder, BASE, {}, play)
        if base.why is not None:
            raise UsageError(f"the settings that the sweep starts from cannot be run: {base.why}")
        tell(base)
        found = [base]
        for number, chosen in _trials(plan, study):
            settings = {each.name: each.value(chosen[each.name]) for each in plan.axes}
            result = _run(plan, folder, f"trial-{number:04d}", settings, play)
            _tell(study, number, result)
            tell(result)
            found.append(result)
        return found


@contextmanager
def _opened(plan: SweepPlan, folder: Path) -> Iterator[Any]:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("a sweep", "sweep") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    with Folder.open(folder) as held:
        try:
            held.lock()
        except BlockingIOError:
            raise UsageError(f"{folder}: another process is at this sweep") from None
        _require_own(folder)
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{folder / STUDY}")
            study = optuna.create_study(
                study_name="sweep",
                storage=storage,
                direction="maximize" if plan.higher_is_better else "minimize",
                load_if_exists=True,
            )
        except Exception as error:  # the database's own errors are of several packages
            raise DataError(f"{folder / STUDY}: not a sweep's study: {str(error).splitlines()[0]}") from error
        said = study.user_attrs.get("plan")
        if said is None:
            study.set_user_attr("plan", plan.identity)
        elif said != plan.identity:
            raise UsageError(f"{folder}: holds a sweep of other settings or ranges; go on with those")
        try:
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _require_own(folder: Path) -> None:
    """What killed runs leave is removed, so that what bears their names must be theirs. Raises ``UsageError``."""
    if (folder / STUDY).exists():
        return
    taken = next((path for path in (folder / BASE, *sorted(folder.glob("trial-*"))) if path.exists()), None)
    if taken is not None:
        raise UsageError(f"{folder}: holds no sweep, but {taken.name}, which a sweep would write; name another folder")


def _trials(plan: SweepPlan, study: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(number, what was chosen)`` of every trial, those that are done first; each is told of before the next."""
    import optuna

    done = 0
    for trial in study.get_trials(deepcopy=False):
        if set(trial.params) != {each.name for each in plan.axes}:
            # killed while it was chosen: it never was a trial
            if not trial.state.is_finished():
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            continue
        if done < plan.trials:
            yield trial.number, trial.params
        done += 1
    while done < plan.trials:
        number = len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(seed=derive(plan.seed, "sweep", number) % 2**32)
        trial = study.ask({each.name: each.distribution() for each in plan.axes})
        yield trial.number, trial.params
        done += 1


def _tell(study: Any, number: int, result: TrialResult) -> None:
    import optuna

    if study.get_trials(deepcopy=False)[number].state.is_finished():
        return
    if result.why is None and math.isfinite(result.mean):
        study.tell(number, result.mean)
    else:
        study.tell(number, state=optuna.trial.TrialState.FAIL)


def _run(plan: SweepPlan, folder: Path, name: str, chosen: Mapping[str, Any], play: Play) -> TrialResult:
    """A run's results; what is missing of it is played."""
    path, why = folder / name, None
    state = describe_run(path).end_status if path.exists() else None
    if state == "failed" and name == BASE:
        # what it failed of may have been mended since
        shutil.rmtree(path)
        state = None
    if state not in ("completed", "failed"):
        going_on = any((path / "checkpoints").glob("ckpt-*"))
        if path.exists() and not going_on:
            # killed before its first checkpoint
            shutil.rmtree(path)
        try:
            play({**plan.settings, **chosen, "run_dir": str(path)}, path, going_on)
        except EsperError as error:
            why = str(error)
        except Exception as error:
            # what torch says where memory does not suffice, and what else a setting brings about
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    elif state == "failed":
        why = "the run failed"
    if why is not None:
        return TrialResult(name, dict(chosen), why=why)
    return TrialResult(name, dict(chosen), *_results(path))


def _results(path: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Seed -> validation and test metric of the arm that the run is about; a learner's latest episode of each."""
    validation: dict[int, float] = {}
    test: dict[int, float] = {}
    about: str | None = None
    for event in read_journal(path):
        data = event.data
        if event.event_type is T.TRAINING_STARTED:
            about = data.get("policy")
        if event.event_type is not T.EPISODE_ENDED or data.get("arm") != about:
            continue
        validation[data["seed"]] = data["validation_metric"]
        if "test_metric" in data:
            test[data["seed"]] = data["test_metric"]
    if not validation:
        raise DataError(f"{path}: no episode of {about} was validated")
    return validation, test


def best_of(plan: SweepPlan, found: Sequence[TrialResult]) -> TrialResult | None:
    """The trial that validates best, the first of equals; ``None`` where all failed."""
    trials = [each for each in found[1:] if each.why is None and math.isfinite(each.mean)]
    sign = 1.0 if plan.higher_is_better else -1.0
    return max(trials, key=lambda each: sign * each.mean, default=None)


def lead(plan: SweepPlan, best: TrialResult, base: TrialResult) -> Interval | None:
    """By how much the best trial is better than the base on the test split, paired by seed."""
    sign = 1.0 if plan.higher_is_better else -1.0
    return described([sign * (best.test[seed] - base.test[seed]) for seed in base.test if seed in best.test])
