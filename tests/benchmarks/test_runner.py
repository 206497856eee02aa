"""Resuming, refusing, and one real run of every part."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import runner
from benchmarks.cases import (
    BACKENDS,
    DTYPES,
    MODES,
    Case,
    Job,
    Stem,
    full_jobs,
    multi_hash_case,
    quick_jobs,
    select,
    training_case,
)
from benchmarks.dtn_training import DTNTrainingWorkload
from benchmarks.dtrn_training import TrainingWorkload
from benchmarks.store import Store
from benchmarks.workloads import make_workload

from .test_store import make_row

CASE = training_case("tenrec", 32)
JOB = Job(CASE, ("forward", "training"), (2, 1), backends=("fused", "ragged"), memory=False)


class Workers:
    """Stands for the worker processes; fails on request."""

    def __init__(self) -> None:
        self.started: list[tuple[str, ...]] = []
        self.stop_at: tuple[str, int] | None = None

    def __call__(self, job: Job, task, progress):
        for mode in job.modes:
            for threads in job.threads:
                if (mode, threads) == self.stop_at:
                    raise KeyboardInterrupt
                self.started.append((mode, threads))
                fields = {"mode": mode, "threads": threads, "seconds": 1.0, "spread": 0.0}
                fields |= {"samples_per_s": 1.0, "ratios": {}}
                yield "rows", [make_row(name, **fields) for name in job.backends]


@pytest.fixture
def workers(monkeypatch) -> Workers:
    fake = Workers()
    monkeypatch.setattr(runner, "_work", fake)
    return fake


def _run(tmp_path: Path, **options):
    return runner.run(jobs=[JOB], out=tmp_path, plots=False, quiet=True, **options)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, workers: Workers) -> None:
    workers.stop_at = ("training", 1)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path)
    assert len(Store(tmp_path).rows) == 6
    workers.stop_at = None
    before = len(workers.started)
    rows = _run(tmp_path)
    assert workers.started[before:] == [("training", 1)]
    assert len(rows) == 8


def test_fresh_measures_again(tmp_path: Path, workers: Workers) -> None:
    _run(tmp_path)
    _run(tmp_path)
    assert len(workers.started) == 4
    _run(tmp_path, fresh=True)
    assert len(workers.started) == 8


def test_rows_of_other_code_are_measured_again(
    tmp_path: Path, workers: Workers, monkeypatch
) -> None:
    _run(tmp_path)
    monkeypatch.setattr(runner, "fingerprint", lambda stem: "changed")
    assert {row["fingerprint"] for row in _run(tmp_path)} == {"changed"}


def test_a_worker_that_dies_costs_its_job_only(tmp_path: Path, capsys) -> None:
    broken = Job(CASE, ("forward",), (2,), backends=("fused",), allocator="no such thing")
    progress = runner.Progress(1, quiet=True)
    with pytest.raises(KeyError):  # a programming error is not hidden
        list(runner._work(broken, ["time"], progress))
    list(runner._work(JOB, ["memory", '[["no such backend", "forward"]]'], progress))
    assert "no such backend" in capsys.readouterr().err


def test_a_worker_and_its_report_for_real(tmp_path: Path, capsys) -> None:
    case = training_case("tenrec", 8, batch=8, users=8)
    job = Job(case, ("training",), (1,), backends=("batched", "ragged"), seconds=0.05, memory=False)
    rows = runner.run(jobs=[job], out=tmp_path, quiet=True)
    assert [row["backend"] for row in rows] == ["batched", "ragged"]
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < row["seconds"] < 5
        assert row["error"] < 1e-5
        assert "mmap_max=0" in row["tunables"] or not row["tunables"].startswith("GLIBC")
    assert rows[0]["ratios"]["ragged"] == pytest.approx(1 / rows[1]["ratios"]["batched"], rel=0.5)
    assert "batched" in capsys.readouterr().out
    assert {"results.json", "results.csv"} <= {path.name for path in tmp_path.iterdir()}


def test_cases_have_their_own_names_and_filters_find_them() -> None:
    jobs = full_jobs()
    keys = [(job.case.name, n, job.allocator) for job in jobs for n in job.threads]
    assert len(set(keys)) == len(keys)
    assert all(Job.from_dict(job.to_dict()) == job for job in jobs + quick_jobs())
    found = select(jobs, pattern="tenrec,d32", threads=[1], modes=["forward"], dtypes=["float32"])
    assert found
    for job in found:
        assert job.case.d == 32
        assert (job.threads, job.modes) == ((1,), ("forward",))


def test_command_line(capsys) -> None:
    assert command.main(["--list", "--filter", "serving-does-not-exist"]) == 2
    assert "no case is left" in capsys.readouterr().err
    assert command.main(["--list", "--cases", "dtrn_training"]) == 0
    assert "dtrn_training/tenrec/d32/B2048" in capsys.readouterr().out
    assert command.main(["--dtype", "float8"]) == 2
    assert "expected some of float32, bfloat16, found 'float8'" in capsys.readouterr().err
    assert command.main(["--backends", "fused,fussed"]) == 2
    assert "--backends: expected some of fused, " in capsys.readouterr().err
    for seconds in ("-1", "0", "nan"):
        assert command.main(["--seconds", seconds]) == 2
        assert "--seconds: expected a positive number" in capsys.readouterr().err


@pytest.mark.parametrize("stem", ["conditional_interest", "conditional_layer_norm"])
def test_every_backend_has_its_name_in_the_table(stem: Stem) -> None:
    found = set()
    for dtype in DTYPES:
        for users in (2, 4):
            case = Case(stem=stem, batch=4, users=users, d=8, dtype=dtype)
            workload = make_workload(case, sets=1)
            found |= {name for mode in MODES for name in workload.backends(mode)}
    assert found == set(BACKENDS[stem])


def test_every_backend_of_the_other_stems_has_its_name_in_the_table() -> None:
    # No workload is made (it would hold a whole model): the method asks nothing of it.
    assert set(TrainingWorkload.backends(None, "training")) == set(BACKENDS["dtrn_training"])  # type: ignore[arg-type]
    assert set(DTNTrainingWorkload.backends(None, "training")) == set(BACKENDS["dtn_training"])  # type: ignore[arg-type]
    found = set()
    for gradient in ("dense", "sparse", "step"):
        case = multi_hash_case(3, 1, d=4, batch=4, num_codewords=50, gradient=gradient)
        workload = make_workload(case, sets=1)
        found |= {name for mode in MODES for name in workload.backends(mode)}
    assert found == set(BACKENDS["multi_hash_lookup"])
    gated = make_workload(Case("gated_cross", batch=4, d=4, num_fields=2), sets=1)
    assert set(gated.backends("forward")) == set(BACKENDS["gated_cross"])
