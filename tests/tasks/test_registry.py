"""Tasks by name, from other packages, and as ``module:attribute``."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from esper.leyline import EsperError, UsageError, load_attribute, plugins
from esper.tasks import TaskSpec, get_task, registry, task_names
from esper.tasks.digits import digits


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("a_user_module")
    monkeypatch.setitem(sys.modules, "a_user_module", made)
    return made


def test_built_in_names_resolve() -> None:
    assert task_names()[0] == "digits"
    for target in registry.BUILT_IN.values():
        assert callable(load_attribute("task", target))


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(UsageError, match="unknown task 'digit'; did you mean 'digits'"):
        get_task("digit")


def test_an_unknown_option_names_the_legal_ones() -> None:
    with pytest.raises(UsageError, match="unknown option of task 'mnist1d' 'tests'; did you mean 'test'"):
        get_task("mnist1d", tests=3)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("mnist1d", {"train": "few"}, "option train of task 'mnist1d' is 'few'; a value of type int is needed"),
        ("mnist1d", {"test": 0.5}, "option test of task 'mnist1d' is 0.5; a value of type int is needed"),
        ("emoji", {"split": True}, "option split of task 'emoji' is True; a value of type int is needed"),
        ("cifar10", {"data_dir": 3}, "option data_dir of task 'cifar10' is 3; a value of type str | None is needed"),
        ("emoji", {"split": -1}, "the number of a split is -1; legal: 0 to 4294967295"),
        ("mnist-m", {"split": 2**32}, "the number of a split is 4294967296; legal"),
    ],
)
def test_an_option_of_another_kind_is_said(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(EsperError, match=re.escape(told)):
        get_task(name, **options)


def test_options_that_are_not_annotated_take_anything(module: ModuleType) -> None:
    module.mine = lambda share=1: replace(digits(), name=f"mine {share}")  # type: ignore[attr-defined]
    for share in (0.5, True, "a half", None):
        assert get_task("a_user_module:mine", share=share).name == f"mine {share}"


def test_a_users_function_and_ready_made_task_are_taken(module: ModuleType) -> None:
    def mine(epochs: int = 2) -> TaskSpec:
        task = digits()
        return replace(task, name="mine", budget=replace(task.budget, max_epochs=epochs))

    module.mine, module.ready = mine, digits()  # type: ignore[attr-defined]
    task = get_task("a_user_module:mine", epochs=7)
    assert (task.name, task.budget.max_epochs, dict(task.options)) == ("mine", 7, {"epochs": 7})
    assert get_task("a_user_module:ready").name == "digits"
    with pytest.raises(UsageError, match="takes no options"):
        get_task("a_user_module:ready", epochs=7)


def test_what_a_user_gets_wrong_is_said(module: ModuleType) -> None:
    module.wrong = lambda: 3  # type: ignore[attr-defined]
    module.broken = replace(digits(), sites={"a": "nowhere"})  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="gives a int"):
        get_task("a_user_module:wrong")
    with pytest.raises(UsageError, match="unknown site"):
        get_task("a_user_module:broken")
    with pytest.raises(UsageError, match="has no attribute 'absent'"):
        get_task("a_user_module:absent")
    with pytest.raises(UsageError, match="cannot import 'no_such_module'"):
        get_task("no_such_module:task")


def test_other_packages_add_tasks_by_entry_point(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    module.task = replace(digits(), name="theirs")  # type: ignore[attr-defined]
    point = EntryPoint("theirs", "a_user_module:task", registry.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == registry.GROUP else [])
    assert task_names()[-1] == "theirs"
    assert get_task("theirs").name == "theirs"
