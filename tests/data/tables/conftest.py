"""A cache of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("pyarrow", reason="tables are kept as parquet")
    folder = tmp_path / "cache"
    monkeypatch.setenv("MTLFAST_CACHE", str(folder))
    return folder
