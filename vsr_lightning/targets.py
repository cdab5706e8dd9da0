"""Sections with a `target:`, the class or function that they configure; their other keys are its parameters."""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vsr_lightning.errors import UserError, first_line, suggestion

TARGET_PREFIXES = ("vsr_lightning.", "lightning.pytorch.", "torch.optim.")


def build(section: Mapping[str, Any], key: str, kind: type = object, **given: Any) -> Any:
    """Make what a `target:` section names: an instance of a class, or a function with its parameters bound.

    `given` are arguments that the program supplies, and take precedence. `key` names the section in errors, and
    `kind` is what the instance must be. Raises UserError.
    """
    check_target(section, key)
    target = _resolve_target(section["target"], key)
    arguments = {name: value for name, value in section.items() if name != "target"} | given
    if not inspect.isclass(target):
        if kind is not object:
            raise UserError(f"{key}.target: {section['target']} is not a {kind.__name__}")
        return partial(target, **arguments)
    if not issubclass(target, kind):
        raise UserError(f"{key}.target: {section['target']} is not a {kind.__name__}")
    if inspect.isabstract(target):
        raise UserError(f"{key}.target: {section['target']} is a base; name one of its kinds")
    try:
        return target(**arguments)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # a parameter is missing or out of range
        raise UserError(f"{key}: {section['target']} cannot be built so: {first_line(error)}") from error


def check_target(section: Mapping[str, Any], key: str) -> None:
    """Check a section's `target:` against the allow-list, and its keys and types against the signature."""
    if "target" not in section:
        raise UserError(f"{key}.target: missing; name the class to build")
    target = _resolve_target(section["target"], key)
    parameters = _parameters(target)
    for name, value in section.items():
        if name == "target":
            continue
        if name not in parameters:
            raise UserError(f"{key}.{name}: {section['target']} has no such parameter{suggestion(name, parameters)}")
        if not _fits(value, parameters[name]):
            expected = _told(parameters[name])
            raise UserError(f"{key}.{name}: {value!r} is not of type {expected}")


def _resolve_target(name: Any, key: str) -> Callable[..., Any]:
    if not isinstance(name, str) or not name.startswith(TARGET_PREFIXES):
        raise UserError(f"{key}.target: '{name}' is not allowed; targets start with {', '.join(TARGET_PREFIXES)}")
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:  # the module itself, or what it needs
        raise UserError(f"{key}.target: '{name}' cannot be imported: {first_line(error)}") from None
    target = getattr(module, attribute, None)
    if not callable(target):
        public = [member for member in dir(module) if not member.startswith("_")]
        raise UserError(f"{key}.target: '{module_name}' has no '{attribute}'{suggestion(attribute, public)}")
    return target


def _parameters(target: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of everything the target takes by keyword; parents' too where it passes **kwargs on."""
    hints: dict[str, Any] = {}
    classes = target.__mro__ if inspect.isclass(target) else (None,)
    for owner in classes:
        function = target if owner is None else owner.__dict__.get("__init__")
        if function is None:
            continue
        signature = inspect.signature(function).parameters.values()
        known = typing.get_type_hints(function)
        for parameter in signature:
            if parameter.name != "self" and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                hints.setdefault(parameter.name, known.get(parameter.name, Any))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            break
    return hints


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be of a type."""
    if hint is Any:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint in (type(None), None):
        return value is None
    if hint is bool or isinstance(value, bool):
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float)
    if hint is Path:
        return isinstance(value, str)
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    return isinstance(value, hint) if inspect.isclass(hint) else True


def _told(hint: Any) -> str:
    """A type, in a user's words."""
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return f"list of {_told(typing.get_args(hint)[0])}, written [..., ...]"
    return getattr(hint, "__name__", str(hint))
