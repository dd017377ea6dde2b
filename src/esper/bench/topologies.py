"""Search over topologies by Optuna, for who does not know what to build: random, or TPE with Hyperband's pruning.

    search = TopologySearch(SEARCHES["search-tpe"], sizes, seed, epochs, higher_is_better)
    candidate = search.ask()
    search.report(candidate, epoch, metric)   # whether to stop it
    search.tell(candidate, metric)

Optuna's Hyperband assigns brackets by the name of the study, which is therefore fixed, and its samplers may propose
what was tried before: that is answered with what is known and not trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from esper.leyline import MissingExtraError

EMPTY: Final = "nothing"
"""In a slot that stays empty."""
STARTUP: Final = 4
"""Topologies that TPE draws at random before it models; Optuna's 10 are more than there is compute for."""
MOST_REPEATS: Final = 200
"""Known topologies in a row after which the space counts as searched."""


@dataclass(frozen=True, slots=True)
class Searching:
    """How Optuna searches."""

    tpe: bool
    """Tree-structured Parzen estimators (Bergstra et al., 2011), else random."""
    pruned: bool
    """Whether Hyperband (Li et al., 2018) stops what falls behind, else everything is trained to its end."""


SEARCHES: Final[Mapping[str, Searching]] = {
    "search-random": Searching(tpe=False, pruned=False),
    "search-tpe": Searching(tpe=True, pruned=True),
}
"""Arm -> how it searches."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A topology to be trained."""

    topology: Mapping[str, str]
    """slot -> blueprint; slots that stay empty are left out."""
    asked: Any
    """Optuna's own trial."""


class TopologySearch:
    """Proposes topologies, and learns from how they did."""

    def __init__(
        self,
        how: Searching,
        sizes: Mapping[str, Mapping[str, int]],
        seed: int,
        epochs: int,
        higher_is_better: bool = True,
    ) -> None:
        """``sizes``: slot -> blueprints that fit; ``epochs`` is how long one is trained at most.

        Raises ``MissingExtraError`` without Optuna.
        """
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("searching topologies", "sweep") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sizes = {slot: tuple(fitting) for slot, fitting in sizes.items() if fitting}
        self._known: dict[tuple[tuple[str, str], ...], float | None] = {}
        self._states = optuna.trial.TrialState
        sampler = (
            optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=STARTUP)
            if how.tpe
            else optuna.samplers.RandomSampler(seed=seed % 2**32)
        )
        pruner = (
            optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
            if how.pruned
            else optuna.pruners.NopPruner()
        )
        directions = optuna.study.StudyDirection
        direction = directions.MAXIMIZE if higher_is_better else directions.MINIMIZE
        self._study = optuna.create_study(study_name="topology", sampler=sampler, pruner=pruner, direction=direction)

    def ask(self) -> Candidate | None:
        """A topology that was not trained yet; ``None`` where there seems to be none left."""
        for _ in range(MOST_REPEATS):
            asked = self._study.ask()
            drawn = {slot: asked.suggest_categorical(slot, (EMPTY, *fits)) for slot, fits in self._sizes.items()}
            topology = {slot: name for slot, name in drawn.items() if name != EMPTY}
            if _key(topology) not in self._known:
                return Candidate(topology, asked)
            self._answer(asked, self._known[_key(topology)])
        return None

    def report(self, candidate: Candidate, epoch: int, metric: float) -> bool:
        """Whether it is to be stopped after ``epoch`` epochs, with this validation metric."""
        candidate.asked.report(metric, epoch)
        return bool(candidate.asked.should_prune())

    def tell(self, candidate: Candidate, metric: float | None) -> None:
        """Its best validation metric; ``None`` where training failed."""
        self._known[_key(candidate.topology)] = metric
        self._answer(candidate.asked, metric)

    def _answer(self, asked: Any, metric: float | None) -> None:
        if metric is None:
            self._study.tell(asked, state=self._states.FAIL)
        else:
            self._study.tell(asked, metric)


def _key(topology: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(topology.items()))
