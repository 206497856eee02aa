"""A folder with a data set as the models need it: written once, whole or not at all.

``manifest.json`` says what was read (files with sizes and times of change, options) and what came
of it. A folder whose manifest does not fit what is there now is written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["MANIFEST", "cached_folder", "default_root", "read_manifest"]

MANIFEST = "manifest.json"
_VERSION = 1  # of what the folder holds; another one is written anew

Manifest = dict[str, Any]


def default_root() -> Path:
    """Where caches go unless told otherwise: ``$MTLFAST_CACHE``, or ``mtlfast`` in the user's
    cache folder.
    """
    chosen = os.environ.get("MTLFAST_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mtlfast"


def cached_folder(
    root: Path,
    name: str,
    sources: Iterable[Path],
    options: dict[str, Any],
    build: Callable[[Path], Manifest],
) -> Path:
    """The folder of a data set; built first if there is none that fits.

    Processes that want the same folder wait for the one that builds it.

    Args:
        root: folder of all caches.
        name: of the data set, the first part of the folder's name.
        sources: the files that ``build`` reads.
        options: what else decides the content; plain values.
        build: fills an empty folder and returns what the manifest says of it, plain values.

    Raises:
        ValueError: if the folder cannot be written.
    """
    sources = [source.resolve() for source in sources]
    identity = json.dumps([name, [str(s) for s in sources], options], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = root.resolve() / f"{name}-{key}"
    wanted = {"version": _VERSION, "options": options, "sources": [_stamp(s) for s in sources]}
    if _is_current(folder, wanted):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock")):
            if not _is_current(folder, wanted):
                _build(folder, wanted, build)
    except PermissionError as error:
        raise ValueError(
            f"cache: expected a folder that can be written, found {root}: {error.strerror}; "
            "choose another with the data option cache"
        ) from error
    return folder


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if there is none that can be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _stamp(source: Path) -> dict[str, Any]:
    about = source.stat()
    return {"path": str(source), "size": about.st_size, "mtime_ns": about.st_mtime_ns}


def _is_current(folder: Path, wanted: Manifest) -> bool:
    manifest = read_manifest(folder)
    if manifest is None or any(manifest.get(name) != value for name, value in wanted.items()):
        return False
    files: dict[str, int] = manifest.get("files", {})
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in files.items()
    )


def _build(folder: Path, wanted: Manifest, build: Callable[[Path], Manifest]) -> None:
    # The lock is ours: what another process left here unfinished is of no use to anybody.
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        content = build(partial)
        files = sorted(file for file in partial.iterdir() if file.is_file())
        manifest = {**wanted, **content, "files": {f.name: f.stat().st_size for f in files}}
        text = json.dumps(manifest, indent=2) + "\n"
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        for file in (*files, partial / MANIFEST, partial):
            _sync(file)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before the next step."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(path: Path) -> Generator[None, None, None]:
    import fcntl

    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield
