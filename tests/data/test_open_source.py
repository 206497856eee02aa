"""Data sources by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtlfast.data import SOURCES, EventLogSource, open_source


def deskdrop_columns() -> dict[str, list[object]]:
    return {
        "user": [1, 1, 2],
        "item": [5, 5, 6],
        "behavior": [0, 1, 0],
        "ts": [100, 110, 2_000_000_000],
        "country": ["BR", None, "US"],
        "region": ["SP", None, "CA"],
    }


@pytest.mark.parametrize("name", ["synthetic:tenrec", "synthetic:ecommerce"])
def test_synthetic(name: str) -> None:
    source = open_source(name, seed=1, num_users=10, num_items=10, train_samples=7)
    assert source.spec.name == name
    assert source.num_train_samples == 7


def test_deskdrop_by_path_and_by_environment(
    write_log: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deskdrop").mkdir()
    path = write_log(deskdrop_columns(), "deskdrop/events.parquet")
    monkeypatch.setenv("MTLFAST_DATA", str(tmp_path))
    for name in (f"deskdrop:{path}", f"deskdrop:{path.parent}", "deskdrop", "deskdrop:"):
        source = open_source(name)
        assert (source.num_train_samples, source.num_test_samples) == (1, 1)
        assert source.train_batch(1, 0, 0).labels.tolist() == [[1, 0, 0, 0]]


def test_options_reach_the_event_log(write_log: Callable[..., Path]) -> None:
    columns = deskdrop_columns()
    columns["user"][2] = -2
    path = write_log(columns)
    source = open_source(
        f"deskdrop:{path}",
        seed=3,
        on_error="skip",
        max_length=7,
        label_window=5,
        context_columns=["country"],
        fields=["item", "country"],
    )
    assert isinstance(source, EventLogSource)
    assert source.seed == 3
    assert source.spec.max_length == 7
    assert source.spec.fields == ("item", "country")
    assert source.num_test_samples == 0
    assert list(source.test_batches(4)) == []
    assert source.train_batch(1, 0, 0).labels.sum() == 0


def test_unknown_sources_and_options_say_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("synthetic:movielens", "tenrek", "", "deskdropp:/data"):
        with pytest.raises(ValueError, match="data source: expected one of") as error:
            open_source(name)
        assert all(known in str(error.value) for known in SOURCES)
        assert repr(name) in str(error.value)
    with pytest.raises(ValueError, match=r"options: .*'num_items'.*found \['items'\]"):
        open_source("synthetic:tenrec", items=3)
    with pytest.raises(ValueError, match=r"options: .*'label_window'.*found \['num_items'\]"):
        open_source("deskdrop:/nowhere", num_items=3)
    monkeypatch.delenv("MTLFAST_DATA", raising=False)
    with pytest.raises(ValueError, match="MTLFAST_DATA"):
        open_source("deskdrop")
    with pytest.raises(ValueError, match=r"found no .*nowhere"):
        open_source("deskdrop:/nowhere")
