"""Flags beat the file, the file beats the preset, the preset beats the default; every value knows its source."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import UsageError
from esper.run.config import RunConfig, read_config_file, resolve
from esper.scripts.train import build_parser, given_flags
from esper.tamiyo.policies import policy_names

FIELDS = {each.name for each in dataclasses.fields(RunConfig)}


@given(
    default=st.just(RunConfig().episodes),
    preset=st.none() | st.integers(1, 9),
    file=st.none() | st.integers(1, 9),
    flag=st.none() | st.integers(1, 9),
)
def test_the_strongest_source_wins(default: int, preset: int | None, file: int | None, flag: int | None) -> None:
    layers = {"preset": preset, "file": file, "flag": flag}
    given_values = {name: {} if value is None else {"episodes": value} for name, value in layers.items()}
    found = resolve(RunConfig, given_values["flag"], given_values["file"], given_values["preset"])
    strongest = [(name, value) for name, value in layers.items() if value is not None][-1:] or [("default", default)]
    assert (found.settings["episodes"].source, found.config.episodes) == strongest[0]


def test_every_flag_is_a_field_and_every_field_can_be_given() -> None:
    flags = vars(build_parser().parse_args(["heuristic"])).keys()
    assert flags - {"kind", "config", "resume", "override", "overwatch", "notify"} == FIELDS


def test_defaults_are_not_given() -> None:
    assert given_flags(["heuristic"]) == {"kind": "heuristic"}
    assert given_flags(["heuristic", "--seed", "0"]) == {"kind": "heuristic", "seed": 0}


def test_names_may_be_written_with_a_dash_and_lists_with_commas(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('max-seeds = 2\nslots = ["a", "b"]\nblueprints = "conv3, norm"\n')
    config = resolve(RunConfig, {}, read_config_file(path)).config
    assert (config.max_seeds, config.slots, config.blueprints) == (2, ("a", "b"), ("conv3", "norm"))


@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)), st.integers() | st.floats() | st.booleans() | st.text(), max_size=3
    )
)
def test_any_file_is_accepted_or_refused_in_words(layer: dict[str, object]) -> None:
    try:
        config = resolve(RunConfig, {}, layer).config
    except UsageError as error:
        assert "\n" not in str(error).strip()
    else:
        assert isinstance(config, RunConfig)


def test_the_file_is_named_where_it_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("a = ")
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(path.read_text())
    with pytest.raises(UsageError, match=str(path)):
        read_config_file(path)


def test_a_type_that_does_not_fit_is_refused_with_what_was_given() -> None:
    with pytest.raises(UsageError, match="episodes is 'many': Expected `int`, got `str`"):
        resolve(RunConfig, {}, {"episodes": "many"})
    with pytest.raises(UsageError, match="telemetry_level is 'loud': Invalid enum value"):
        resolve(RunConfig, {}, {"telemetry_level": "loud"})
    assert resolve(RunConfig, {}, {"lr": 1}).config.lr == 1.0


def test_the_policies_on_the_help_page_are_the_registered_ones() -> None:
    told = next(each for each in dataclasses.fields(RunConfig) if each.name == "policy").metadata["flag"].help()
    assert all(name in told for name in policy_names())


def test_optimizer_options_come_from_a_table_or_from_flags(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("weight-decay = 0.1\n[optimizer]\nbetas = [0.8, 0.9]\n")
    config = resolve(RunConfig, {}, read_config_file(path)).config
    assert (config.weight_decay, config.optimizer) == (0.1, {"betas": [0.8, 0.9]})
    flags = ["--optimizer-option", "betas=[0.8,0.9]", "--optimizer-option", "amsgrad=true"]
    said = given_flags(["heuristic", *flags])
    assert said["optimizer"] == {"betas": [0.8, 0.9], "amsgrad": True}
    with pytest.raises(UsageError, match="NAME=VALUE is needed"):
        given_flags(["ppo", "--optimizer-option", "amsgrad"])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "seed_lr_multiplier"])
def test_what_is_no_finite_number_is_refused_in_one_line(name: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"{name} = {value}\n")
    with pytest.raises(UsageError, match=rf"{name} is {value}; it must be a finite number"):
        resolve(RunConfig, {}, read_config_file(path))


@pytest.mark.parametrize(("name", "text"), [("run.toml", "episodes = 2\n"), ("run.json", '{"episodes": 2}')])
def test_a_mark_of_its_encoding_before_a_file_is_passed_over(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_config_file(tmp_path / name) == {"episodes": 2}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.json", "[" * 3000, "nested deeper than 64 levels"),
        ("c.toml", "a=" + "[" * 3000 + "]" * 3000, "nested deeper than 64 levels"),
        ("c.toml", ".".join("a" * 1000) + "=1", "nested deeper than 64 levels"),
        ("c.json", '{"seed":' + "9" * 5000 + "}", "more than 38 digits"),
        ("c.toml", "seed=" + "9" * 5000, "4300"),
        ("c.json", '{"lr":1e999}', "out of range"),
        ("c.json", "1" * (1 << 21), "at most 1048576 are read"),
        ("c.json", "[]", "a table of keys is needed"),
    ],
)
def test_limits_of_a_configuration_file(name: str, content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UsageError, match=says) as caught:
        resolve(RunConfig, {}, read_config_file(path))
    assert len(str(caught.value)) < 1000 and str(path) in str(caught.value)
