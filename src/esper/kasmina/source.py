"""Writing modules down as Python source that needs nothing of Esper.

Definitions are copied from the files they stand in, with everything they name; instances become expressions.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import math
import re
from collections.abc import Collection
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

import torch
from torch import nn

from esper.kasmina.portable import blank
from esper.leyline import UsageError

PACKAGE: Final = "esper"
_INDENT: Final = "    "
_MODULE_STATE: Final = frozenset(nn.Module().__dict__)
"""What every module has of its own: parameters, buffers, children, hooks, mode."""


class CannotWrite(UsageError):
    """Something that has no form as source."""


class Source:
    """Definitions and imports that a text needs, gathered as expressions are made."""

    def __init__(self, reserved: Collection[str] = ()) -> None:
        """``reserved`` names are the text's own."""
        self._imports: dict[str, None] = {}
        self._definitions: dict[tuple[str, str], str] = {}
        self._names: dict[str, tuple[str, str]] = {name: ("", name) for name in reserved}

    def text(self) -> str:
        """Imports, then definitions, each after those it names."""
        imports = sorted(self._imports, key=lambda line: (line.startswith("from"), line))
        return "\n".join(imports) + "\n\n\n" + "\n\n\n".join(filter(None, self._definitions.values())) + "\n"

    def name(self, target: Any) -> str:
        """An expression for a class or function, by import, or by copying it if it is Esper's."""
        module, qualname = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
        if isinstance(target, BuiltinFunctionType) and getattr(nn.functional, str(qualname), None) is target:
            module = nn.functional.__name__
        if module == "builtins":
            return str(qualname)
        if module is None or qualname is None or module == "__main__" or "<" in qualname:
            raise CannotWrite(f"{target!r} cannot be imported by name")
        if module.partition(".")[0] == PACKAGE:
            if "." in qualname:
                outer, _, inner = qualname.partition(".")
                return f"{self.define(module, outer)}.{inner}"
            return self.define(module, qualname)
        if getattr(nn, qualname, None) is target:
            return f"{self.imported('torch', 'nn')}.{qualname}"
        if _resolve(module, qualname) is not target:
            raise CannotWrite(f"{module}.{qualname} is not {target!r}")
        self._imports[f"import {module}"] = None
        return f"{module}.{qualname}"

    def imported(self, module: str, name: str, own: str | None = None) -> str:
        """Import ``name`` (as ``own``) from a module that is not Esper's; returns its name here."""
        own = self._claim(own or name, (module, name))
        self._imports[f"from {module} import {name}" + (f" as {own}" if own != name else "")] = None
        return own

    def define(self, module: str, name: str) -> str:
        """Copy what ``name`` stands for at the top of ``module``, and what that names; returns its name here."""
        key = (module, name)
        own = self._claim(name, key)
        if key in self._definitions:
            return own
        self._definitions[key] = ""
        statement = _bindings(module).get(name)
        if statement is None:
            raise CannotWrite(f"{module}.{name} is not defined at the top of its file")
        if isinstance(statement, ast.Import | ast.ImportFrom):
            raise CannotWrite(f"{module}.{name} is imported there")
        text = ast.get_source_segment(_text(module), statement) or ""
        for decorator in reversed(getattr(statement, "decorator_list", [])):
            text = f"@{ast.get_source_segment(_text(module), decorator)}\n{text}"
        for used in _used(statement) - {name}:
            here = self._use(module, used)
            if here != used:
                text = re.sub(rf"\b{used}\b", here, text)
        if own != name:
            text = re.sub(rf"\b{name}\b", own, text)
        del self._definitions[key]  # so that it stands after what it names
        self._definitions[key] = text
        return own

    def _claim(self, name: str, key: tuple[str, str]) -> str:
        """``name``, or with underscores where it is taken by something else."""
        while self._names.setdefault(name, key) != key:
            name += "_"
        return name

    def _use(self, module: str, name: str) -> str:
        statement = _bindings(module).get(name)
        if statement is None:
            return name
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            return self.define(module, name)
        alias = next(each for each in statement.names if (each.asname or each.name.partition(".")[0]) == name)
        if isinstance(statement, ast.Import):
            own = self._claim(name, ("", alias.name))
            self._imports[f"import {alias.name}" + (f" as {own}" if alias.asname or own != name else "")] = None
            return own
        assert statement.module is not None and statement.level == 0
        if statement.module.partition(".")[0] == PACKAGE:
            return self.define(statement.module, alias.name)
        return self.imported(statement.module, alias.name, name)

    def value(self, value: Any) -> str:
        """An expression for plain data, a data type, a class or a function."""
        if isinstance(value, torch.dtype):
            self._imports["import torch"] = None
            return repr(value)
        if isinstance(value, float) and not math.isfinite(value):
            return f"float({str(value)!r})"
        if value is None or type(value) in (bool, int, float, str, bytes):
            return repr(value)
        if type(value) in (list, tuple, torch.Size):
            items = ", ".join(self.value(item) for item in value)
            return f"[{items}]" if isinstance(value, list) else f"({items}{',' if len(value) == 1 else ''})"
        if type(value) is dict:
            return "{" + ", ".join(f"{self.value(key)}: {self.value(item)}" for key, item in value.items()) + "}"
        if type(value) is set and value:
            return "{" + ", ".join(sorted(self.value(item) for item in value)) + "}"
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            return self.name(value)
        raise CannotWrite(f"a {type(value).__name__} cannot be written as source")

    def module(self, module: nn.Module, where: str = "", depth: int = 0) -> str:
        """An expression for a module with blank tensors. Raises :class:`CannotWrite`, naming the place."""
        if any(getattr(module, hooks) for hooks in _MODULE_STATE if hooks.endswith("_hooks")):
            raise CannotWrite(f"{where or type(module).__name__} has hooks")
        short = _short(module)
        if short is not None:
            return short.replace("nn", self.imported("torch", "nn"), 1)
        inner = "\n" + _INDENT * (depth + 1)
        end = "\n" + _INDENT * depth
        chain = type(module) in (nn.Sequential, nn.ModuleList) and _is_plain_chain(module)
        children = {
            name: "None"
            if child is None
            else self.module(child, f"{where}.{name}".strip("."), depth + (1 if chain else 2))
            for name, child in module._modules.items()
        }
        if chain:
            items = "".join(f"{inner}{child}," for child in children.values())
            opened, closed = ("[", "]") if isinstance(module, nn.ModuleList) else ("", "")
            return f"{self.name(type(module))}({opened}{items}{end}{closed})"
        try:
            kind = self.name(type(module))
            attributes = self.value({k: v for k, v in module.__dict__.items() if k not in _MODULE_STATE})
            tensors = [self.value(each) for each in _tensors(module)]
        except CannotWrite as error:
            raise CannotWrite(f"{where or 'the model'} ({type(module).__name__}): {error}") from error
        parts = "".join(f"{inner}{_INDENT}{name!r}: {child}," for name, child in children.items())
        inside = f"{{{parts}{inner}}}" if parts else "{}"
        return f"{self.name(blank)}({inner}{inner.join(f'{p},' for p in (kind, attributes, inside, *tensors))}{end})"


