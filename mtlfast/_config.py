"""Frozen dataclasses from and to plain mappings (YAML), with errors that name the field."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mtlfast.errors import bad

C = TypeVar("C")


def from_mapping(cls: type[C], data: Mapping[str, Any], where: str = "config") -> C:
    """An instance of the dataclass ``cls`` from ``data``; missing keys take their defaults.

    Lists become tuples and integers floats where the annotation says so. Nested dataclasses are
    read from nested mappings. A class may read itself another way through a classmethod
    ``from_value(value, where)``.

    Raises:
        ValueError: naming the field by its path from ``where``.
    """
    if not is_dataclass(cls):
        raise TypeError(f"cls: expected a dataclass, found {cls!r}")
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected a mapping, found {data!r}")
    known = {field.name for field in fields(cls) if field.init}
    for key in data:
        if key not in known:
            raise ValueError(f"{where}.{key}: {unknown_key(str(key), known)}")
    hints = get_type_hints(cls)
    values = {key: convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def from_named(known: Mapping[str, type[C]], what: str, value: Any, where: str) -> C:
    """One of the dataclasses ``known``, from its name or a mapping with the key ``name``.

    Args:
        known: by name.
        what: whose name it is, for errors, such as "a head's".
        value: the name, or the name and options.
        where: path of the value, for errors.

    Raises:
        ValueError: naming the field by its path from ``where``.
    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise bad(where, f"{what} name or a mapping with the key 'name'", repr(value))
    options = dict(value)
    name = options.pop("name")
    if name not in known:
        raise bad(f"{where}.name", f"one of {list(known)}", repr(name))
    return from_mapping(known[name], options, where)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What an error says of a key nobody knows: the valid keys, and the nearest if one is near."""
    names = sorted(known)
    nearest = difflib.get_close_matches(key.replace("-", "_"), names, n=1)
    if nearest:
        return f"unknown key, did you mean {nearest[0]!r}? Known are {', '.join(names)}"
    return f"unknown key, expected one of {', '.join(names)}"


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings; the inverse of :func:`from_mapping`."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotation ``hint`` wants it, or a ValueError naming ``where``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where}: expected one of {list(args)}, found {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a mapping, found {value!r}")
        return dict(value)
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        reader = getattr(hint, "from_value", None)
        return reader(value, where) if reader else from_mapping(hint, value, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML reads 1e-5, without a dot, as text
            return float(value)
        except ValueError:
            raise ValueError(f"{where}: expected float, found {value!r}") from None
    expected = type(None) if hint is None else hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{where}: expected {_name(expected)}, found {value!r}")
    return value


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [arg for arg in args if arg is not type(None)]
    errors = []
    for choice in choices:
        try:
            return convert(choice, value, where)
        except ValueError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    names = " or ".join(_name(choice) for choice in choices)
    raise ValueError(f"{where}: expected {names}, found {value!r}")


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: expected a list, found {value!r}")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ValueError(f"{where}: expected {len(args)} entries, found {len(value)}")
    return tuple(
        convert(arg, item, f"{where}[{i}]")
        for i, (arg, item) in enumerate(zip(args, value, strict=True))
    )


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        name = getattr(value, "name", None)  # the key that chooses among several classes
        return {**({} if name is None else {"name": name}), **to_mapping(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
