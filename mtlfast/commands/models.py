"""`mtlfast models`: what can be trained, and with which options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

NAME = "models"
USAGE = "[MODEL]"
PASSES_ON = False
HELP = "the models and their options"
DESCRIPTION = "List the models, or the options of one with their meaning and defaults."
EXAMPLES = """\
examples:
  mtlfast models
  mtlfast models dtrn

An option is given to `mtlfast train` as
  mtlfast train --model dtrn --model-options embed_dim=16 head.name=aitm
and in a settings file as
  model_options: {embed_dim: 16, head: {name: aitm}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", help="show the options of this model")


def run(options: argparse.Namespace) -> int:
    """Print the list, or one model."""
    from mtlfast.models import available

    entries = available()
    if options.model is None:
        width = max(map(len, entries))
        for entry in entries.values():
            print(f"{entry.name:<{width}}  {entry.description}\n{'':<{width}}  {entry.paper}")
        return 0
    if options.model not in entries:
        raise ValueError(f"model: expected one of {', '.join(entries)}, found {options.model!r}")
    entry = entries[options.model]
    print(f"{entry.name}: {entry.description}\n{entry.paper}\n")
    print(_options(entry.config_class))
    print(_choices(entry.config_class), end="")
    return 0


def _options(config_class: type) -> str:
    """Name, default and meaning of every option of a config dataclass."""
    from mtlfast._config import to_mapping

    meanings = _meanings(config_class)
    defaults = to_mapping(config_class())
    width = max(map(len, defaults))
    lines = ["options, with their defaults:"]
    for name, default in defaults.items():
        lines.append(f"  {name:<{width}}  {default}")
        if meanings.get(name):
            lines.append(f"  {'':<{width}}    {meanings[name]}")
    return "\n".join(lines)


def _choices(config_class: type) -> str:
    """The parts that an option chooses by name, each with its own options and their defaults."""
    from mtlfast._config import to_mapping
    from mtlfast.heads import HEAD_CONFIGS
    from mtlfast.interactions import INTERACTION_CONFIGS
    from mtlfast.sequence import ENCODER_CONFIGS

    known: dict[str, Mapping[str, type]] = {
        "encoder": ENCODER_CONFIGS,
        "interaction": INTERACTION_CONFIGS,
        "interactions": INTERACTION_CONFIGS,
        "head": HEAD_CONFIGS,
    }
    lines = []
    for option in to_mapping(config_class()):
        if option not in known:
            continue
        lines.append(f"\nthe names for {option}, each with options of its own:")
        width = max(map(len, known[option]))
        for name, part in known[option].items():
            defaults = " ".join(f"{key}={value}" for key, value in to_mapping(part()).items())
            lines.append(f"  {name:<{width}}  {defaults}".rstrip())
    return "".join(line + "\n" for line in lines)


def _meanings(config_class: type) -> dict[str, str]:
    """What the section "Args" of the class's docstring says of each option, or a base's does."""
    import inspect
    import re

    meanings: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        text = inspect.cleandoc(cls.__doc__ or "")
        section = text.partition("Args:\n")[2].partition("\n\n")[0]
        found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
        meanings |= {
            name: " ".join(re.sub(r":\w+:|`+", "", meaning).split()) for name, meaning in found
        }
    return meanings