def _tensors(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shape and type of each parameter, and of each buffer with whether it is saved; ``None`` where there is none."""
    parameters = {
        name: None if parameter is None else (tuple(parameter.shape), parameter.dtype)
        for name, parameter in module._parameters.items()
    }
    buffers = {
        name: None
        if buffer is None
        else (tuple(buffer.shape), buffer.dtype, name not in module._non_persistent_buffers_set)
        for name, buffer in module._buffers.items()
    }
    return parameters, buffers


def _short(module: nn.Module) -> str | None:
    """The constructor call that torch prints for a leaf of its own, if that makes the same module."""
    if module._modules or getattr(nn, type(module).__name__, None) is not type(module):
        return None
    text = f"nn.{module!r}"
    try:
        with torch.random.fork_rng(devices=[]):
            twin = eval(text, {"nn": nn})  # noqa: S307 - the text is torch's own print of a torch class
    except Exception:  # not every module prints as its constructor call
        return None
    alike = type(twin) is type(module) and _tensors(twin) == _tensors(module) and _plain(twin) == _plain(module)
    return text if alike else None


def _plain(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in _MODULE_STATE and not name.startswith("_flat_weight")
    }


def _is_plain_chain(module: nn.Module) -> bool:
    return not _plain(module) and list(module._modules) == [str(index) for index in range(len(module._modules))]


def _resolve(module: str, qualname: str) -> Any:
    try:
        target: Any = importlib.import_module(module)
        for part in qualname.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError):
        return None
    return target


@cache
def _text(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


@cache
def _bindings(module: str) -> dict[str, ast.stmt]:
    """Name -> the statement at the top of the module's file that binds it."""
    found: dict[str, ast.stmt] = {}
    for statement in ast.parse(_text(module)).body:
        inside = statement.body if isinstance(statement, ast.If) else [statement]
        for each in inside:
            if isinstance(each, ast.FunctionDef | ast.ClassDef):
                found[each.name] = each
            elif isinstance(each, ast.Import | ast.ImportFrom):
                for alias in each.names:
                    found[alias.asname or alias.name.partition(".")[0]] = each
            elif isinstance(each, ast.Assign | ast.AnnAssign):
                targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                found.update({target.id: each for target in targets if isinstance(target, ast.Name)})
    return found


def _used(statement: ast.stmt) -> set[str]:
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return names - set(dir(builtins))
