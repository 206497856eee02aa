"""Launch options that tuning found on a device, kept on disk. Knows nothing of triton.

Tuning is opt-in: the file exists only where ``mtlfast tune`` made it, and ``MTLFAST_TUNED=off`` has
it ignored. Sizes and dtypes make up a key, ragged lengths do not, so other lengths find the same.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path

Options = Mapping[str, list[int]]  # launch -> the fields of its options


def path() -> Path:
    """``tuned.json`` in ``$MTLFAST_CACHE``, or in ``mtlfast`` in the user's cache folder."""
    return _path(*(os.environ.get(name) for name in ("MTLFAST_CACHE", "XDG_CACHE_HOME", "HOME")))


@cache  # every launch asks, and paths are slow to put together
def _path(chosen: str | None, base: str | None, home: str | None) -> Path:
    if chosen:
        return Path(chosen).expanduser() / "tuned.json"
    return (Path(base) if base else Path.home() / ".cache") / "mtlfast" / "tuned.json"


def read(device: str, key: str) -> Options:
    """What was found for ``key`` on ``device``; empty where nothing was."""
    if os.environ.get("MTLFAST_TUNED", "on") == "off":
        return {}
    return _content(path()).get(device, {}).get(key, {})


def write(device: str, key: str, options: Options) -> Path:
    """Adds to the file, or replaces; what a crash interrupts leaves the old file."""
    file = path()
    content = {name: dict(entries) for name, entries in _load(file).items()}
    content.setdefault(device, {})[key] = dict(options)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=file.name, delete=False, encoding="utf-8"
    ) as new:
        json.dump(content, new, indent=1, sort_keys=True)
    os.replace(new.name, file)
    _content.cache_clear()
    return file


def _load(file: Path) -> dict[str, dict[str, Options]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("expected an object")
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{file}: ignored, since it cannot be read ({error})", stacklevel=2)
        return {}


_content = cache(_load)  # one reading per process; a launch must not wait for a disk
