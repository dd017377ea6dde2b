"""The page's own world, rule and learner, as an outsider would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "growtable.md"


@pytest.mark.slow
def test_a_world_a_rule_and_a_learner_of_ones_own_are_scored(tmp_path: Path) -> None:
    section = PAGE.read_text().split("## A world, a rule and a learner of your own")[1].split("\n## ")[0]
    code, commands = re.findall(r"```(?:python|sh)\n(.*?)```", section, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "mine.py").write_text(code)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": programs}
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for part in ("| `waves-narrow` | held out |", "| `mine:last` | ", "| `mine` | UCB | ", "`mine`: Reading test: "):
        assert part in done.stdout
