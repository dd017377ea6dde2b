"""What ``docs/extending.md`` says can be done, done: its code is taken from the page and run."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from esper.leyline import Policy, UsageError, plugins_in
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.scripts.main import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FIELD = "## An event field that appears on the page"


def blocks(kind: str, text: str = PAGE) -> list[str]:
    """The code blocks of one kind, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str = PAGE) -> list[list[str]]:
    """The shell commands, as words."""
    lines = "".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the third party's module."""
    before, _, _ = PAGE.partition(FIELD)
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("python", before)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_a_run_with_a_task_a_policy_and_a_blueprint_of_ones_own(mine: Path) -> None:
    (setting, program, *arguments) = commands()[0]
    assert (setting, program) == ("PYTHONPATH=.", "esper")
    assert main([*arguments, "--device", "cpu", "--quiet"]) == 0
    run = mine / "mine-run"
    events = list(read_journal(run, validate=True))
    (born, *_) = [event for event in events if event.event_type is T.SEED_GERMINATED]
    assert born.data["blueprint"] == "mine:channel_gate", "the smallest"
    (asked, *_) = [event for event in events if event.event_type is T.COMMAND_ISSUED]
    assert asked.data["reason"] == "mine:channel_gate is the smallest" and asked.data["evidence"] == {"parameters": 8}
    (ends,) = [event for event in events if event.event_type is T.EPISODE_ENDED and event.data["arm"] != "static"]
    assert ends.data["status"] == "completed" and ends.data["policy"] == "smallest_first"
    configured = json.loads((run / "run.json").read_text())["config"]
    assert configured["optimizer"] == {"value": {"betas": [0.8, 0.99]}, "source": "flag"}


def test_the_optimizers_table_is_read_from_a_file(mine: Path) -> None:
    (mine / "run.toml").write_text("[optimizer]\nbeta = [0.8, 0.99]\n", encoding="utf-8")
    command = ["train", "heuristic", "--task", "mine:disc", "--config", "run.toml"]
    assert main(command) == 2, "the name of the option is wrong"
    (mine / "run.toml").write_text("[optimizer]\nbetas = [0.8, 0.99]\n", encoding="utf-8")
    assert main([*command, "--episodes", "1", "--max-epochs", "1", "--compare", "static", "--quiet"]) == 0


def test_parts_of_an_installed_package_have_names(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from esper.kasmina import blueprints
    from esper.kasmina.blueprints import registry
    from esper.run.assembly import workload
    from esper.run.config import RunConfig
    from esper.tamiyo.policies import make_policy
    from esper.tasks import get_task

    (table,) = blocks("toml")
    groups = tomllib.loads(table)["project"]["entry-points"]
    assert set(groups) == {blueprints.ENTRY_POINTS, "esper.policies", "esper.tasks"}
    said = "\n".join(
        f"[{group}]\n" + "\n".join(f"{name} = {reference}" for name, reference in points.items())
        for group, points in groups.items()
    )
    installed = mine / "mine-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text(said, encoding="utf-8")
    importlib.invalidate_caches()
    assert isinstance(make_policy("smallest_first"), Policy)
    task = get_task("disc")
    assert blueprints.find(plugins_in(blueprints.ENTRY_POINTS)["channel_gate"].value).name == "channel_gate"
    chosen = workload(task, RunConfig(device="cpu", blueprints=("channel_gate", "norm"))).task.blueprints
    assert chosen == ("norm", "channel_gate")
    with pytest.raises(UsageError, match="channel_gat'"):
        workload(task, RunConfig(device="cpu", blueprints=("channel_gat",)))
    names = ["--task", "disc", "--policy", "smallest_first", "--blueprints", "channel_gate,norm"]
    short = ["--episodes", "1", "--max-epochs", "2", "--compare", "static", "--device", "cpu", "--quiet"]
    with monkeypatch.context() as within:  # a process looks once, and what it has found stays
        within.setattr(registry, "_registered", dict(registry._registered))
        registry._load_entry_points.cache_clear()
        assert main(["train", "heuristic", *names, *short, "--run-dir", "by-name"]) == 0
    registry._load_entry_points.cache_clear()
    events = list(read_journal(mine / "by-name", validate=True))
    (born, *_) = [event for event in events if event.event_type is T.SEED_GERMINATED]
    assert (born.data["blueprint"], born.slot_id) == ("channel_gate", "hidden"), "in the host that their task names"
    (ends,) = [event for event in events if event.event_type is T.EPISODE_ENDED and event.data["arm"] != "static"]
    assert ends.data["status"] == "completed" and ends.data["policy"] == "smallest_first"


def patched(text: str, root: Path) -> list[str]:
    """Apply the page's diff below ``root``; the files that it changed. What it finds must be there, once."""
    changed = []
    for part in re.split(r"^--- ", text, flags=re.MULTILINE)[1:]:
        name, *lines = part.splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] in " -")
        after = "\n".join(line[1:] for line in lines if line[0] in " +")
        source = (root / name).read_text(encoding="utf-8")
        assert source.count(f"\n{before}\n") == 1, f"{name} has not once:\n{before}"
        (root / name).write_text(source.replace(f"\n{before}\n", f"\n{after}\n"), encoding="utf-8")
        changed.append(name)
    return changed


