"""A learned policy that plays, and its file: tensors in safetensors, sizes and card as JSON in the file's header."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import msgspec
import safetensors
import torch
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from torch import Tensor

from esper.leyline import WAIT, DataError, Decision, EnvSpec, EnvView, FactoredAction, UsageError, as_type, decode_json
from esper.leyline.decoding import safetensors_header, told
from esper.leyline.files import read_regular, write_atomically
from esper.tamiyo.batch import action_space, observe, tables
from esper.tamiyo.distribution import FactoredDistribution
from esper.tamiyo.features import LAYOUT
from esper.tamiyo.heads import growth_heads
from esper.tamiyo.masks import availability, to_action
from esper.tamiyo.network import GrowthNetwork, GrowthNetworkConfig
from esper.tamiyo.policies.nurture import Nurture, Offer
from esper.tamiyo.recurrent import State, acting_macs
from esper.tolaria.rng import derive

FORMAT: Final = "esper-policy-1"
SHIPPED: Final = "esper-v1"
"""The policy that comes with the package; ``docs/growtable.md`` says how it was made and what it is worth."""
READER: Final = "esper-v2"
"""Another in the package, which reads what places promise; ``docs/growtable.md`` says what that is worth."""
PACKAGED: Final = MappingProxyType(
    {name: Path(__file__).with_name(f"{name}.safetensors") for name in (SHIPPED, READER)}
)
"""Name -> file of every learned policy in the package."""
SHIPPED_FILE: Final = PACKAGED[SHIPPED]
POLICY_BYTES: Final = 1 << 28
ROWS: Final = 8
"""Rows of every inference: a matrix product of another shape rounds differently, and one bit can turn a choice."""


@dataclass(frozen=True, slots=True)
class SavedPolicy:
    """A network with the card that says where it comes from."""

    network: GrowthNetwork
    card: dict[str, Any]
    nurture: bool
    """Whether it was trained to choose growth alone, with rules for the rest."""
    auditions: bool = False
    """Whether in training it saw what places promise before anything could grow: rules have it measured, and nothing
    grows before it was heard."""

    @property
    def training_macs(self) -> int:
        """Multiply-accumulates of everything that made it, as its card has them; 0 where it has none."""
        parts = ("policy_macs", "table_macs", "tuning_macs", "run_macs", "earlier_macs")
        return sum(self.card.get(part, 0) for part in parts)

    def player(self, *, greedy: bool | None = None, name: str = "ppo") -> LearnedPolicy:
        """The policy as it was trained to play. Unless told, it takes its likeliest choices where rules do the rest, as
        it was scored, and draws where every choice is its own.
        """
        greedy = self.nurture if greedy is None else greedy
        nurture = Nurture(auditions=self.auditions) if self.nurture else None
        return LearnedPolicy(self.network, greedy=greedy, nurture=nurture, name=name)


@dataclass(frozen=True, slots=True)
class Written:
    """How large the file is and how long it took."""

    bytes: int
    seconds: float


def save_policy(
    path: Path, network: GrowthNetwork, card: Mapping[str, Any], *, nurture: bool = False, auditions: bool = False
) -> Written:
    """Write the policy as one file, atomically. ``card`` is JSON that says where it comes from; the rest is as in
    :class:`SavedPolicy`. Raises ``UsageError`` for auditions without rules that could ask for them.
    """
    if auditions and not nurture:
        raise UsageError("a policy that chooses everything itself has no rules that audition places for it")
    began = time.perf_counter()
    what = {"nurture": nurture, "auditions": auditions, "card": dict(card)}
    about = {"format": FORMAT, "network": network.config.to_dict(), **what}
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    content = pack(tensors, metadata={"esper": json.dumps(about, allow_nan=False)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return Written(len(content), time.perf_counter() - began)


def load_policy(path: Path) -> SavedPolicy:
    """Undo of :func:`save_policy`. Raises ``DataError`` for a file that is missing, damaged or no policy, and
    ``UsageError`` for one that was made for observations of another layout.
    """
    where = f"policy {path}"
    try:
        content = read_regular(path, POLICY_BYTES, follow=True)
        header = safetensors_header(content, where)
        tensors = unpack(content)
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{where}: {told(error)}") from error
    about = decode_json(header.get("esper", "null"), where)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise DataError(f"{where}: the format is {told(repr(found))}; {FORMAT!r} is needed")
    known = as_type(about, where, _About)
    as_type(known.card, f"{where}: its card", _Card)
    sizes = GrowthNetworkConfig.from_dict(known.network)
    if wrong := sizes.unlike({name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise DataError(f"{where}: its tensors do not fit its sizes: {wrong}")
    if wrong := sizes.misfit(LAYOUT):
        raise UsageError(f"{where}: {wrong}")
    network = GrowthNetwork(sizes)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{where}: its tensors do not fit its sizes: {told(error)}") from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise DataError(f"{where}: it holds weights that are not finite")
    return SavedPolicy(network, known.card, known.nurture, known.auditions)


class _About(msgspec.Struct, frozen=True):
    """The file's header."""

    format: str
    network: dict[str, Any]
    card: dict[str, Any]
    nurture: bool = False
    auditions: bool = False


_Macs = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Card(msgspec.Struct, frozen=True):
    """What is computed with in a card; the rest of it is for people."""

    task: str | None = None
    episode_length: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    policy_macs: _Macs = 0
    table_macs: _Macs = 0
    tuning_macs: _Macs = 0
    run_macs: _Macs = 0
    earlier_macs: _Macs = 0


def file_of(name: str) -> Path:
    """The file that is meant where a learned policy is named: one in the package by name, or a path."""
    return PACKAGED.get(name) or Path(name)


