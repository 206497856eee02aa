"""Command-line options made from the fields of a settings dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["add_settings", "given_settings", "merge", "parse_assignments"]


def add_settings(
    parser: argparse.ArgumentParser,
    cls: type[Any],
    names: Iterable[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """One option per field of ``cls`` (or per field in ``names``), grouped as its metadata says.

    Options that are not given leave no trace, so that they do not override a config file;
    ``defaults`` are shown instead of those of ``cls``, and are the command's to fill in.
    """
    hints = get_type_hints(cls)
    chosen = None if names is None else set(names)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if chosen is not None and field.name not in chosen:
            continue
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = (defaults or {}).get(field.name, field.default)
        _add_option(groups[title], field, hints[field.name], default)


def _add_option(group: Any, field: dataclasses.Field[Any], hint: Any, default: Any) -> None:
    flag = "--" + field.name.replace("_", "-")
    text = field.metadata["help"].replace("%", "%%")
    if default not in (dataclasses.MISSING, None):
        text += f" (default: {default})"
    common: dict[str, Any] = {"dest": f"settings.{field.name}", "default": argparse.SUPPRESS}
    if get_origin(hint) is dict:
        group.add_argument(flag, nargs="+", metavar="KEY=VALUE", help=text, **common)
    elif hint is bool:
        text = field.metadata["help"].replace("%", "%%")
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text, **common)
    elif get_origin(hint) is Literal:
        group.add_argument(flag, choices=get_args(hint), help=text, **common)
    else:
        group.add_argument(flag, metavar=_metavar(hint), help=text, **common)


def _metavar(hint: Any) -> str:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return "N" if int in kinds else "X" if float in kinds else "NAME"


def given_settings(options: argparse.Namespace, cls: type[Any]) -> dict[str, Any]:
    """The settings that the command line gave, numbers as numbers; names are field names."""
    from mtlfast.training.config import parse_yaml

    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for key, value in vars(options).items():
        kind, _, name = key.partition(".")
        if kind != "settings":
            continue
        if get_origin(hints[name]) is dict:
            given[name] = parse_assignments("--" + name.replace("_", "-"), value)
        elif isinstance(value, str) and hints[name] is not str:
            given[name] = parse_yaml(value)
        else:
            given[name] = value
    return given


def parse_assignments(flag: str, texts: Iterable[str]) -> dict[str, Any]:
    """``["a=1", "b.c=[2, 3]"]`` as ``{"a": 1, "b": {"c": [2, 3]}}``; values are YAML.

    Raises:
        ValueError: naming ``flag`` and the text that is no assignment.
    """
    from mtlfast.training.config import parse_yaml

    result: dict[str, Any] = {}
    for text in texts:
        path, sign, value = text.partition("=")
        keys = [key.strip().replace("-", "_") for key in path.split(".")]
        if not sign or not all(keys):
            raise ValueError(f"{flag}: expected KEY=VALUE, found {text!r}")
        target = result
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise ValueError(f"{flag}: {key} has a value of its own already, found {text!r}")
        target[keys[-1]] = parse_yaml(value)
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``; mappings in both are merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
