"""Tuned launch options: found by measuring, kept on disk, found again whatever the lengths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import interest_cases
import pytest
import torch
from gpu import on_device
from interest_cases import PARAMETERS, Case
from mtlfast.kernels import tuned

from mtlfast import ops, reference

pytestmark = pytest.mark.skipif("triton" not in gpu.BACKENDS, reason="triton is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTLFAST_CACHE", str(tmp_path))
    monkeypatch.delenv("MTLFAST_TUNED", raising=False)
    tuned._content.cache_clear()
    return tmp_path


def make(lengths: list[list[int]]) -> Case:
    return on_device(
        interest_cases.make(lengths, d=16, d_f=32, num_heads=1, num_tasks=1, kinks=False)
    )


def arguments(case: Case) -> tuple[Any, ...]:
    tensors = {name: tensor.detach() for name, tensor in case.tensors.items()}
    return (
        tensors["values"],
        case.offsets,
        case.num_behaviors,
        tensors["target"],
        case.user_index,
        [tensors[name] for name in PARAMETERS],
        case.num_heads,
    )


def few_warps_and_rows(launch: Callable[[], None], constants: dict[str, Any]) -> float:
    """A machine that likes few rows and warps."""
    return constants.get("ROWS", constants.get("TOKENS", 0)) + 10.0 * constants["num_warps"]


def launches_of(case: Case) -> dict[str, dict[str, Any]]:
    """The options of every kernel of a forward."""
    from mtlfast.kernels.conditional_interest.launch_forward import forward

    seen = {}

    def record(kernel: Any, grid: tuple[int, ...], *rest: Any, **constants: Any) -> None:
        seen[kernel.fn.__name__] = constants

    forward(*arguments(case), 1e-5, run=record)
    return seen


def test_tuning_goes_where_it_is_fast_and_stays_right(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtlfast.kernels.conditional_interest.tune import tune

    case, lines = make([[2, 0]]), list[str]()
    table = launches_of(case)
    found = tune(
        *arguments(case),
        measure=few_warps_and_rows,
        report=lines.append,
        max_rounds=1,
        options=("rows", "warps"),
    )
    assert len(lines) == 6
    (entries,) = json.loads((cache / "tuned.json").read_text()).values()
    (options,) = entries.values()
    assert options == {name: list(launch) for name, launch in found.items()}
    # Other lengths find the same options: nothing is measured or compiled anew for them.
    case = make([[5, 1], [0, 3]])
    tuned_launches = launches_of(case)
    assert tuned_launches["decoder_tail"]["ROWS"] == table["decoder_tail"]["ROWS"] // 2
    assert tuned_launches["self_attention"]["num_warps"] == 2
    out = case.call(ops.conditional_interest, backend="triton")
    torch.testing.assert_close(out, case.call(reference.conditional_interest))
    monkeypatch.setenv("MTLFAST_TUNED", "off")
    assert launches_of(case) == table


def test_a_broken_file_is_ignored_with_a_warning(cache: Path) -> None:
    (cache / "tuned.json").write_text("{")
    with pytest.warns(UserWarning, match=r"tuned\.json: ignored"):
        assert tuned.read("device", "key") == {}


def test_entries_of_other_devices_stay(cache: Path) -> None:
    tuned.write("one", "key", {"tail": [16, 0, 32, 4, 1]})
    tuned.write("two", "key", {"tail": [32, 0, 32, 4, 1]})
    assert tuned.read("one", "key") == {"tail": [16, 0, 32, 4, 1]}
    assert tuned.read("one", "another key") == {}
    assert [file.name for file in cache.iterdir()] == ["tuned.json"]


def test_a_gpu_s_time_is_measured_and_not_the_host_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is busy when the first event is queued, and nothing waits for it before the last."""
    from mtlfast.kernels.conditional_interest.tune import milliseconds

    queued: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            queued.append("event")

        def synchronize(self) -> None:
            queued.append("wait")

        def elapsed_time(self, other: object) -> float:
            return 0.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: queued.append("busy"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: queued.append("wait"))
    assert milliseconds(lambda: queued.append("launch"), {}) == 0.25
    assert queued[:2] == ["launch", "busy"]
    timed = queued[2 : queued.index("wait")]
    assert timed == ["event", "launch", "event"] * (len(timed) // 3)
    assert queued.count("launch") == 1 + len(timed) // 3 > 3