def training_macs(name: str) -> int:
    """:attr:`SavedPolicy.training_macs` of a policy's file, or of one in the package."""
    return load_policy(file_of(name)).training_macs


class LearnedPolicy:
    """Plays a network: draws from its distribution with a stream per row, or takes its likeliest choices.

    Implements :class:`esper.leyline.Policy`. It acts before every epoch, as it was trained to; the last word, after the
    last one, is the rules', or to wait where there are none.
    """

    def __init__(
        self, network: GrowthNetwork, *, greedy: bool = False, nurture: Nurture | None = None, name: str = "ppo"
    ) -> None:
        """With ``nurture`` it chooses what grows, where and when, and rules on evidence do the rest."""
        self.network = network.eval()
        self.name = name
        self.greedy = greedy
        self.nurture = nurture
        self._states: list[State] = []
        self._generators: list[torch.Generator] = []
        self._fresh: list[bool] = []
        self._macs: int | None = None

    @staticmethod
    def from_file(path: str | Path, *, greedy: bool | None = None) -> LearnedPolicy:
        """From a file that :func:`save_policy` wrote; see :meth:`SavedPolicy.player`."""
        return load_policy(Path(path)).player(greedy=greedy)

    @staticmethod
    def shipped() -> LearnedPolicy:
        """:data:`SHIPPED`."""
        return load_policy(SHIPPED_FILE).player(name=SHIPPED)

    @staticmethod
    def reader() -> LearnedPolicy:
        """:data:`READER`."""
        return load_policy(PACKAGED[READER]).player(name=READER)

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """Empty memory and a fresh stream for each row."""
        self._states = [self.network.initial_state(1) for _ in specs]
        self._generators = [torch.Generator().manual_seed(derive(spec.seed, "policy")) for spec in specs]
        self._fresh = [True for _ in specs]

    def state(self) -> dict[str, Any]:
        """Memory and place in its draws of every row, and a digest of the weights that they belong to."""
        return {
            "weights": self._digest(),
            "memory": [[part.flatten().tolist() for part in state] for state in self._states],
            "draws": [generator.get_state().numpy().tobytes() for generator in self._generators],
            "fresh": list(self._fresh),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`. Raises ``DataError`` where the weights are others."""
        if state["weights"] != self._digest():
            raise DataError("the learned policy's weights are not those that the saved state belongs to")
        self._states = [tuple(torch.tensor([part]) for part in row) for row in state["memory"]]
        self._fresh = list(state["fresh"])
        self._generators = [torch.Generator() for _ in state["draws"]]
        for generator, place in zip(self._generators, state["draws"], strict=True):
            generator.set_state(torch.frombuffer(bytearray(place), dtype=torch.uint8))

    def _digest(self) -> str:
        weights = {name: part.contiguous() for name, part in self.network.state_dict().items()}
        return hashlib.sha256(pack(weights)).hexdigest()

    @torch.no_grad()
    def decide(self, views: Sequence[EnvView]) -> list[Decision]:
        """One legal action per view; the evidence is the action's probability and the state's value."""
        if len(views) != len(self._states):
            raise UsageError(f"{len(views)} views for {len(self._states)} rows; reset the policy first")
        decisions: list[Decision] = []
        for begin in range(0, len(views), ROWS):
            decisions += self._decide(range(begin, min(begin + ROWS, len(views))), views)
        return decisions

    def _decide(self, rows: range, views: Sequence[EnvView]) -> list[Decision]:
        space = action_space(views[rows[0]])
        padded = [*rows, *(rows[0] for _ in range(ROWS - len(rows)))]
        batch = [views[row] for row in padded]
        state: State = tuple(torch.cat(parts) for parts in zip(*(self._states[row] for row in padded), strict=True))
        starts = torch.tensor([self._fresh[row] for row in padded])
        seen = observe(batch, space, self.network.config)
        output, after = self.network.step(seen, state, starts)
        if self._macs is None:
            self._macs = acting_macs(self.network, seen)
        heads = growth_heads(space)
        offers = [None if self.nurture is None else self.nurture.offer(view, space) for view in batch]
        available = [availability(v, space) if o is None else o.available for v, o in zip(batch, offers, strict=True)]
        distribution = FactoredDistribution(heads, output.logits, tables(available))
        actions, log_probs = self._choose(distribution, rows, len(heads))
        likely = log_probs.exp().tolist()
        decisions = []
        for i, row in enumerate(rows):
            self._states[row] = tuple(part[i : i + 1].clone() for part in after)
            self._fresh[row] = False
            evidence = (("probability", likely[i]), ("value", float(output.value[i])))
            decided = self._decision(views[row], to_action(space, actions[i].tolist()), offers[i], evidence)
            decisions.append(replace(decided, macs=self._macs))
        return decisions

    def _choose(self, distribution: FactoredDistribution, rows: range, heads: int) -> tuple[Tensor, Tensor]:
        if self.greedy:
            return distribution.mode()
        drawn = [torch.rand(heads, generator=self._generators[row]) for row in rows]
        return distribution.sample(torch.stack([*drawn, *(drawn[0] for _ in range(ROWS - len(rows)))]))

    def _decision(
        self, view: EnvView, action: FactoredAction, offer: Offer | None, evidence: tuple[tuple[str, float], ...]
    ) -> Decision:
        over = view.epoch >= view.max_epochs
        if offer is not None and (over or action == offer.otherwise.action):
            return offer.otherwise
        if over:
            return Decision(WAIT, "the last epoch is over")
        reason = "the learned policy's likeliest choice" if self.greedy else "the learned policy's draw"
        return Decision(action, reason, evidence)