class Copy:
    """A copy of the checkout that may be changed."""

    def __init__(self, root: Path) -> None:
        for folder in ("src/esper", "web/src", "tools", "docs/specifications"):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("static", "__pycache__"))
        self.root = root
        self._before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def changed(self) -> set[str]:
        """The files that are not as they were."""
        return {
            path.relative_to(self.root).as_posix() for path, was in self._before.items() if path.read_bytes() != was
        }

    def python(self, *arguments: str) -> str:
        """What a Python with this copy's package says."""
        paths = {"PYTHONPATH": str(self.root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.root, env=paths, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


GENERATED = {"docs/specifications/telemetry-audit.md", "web/src/lib/schema.ts"}


def test_a_field_of_an_event_is_emitted_folded_and_typed(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    copy, (_, _, section) = Copy(tmp_path), PAGE.partition(FIELD)
    (diff,), (script,) = blocks("diff", section), blocks("python", section)
    files = patched(diff, tmp_path)
    for uv, run, program, *arguments in commands(section):
        assert (uv, run, program) == ("uv", "run", "python")
        copy.python(*arguments)
    emitted, detail = copy.python("-c", script).split(maxsplit=1)
    assert emitted == "8"
    assert json.loads(detail)["slots"]["block0"]["seed"]["channels"] == 8
    schema = (tmp_path / "web/src/lib/schema.ts").read_text(encoding="utf-8")
    assert "  channels?: number;" in schema.split("export interface Seed {")[1].split("}")[0]
    assert copy.changed() == {*files, *GENERATED}
    assert f"a place of its own on the page | {len(files)}, and {len(GENERATED)} generated |" in PAGE


EVERY_EPOCH = """
--- src/esper/leyline/payloads/run.py
     train_loss: NotRequired[float]
     validation_loss: NotRequired[float]
     validation_metric: NotRequired[float]
+    examples: NotRequired[int]
     host_gradient_norm: NotRequired[float]
--- src/esper/tolaria/event_writer.py
             "train_loss": trained.loss,
+            "examples": trained.examples,
"""

AN_EPOCH = """
from esper.karn.aggregator import fold
from esper.karn.detail import build_detail
from esper.leyline import EnvCost, EnvSpec, EnvView, Metric, TrainResult
from esper.tolaria.counterfactual import Readout
from esper.tolaria.event_writer import EpisodeEventWriter

events = []
writer = EpisodeEventWriter(EnvSpec(0, 0, 0, 9), Metric("accuracy", "%", True, 10.0), events.append)
view = EnvView(0, 0, 1, 9, (), (), {}, host_parameters=5)
trained, validated = TrainResult(1.0, 96, 0.1, None, True, None, None), Readout(50.0, 1.0, {}, None, None, {}, None)
writer.epoch_completed(view, EnvCost(5, 5, 20, 0.1, {}), trained, validated, {})
print(build_detail(fold(events), 0, now=0.0).facts["examples"].value)
"""


def test_a_figure_of_every_epoch_is_listed_by_itself(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    files = patched(EVERY_EPOCH, tmp_path)
    copy.python("tools/audit.py")
    assert copy.python("-c", AN_EPOCH) == "96\n"
    assert copy.changed() == {*files, "docs/specifications/telemetry-audit.md"}
    assert f"a figure that every epoch measures, on the page | {len(files)}, and 1 generated |" in PAGE
    _, _, section = PAGE.partition(FIELD)
    assert all(f"`{file.removeprefix('src/esper/')}`" in section for file in files)
