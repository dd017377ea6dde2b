"""Admission: what reading a host is worth, on tables whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up_tables import DIGITS, A, B, Worth, made_up_host

from esper.bench.growtable import report
from esper.bench.growtable.admit import Admission, admission
from esper.bench.growtable.hosts import Branches, Shape
from esper.bench.growtable.parts import Parts, PlayedSequence
from esper.bench.growtable.play import _Heard
from esper.bench.growtable.sequences import Choice, Choices, singles
from esper.bench.growtable.table import STORED, Table, load_table
from esper.bench.growtable.worlds import CANDIDATES, KNOWN, SLOTS, WORLDS, WorldSpec, chosen, task_of
from esper.kasmina.growing import GrowingModel
from esper.leyline import DataError, EnvSpec, EnvView, UsageError
from esper.scripts.main import main
from esper.tamiyo.policies import SchedulePolicy

LONG = replace(DIGITS, name="f-0", family="f")
SHORT = replace(LONG, name="f-1", epochs=9)
LIKE = replace(LONG, name="f-1")
"""Nothing that is seen tells it from the first."""


def best_is(wins: Choices) -> Worth:
    def worth(choices: Choices, number: int) -> tuple[float, float]:
        score = 50.0 + 20.0 * (choices == wins) + 0.1 * number
        return score, score - 1.0

    return worth


def judged(second: WorldSpec, wins: Choices, hosts: int = 4) -> Admission:
    kinds = ((LONG, (A,)), (second, wins))
    made = [made_up_host(n, worth=best_is(best), world=world) for world, best in kinds for n in range(hosts)]
    return admission("f", Table(made, {}))


def test_where_what_is_seen_tells_what_is_best_a_family_is_admitted() -> None:
    found = judged(SHORT, (B,))
    assert found.admitted and found.shown == "epochs" and found.p <= 0.05
    assert found.best == {"f-0": (A,), "f-1": (B,)} and found.hosts == 8
    # whichever of the two it is, the blind choice loses all on half of the hosts but for what its seed costs
    assert found.price.mean == pytest.approx(10.0, abs=1.0) and found.price == found.differs
    assert "| `f` | 8 | `-0` conv5 in block0 at 0; `-1` norm in block1 at 2 | " in report.admissions([found])
    assert report.admissions([found]).endswith("| **admitted** |")


def test_where_one_choice_is_best_everywhere_it_is_refused() -> None:
    found = judged(SHORT, (A,))
    assert found.price.mean == found.differs.mean == 0.0
    assert [each[:3] for each in found.refusals] == ["(a)", "(b)", "(c)"]


def test_where_nothing_is_seen_of_it_it_is_refused_whatever_there_is_to_win() -> None:
    found = judged(LIKE, (B,))
    assert found.differs.low is not None and found.differs.low > 5
    assert [each[:3] for each in found.refusals] == ["(b)", "(c)"]
    assert "refused: (b) nothing that is seen predicts them" in report.admissions([found])


def test_few_hosts_say_nothing() -> None:
    with pytest.raises(DataError, match="family f: not judged, 4 hosts; 3 of every world are needed"):
        judged(SHORT, (B,), hosts=2)


def test_hosts_that_admitted_a_held_out_family_are_not_what_is_scored_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"blueprints": ("conv5",), "times": (1,), "max_seeds": 1, "held_out": True}
    kinds = {"block0": replace(LONG, **few), "block1": replace(SHORT, **few)}
    for slot, world in kinds.items():
        wins = (Choice(1, slot, "conv5"),)
        for n in range(6):
            made = made_up_host(n, [(), *singles(world)], best_is(wins), world)
            for choices, record in made.records.items():
                Parts(tmp_path / "parts").write(PlayedSequence(world, n, choices, record))
        monkeypatch.setattr(f"made_up_tables.{slot}", world, raising=False)
    command = ["growtable", "admit", "--worlds", "made_up_tables:block0,made_up_tables:block1", "--seeds", "4"]
    command += ["--judge-only", "--parts", str(tmp_path / "parts"), "--output", str(tmp_path / "t.growtable")]
    judged, page = tmp_path / "judged.growtable", tmp_path / "page.md"
    page.write_text("<!-- bench growtable-admission: begin -->\n<!-- bench growtable-admission: end -->\n")
    assert main([*command, "--fresh", "2", "--judged", str(judged), "--into", str(page)]) == 0
    table = load_table(tmp_path / "t.growtable")
    assert [[host.number for host in table.of(name)] for name in ("f-0", "f-1")] == [[4, 5], [4, 5]]
    assert [host.number for host in load_table(judged).of("f-1")] == [0, 1, 2, 3], "those that it was judged by"
    first = page.read_text()
    assert "| `f` | 8 | " in first
    assert main(["growtable", "admit", "--table", str(judged), "--into", str(page)]) == 0
    assert page.read_text() == first, "the kept records give the same verdict"
    capsys.readouterr()
    assert main([*command, "--table", str(judged)]) == 2
    assert "all that it holds is judged; legal with it: --into" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_says_what_the_kept_records_give() -> None:
    table = load_table(STORED.with_name("judged.growtable")).level
    families = dict.fromkeys(table.of(name)[0].world.group for name in table.worlds)
    found = [admission(family, table) for family in families]
    admitted = {"branches", "branches-mnist1d", "branches-narrow", "one-left"}
    assert {each.family for each in found if each.admitted} == admitted
    page = Path(__file__).parents[3] / "docs" / "growtable.md"
    assert report.admissions(found) in page.read_text()


def test_a_table_is_level_where_every_world_of_a_family_has_the_same_hosts() -> None:
    table = Table([made_up_host(n, world=LONG) for n in (0, 1, 2)] + [made_up_host(n, world=SHORT) for n in (1, 2)], {})
    assert [(host.world.name, host.number) for name in ("f-0", "f-1") for host in table.level.of(name)] == [
        ("f-0", 1), ("f-0", 2), ("f-1", 1), ("f-1", 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "kind"), [(name, kind) for name in ("branches", "one-cut", "sighted") for kind in (0, 1)]
)
def test_seeds_may_sit_in_every_kind_of_host(host: str, kind: int) -> None:
    task = task_of(replace(CANDIDATES[f"{host}-{kind}"], depth=2))
    model = GrowingModel.wrap(task.host(), task.sites, task.data.train.inputs[:2])
    assert set(model.slots) == set(SLOTS)


def test_the_input_itself_goes_to_one_branch_and_others_to_the_rest() -> None:
    inputs, other = (task_of(CANDIDATES[f"branches-{kind}"]).data.train.inputs for kind in (0, 1))
    assert inputs.shape[1] == 3 and inputs.equal(other), "hosts of a family differ, their data does not"
    assert not inputs[:, 0].equal(inputs[:, 1])
    assert sorted(inputs[:, 0].flatten(1).sum(1).tolist()) == sorted(inputs[:, 2].flatten(1).sum(1).tolist())
    host = Branches(Shape(2, 8, 4, 1), 2)
    changed = inputs[:4].clone()
    changed[:, 0] = 0.0
    seen = []
    for block in (host.block0, host.block1, host.block2):
        block.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    host(inputs[:4])
    host(changed)
    assert [before.equal(after) for before, after in zip(seen[:3], seen[3:], strict=True)] == [True, True, False]


def test_an_audition_is_heard_in_the_first_epoch_alone() -> None:
    policy, none = (_Heard([SchedulePolicy()], world) for world in (CANDIDATES["branches-0"], DIGITS))
    for each in (policy, none):
        each.reset([EnvSpec(0, 0, 0, 12)])
    view = made_up_host(0).root.view
    assert policy.decide([view])[0].audition == tuple((slot, "conv5") for slot in SLOTS)
    later: EnvView = replace(view, epoch=1)
    assert policy.decide([later])[0].audition == ()
    assert none.decide([view])[0].audition == ()


def test_worlds_go_by_family_and_a_persons_own_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [world.name for world in chosen(["one-cut", "one-cut-1"])] == ["one-cut-0", "one-cut-1", "one-cut-2"]
    monkeypatch.setattr("made_up_tables.OWN", replace(DIGITS, name="own"), raising=False)
    assert chosen(["made_up_tables:OWN"])[0].name == "own"
    monkeypatch.setattr("made_up_tables.OWN", replace(DIGITS, lr=0.5), raising=False)
    with pytest.raises(UsageError, match="is called digits, as one of Esper's own is"):
        chosen(["made_up_tables:OWN"])
    with pytest.raises(UsageError, match="is a int; a WorldSpec is needed|a type"):
        chosen(["made_up_tables:DIGITS.epochs"])
    assert set(WORLDS) | set(CANDIDATES) == set(KNOWN)


def test_what_is_no_world_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown host of a world 'pointwiss'; did you mean 'pointwise'"):
        WorldSpec("x", "digits", host="pointwiss")
    with pytest.raises(UsageError, match="nothing can germinate at 0, before the audition was heard"):
        WorldSpec("x", "digits", audition="conv5")
