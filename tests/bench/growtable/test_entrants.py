"""What ``--policy`` names, and what is said of what is no policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up_tables import A, made_up_host

from esper.bench.growtable.entrants import entrant
from esper.bench.growtable.env import GrowTableEnv
from esper.bench.growtable.score import Tally, walk
from esper.bench.growtable.table import Table
from esper.leyline import Op, UsageError
from esper.tamiyo.policies.learned import PACKAGED

CODE = """
import numpy as np
from esper import EnvPolicy
from esper.leyline import WAIT, Blend, Decision, FactoredAction, Op

class AtOnce(EnvPolicy):
    name = "at_once"
    tempo = 1
    def decide_env(self, env, view):
        if view.epoch == 0:
            return Decision(FactoredAction(Op.GERMINATE, "block0", "conv5", Blend.LINEAR, 1.0, self.tempo), "at once")
        return Decision(WAIT, "done")

class Slowly(AtOnce):
    tempo = 3

class Raises(AtOnce):
    def decide_env(self, env, view):
        return view.nothing

class Nonsense(AtOnce):
    def decide(self, views):
        return [None]

one = AtOnce()
last = lambda observation, mask: np.flatnonzero(mask)[-1]
illegal = lambda observation, mask: int(np.flatnonzero(~mask)[0])
words = lambda observation, mask: "grow"
nothing = lambda observation, mask: None
ragged = lambda observation, mask: [[1], [1, 2]]
far = lambda observation, mask: 10**6
divides = lambda observation, mask: 1 // 0
unary = lambda observation: 0
seven = lambda: 7
number = 7
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_of_entrants.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)


def play(reference: str) -> tuple[object, Tally]:
    one, tally, host = entrant("x", f"mine_of_entrants:{reference}"), Tally(), made_up_host(0)
    return walk(host, tally.of(one.player)(host, 0)).sequences[0], tally


@pytest.mark.parametrize("reference", ["AtOnce", "one", "last"])
def test_classes_objects_and_functions_play(reference: str) -> None:
    played, tally = play(reference)
    assert (tally.asked, tally.refused, tally.first) == (12, 0, None)
    assert reference == "last" or played == (A,)


@pytest.mark.parametrize(
    ("reference", "refused", "first"),
    [
        ("Slowly", 1, "GERMINATE conv5 block0 linear 1.0 3, on host 0 of digits after 0 epochs"),
        ("illegal", 12, "GERMINATE "),
    ],
)
def test_what_is_illegal_is_counted_and_becomes_wait(reference: str, refused: int, first: str) -> None:
    played, tally = play(reference)
    assert played == () and (tally.asked, tally.refused) == (12, refused)
    assert tally.first is not None and tally.first.startswith(first)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("missing", "has no attribute 'missing'"),
        ("number", "is a int and cannot be called; legal: a callable"),
        ("seven", "made a int; legal: a callable"),
        ("unary", "takes 1 arguments; legal: a callable"),
        ("words", "gave a str, 'grow'; legal: one integer from 0 to "),
        ("nothing", "gave a NoneType, None; legal: one integer"),
        ("ragged", "gave a list, [[1], [1, 2]]; legal: one integer"),
        ("far", "gave a int, 1000000; legal: one integer"),
        ("divides", "raised ZeroDivisionError: integer division or modulo by zero, in "),
        ("Raises", "raised AttributeError: 'EnvView' object has no attribute 'nothing', in "),
        ("Nonsense", "decided a list, [None]; legal: a list of one Decision a view"),
    ],
)
def test_what_is_no_policy_is_said_in_one_line(reference: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        play(reference)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert f"'mine_of_entrants:{reference}'" in str(caught.value)


def test_a_function_is_shown_what_the_environment_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    host, seen = made_up_host(0), []

    def first(observation: np.ndarray, mask: np.ndarray) -> int:
        seen.append((observation, mask))
        return int(np.flatnonzero(mask)[0])

    monkeypatch.setattr("mine_of_entrants.last", first)
    env = GrowTableEnv(table=Table([host], {}), worlds="digits", actions="joint")
    observation, _ = env.reset(seed=0)
    entrant("x", "mine_of_entrants:last").player(host, 0)(host.root)
    assert np.array_equal(seen[0][0], observation) and np.array_equal(seen[0][1], env.action_masks())


def test_a_policy_by_name_plays_as_that_policy() -> None:
    one, host = entrant("x", "heuristic"), made_up_host(0)
    assert one.policy is not None and one.policy.name == "heuristic" and one.training_macs == 0
    assert walk(host, one.player(host, 0)).ended


@pytest.mark.parametrize("name", list(PACKAGED))
def test_a_packaged_policy_by_name_plays_as_its_file(name: str) -> None:
    named, filed = entrant("x", name), entrant("x", str(PACKAGED[name]))
    seen = []
    for one in (named, filed):
        asked, host = [], made_up_host(0)
        choose = one.player(host, 0)
        walk(host, lambda node, choose=choose, asked=asked: asked.append(choose(node)) or asked[-1])  # type: ignore[misc]
        seen.append(asked)
    assert seen[0] == seen[1] and any(action.op is Op.GERMINATE for action in seen[0])
    assert named.training_macs == filed.training_macs > 0


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="cannot import 'nowhere_of_entrants'.*PYTHONPATH"):
        entrant("x", "nowhere_of_entrants:f")
