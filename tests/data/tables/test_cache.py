"""The cache: built once, built anew when anything changed, never half."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mtlfast.data.tables.cache import MANIFEST, cached_folder, default_root


class Builder:
    def __init__(self, fail: bool = False) -> None:
        self.fail, self.calls = fail, 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        assert list(folder.iterdir()) == []
        self.calls += 1
        (folder / "data").write_text("whole")
        if self.fail:
            raise KeyboardInterrupt
        return {"rows": self.calls}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.csv"
    file.write_text("1,2\n")
    return file


def test_built_once_and_anew_when_something_changed(cache: Path, source: Path) -> None:
    build = Builder()

    def folder(**options: Any) -> Path:
        return cached_folder(cache, "set", [source], options, build)

    first = folder(a=1)
    assert folder(a=1) == first
    assert build.calls == 1
    manifest = json.loads((first / MANIFEST).read_text())
    assert manifest["options"] == {"a": 1}
    assert manifest["files"] == {"data": 5}
    assert manifest["sources"][0]["size"] == 4
    assert folder(a=2) != first  # beside it
    assert (folder(a=1), build.calls) == (first, 2)

    os.utime(source, ns=(1, 1))
    assert (folder(a=1), build.calls) == (first, 3)
    source.write_text("1,2\n3,4\n")
    os.utime(source, ns=(1, 1))
    assert (folder(a=1), build.calls) == (first, 4)
    (first / "data").write_text("half")
    assert (folder(a=1), build.calls) == (first, 5)
    (first / "data").unlink()
    assert (folder(a=1), build.calls) == (first, 6)
    (first / MANIFEST).write_text('{"version": 1, ')
    assert (folder(a=1), build.calls) == (first, 7)
    assert (first / "data").read_text() == "whole"


def test_what_was_interrupted_is_never_used(cache: Path, source: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached_folder(cache, "set", [source], {}, Builder(fail=True))
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    # As a killed process leaves it.
    folder = cached_folder(cache, "set", [source], {}, Builder())
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    (folder.with_name(f"{folder.name}.partial") / MANIFEST).unlink()
    build = Builder()
    assert cached_folder(cache, "set", [source], {}, build) == folder
    assert build.calls == 1
    assert not folder.with_name(f"{folder.name}.partial").exists()


def test_who_comes_second_waits(cache: Path, source: Path) -> None:
    build = Builder()

    def slowly(folder: Path) -> dict[str, Any]:
        time.sleep(0.2)
        return build(folder)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cached_folder, cache, "set", [source], {}, slowly) for _ in range(4)]
        assert len({answer.result() for answer in asked}) == 1
    assert build.calls == 1


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    monkeypatch.setenv("MTLFAST_CACHE", "/somewhere")
    assert default_root() == Path("/somewhere")
    monkeypatch.delenv("MTLFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_root() == Path("/xdg/mtlfast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache" / "mtlfast"


def test_a_folder_that_cannot_be_written_is_named(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match="cache: expected a folder that can be written, found"):
        cached_folder(cache, "set", [source], {}, Builder())
