"""``esper bench`` as a person uses it."""

import json

import bench_toys
import pytest

from esper.scripts.bench import build_parser, configured, main
from esper.scripts.main import guarded

TINY = ["--task", bench_toys.TINY, "--workers", "1", "--trials", "1", "--tuning-seeds", "1"]


def test_one_command_writes_report_and_figures_and_goes_on(tmp_path, capsys):
    run = tmp_path / "run"
    page = tmp_path / "page.md"
    page.write_text("<!-- bench mine: begin --><!-- bench mine: end -->")
    arms = ["--arms", "small,large-equal,retrained-equal,net2net", "--grown", "net2net", "--run-dir", str(run)]
    assert main([*TINY, *arms, "--seeds", "1"]) == 0
    assert "1 seed is too few for an interval" in capsys.readouterr().out
    assert main([*TINY, *arms, "--seeds", "2", "--into", str(page), "--into-name", "mine"]) == 0
    assert "going on with 8 finished trials" in capsys.readouterr().out
    report = (run / "report" / "report.md").read_text()
    assert "delta at equal compute" in report and "Pareto front" in report and "## Tuning" in report
    assert "net2net minus large-equal" in page.read_text()
    plain = json.loads((run / "report" / "report.json").read_text())
    assert len(plain["outcomes"]["net2net"]) == 2
    assert plain["findings"]["headline"][0]["control"] == "large-equal"
    names = {path.name for path in (run / "report" / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("course", "pareto", "differences") for kind in ("svg", "png")}


def test_a_resume_with_other_settings_is_one_line_and_status_2(tmp_path, capsys):
    run = ["--run-dir", str(tmp_path / "run")]
    assert main([*TINY, "--arms", "small,net2net", "--grown", "net2net", "--seeds", "2", *run]) == 0
    capsys.readouterr()
    changed = [*TINY, "--arms", "small", "--grown", "net2net", "--epochs", "5", *run]
    assert guarded(lambda: main(changed)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "epochs was 2 and is 5" in said


@pytest.mark.parametrize("wrong", [["--arms", "smal"], ["--seeds", "0"], ["--task-option", "test"], ["--trials", "9"]])
def test_mistakes_are_one_line_and_status_2(wrong, tmp_path, capsys):
    arguments = [*TINY, *wrong, "--run-dir", str(tmp_path / "run")]
    assert guarded(lambda: main(arguments)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_quick_takes_less_of_everything_and_flags_beat_it():
    parser = build_parser()
    quick, full = (configured(parser.parse_args(flags)) for flags in (["--quick"], []))
    assert quick.seeds < full.seeds and quick.trials < full.trials and set(quick.arms) < set(full.arms)
    assert configured(parser.parse_args(["--quick", "--seeds", "7"])).seeds == 7
    assert configured(parser.parse_args(["--task-option", "test=20000"])).options == {"test": 20000}
    assert "policy" in configured(parser.parse_args(["--policy-checkpoint", "p.safetensors"])).arms
