"""Event logs as parquet files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[..., Path]:
    """Writes columns to a parquet file and returns its path."""
    pa = pytest.importorskip("pyarrow", reason="event logs need pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(columns: dict[str, Any], name: str = "events.parquet") -> Path:
        path = tmp_path / name
        parquet.write_table(pa.table(columns), path)
        return path

    return write


@pytest.fixture(scope="session")
def deskdrop_folder() -> Path:
    """The real DeskDrop log, where there is one."""
    root = os.environ.get("MTLFAST_DATA")
    if not root:
        pytest.skip("MTLFAST_DATA is not set: no folder with real data")
    folder = Path(root) / "deskdrop"
    if not (folder / "events.parquet").is_file():
        pytest.skip(f"MTLFAST_DATA: no events.parquet in {folder}")
    pytest.importorskip("pyarrow", reason="event logs need pyarrow")
    return folder
