"""``python -m benchmarks.gpu`` without a GPU: the same steps on tiny cases, interpreted."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import __main__ as command  # noqa: E402 (by the path above)
from benchmarks.gpu import deadline, entries, graphs, steps  # noqa: E402 (by the path above)
from benchmarks.gpu.benchmark import plans, table  # noqa: E402 (by the path above)
from benchmarks.gpu.worker import Lost, Worker  # noqa: E402 (by the path above)

# As on a machine that has nothing but what the check needs: these packages are not there.
BARE = """
import sys
for name in ("matplotlib", "pytest_benchmark", "hypothesis", "lightning_fabric", "torchmetrics",
             "yaml", "pyarrow", "tqdm", "tensorboard", "pandas", "setuptools"):
    sys.modules[name] = None
sys.argv = ["benchmarks.gpu", *sys.argv[1:]]
import runpy
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--interpret", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_all_steps_run_and_are_reported(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    status = {step["step"]: step["status"] for step in found["steps"]}
    assert status == {
        "build": "skipped",
        "environment": "passed",
        "compile": "passed",
        "correctness": "passed",
        "graphs": "passed",
        "memcheck": "skipped",
        "racecheck": "skipped",
        "benchmark": "passed",
    }
    assert found["interpreted"] is True
    data = {step["step"]: step["data"] for step in found["steps"]}
    assert data["correctness"]["tests"] >= 3
    assert data["graphs"]["conditional_layer_norm/triton/compiled"] == "passed"
    assert data["graphs"]["conditional_layer_norm/triton/exported"] == "passed"
    assert data["graphs"]["multi_hash_lookup/triton/compiled"] == "passed"
    rows = data["benchmark"]["rows"]
    (fused,) = (
        r
        for r in rows
        if r["backend"] == "triton" and r["mode"] == "training" and "layer_norm" in r["case"]
    )
    assert fused["status"] == "ok"
    assert fused["ratios"]["eager"] > 0
    assert fused["tflops"] > 0
    assert table(data["benchmark"]) in done.stdout


def test_it_needs_few_packages(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--interpret", "--entry", "small"]
    arguments += ["--answer", str(tmp_path / "answer.json")]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["data"]["conditional_layer_norm/triton/bfloat16"] == "ran"


def test_a_failing_step_is_reported_and_the_rest_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = (
        steps.Step("fails", 20, "", "no_such_entry"),
        steps.Step("hangs", 1.0, "", "build", prefix=("sh", "-c", "sleep 60")),
        steps.Step("missing", 20, "", "build", prefix=("no-such-sanitizer",)),
        steps.Step("passes", 60, "", "build"),
    )
    monkeypatch.setattr(command, "STEPS", fakes)
    real = steps.run_step

    def run_step(step: steps.Step, options: Any, seconds: float, _: bool) -> steps.Outcome:
        return real(step, options, seconds, step.name in ("fails", "passes"))

    monkeypatch.setattr(command, "run_step", run_step)
    code = command.main(["--device", "cpu", "--interpret", "--out", str(tmp_path)])
    assert code == 1
    outcomes = json.loads((tmp_path / "gpu-check.json").read_text())["steps"]
    assert [outcome["status"] for outcome in outcomes] == [
        "failed",
        "timed out",
        "skipped",
        "skipped",
    ]
    assert "no_such_entry" in outcomes[0]["reason"]
    assert "no-such-sanitizer is not installed" in outcomes[2]["reason"]
    assert "after 1 s" in capsys.readouterr().out


KEEPS_AND_HANGS = """
for word; do
  if [ "$last" = --answer ]; then echo '{"data": {"rows": 3}, "failures": ["a case"]}' > "$word"; fi
  last=$word
done
sleep 60
"""


def test_what_a_step_found_before_its_time_was_up_is_kept() -> None:
    step = steps.Step("hangs", 1.0, "", "build", prefix=("sh", "-c", KEEPS_AND_HANGS))
    outcome = steps.run_step(step, [], 1.0, interpret=False)
    assert (outcome.status, outcome.data) == ("timed out", {"rows": 3})
    assert outcome.reason == "after 1 s; a case"


def test_a_sanitizer_that_cannot_look_into_the_device_is_no_failure() -> None:
    prefix = ("sh", "-c", "echo '=== Error: Device not supported'; exit 9")
    outcome = steps.run_step(steps.Step("one", 9, "", "small", prefix), [], 9, interpret=False)
    assert outcome.status == "skipped"
    assert "Device not supported" in outcome.reason
    other = ("sh", "-c", "echo 'ERROR SUMMARY: 1 error'; exit 9")
    outcome = steps.run_step(steps.Step("one", 9, "", "small", other), [], 9, interpret=False)
    assert outcome.status == "failed"


def test_sanitizers_look_at_kernels_only() -> None:
    """torch's questions to a driver, answered with an error, would end the step with one."""
    found = [step.prefix for step in steps.STEPS if step.prefix]
    assert len(found) == 2
    for prefix in found:
        assert prefix[prefix.index("--report-api-errors") + 1] == "no"


def test_one_case_may_take_its_process_along() -> None:
    worker = Worker("cpu")
    try:
        assert worker.ask(abs, -3, seconds=60) == 3
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker.ask(divmod, 1, 0, seconds=60)
        own = worker.ask(os.getpid, seconds=60)
        assert own != os.getpid()
        with pytest.raises(Lost, match="ended with status 7"):
            worker.ask(os._exit, 7, seconds=60)
        assert worker.ask(os.getpid, seconds=60) != own
        with pytest.raises(Lost, match="no answer after 0 s"):
            worker.ask(time.sleep, 60, seconds=0.2)
        assert worker.ask(abs, -4, seconds=60) == 4
    finally:
        worker.stop()


def test_a_failed_capture_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.graph does not, where the end of the capture raises."""
    streams = [SimpleNamespace(name="default", wait_stream=lambda other: None)]

    class Graph:
        def __init__(self, graph: Any) -> None:
            pass

        def __enter__(self) -> None:
            streams.append(SimpleNamespace(name="capture"))

        def __exit__(self, *error: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    for name, fake in {
        "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda: streams[-1],
        "set_stream": streams.append,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "CUDAGraph": lambda: None,
        "graph": Graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with pytest.raises(RuntimeError, match="previous error"):
        graphs.capture(lambda: None)
    assert streams[-1].name == "default"


TESTS = """
import pytest

def test_fuzz_one(): assert False, "too late"
def test_quick(): pass
@pytest.mark.parametrize("n", range(3))
def test_alike(n): raise ValueError("the same")
"""


@pytest.mark.parametrize("late", [False, True])
def test_tests_without_time_are_counted_and_failures_gathered(late: bool, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    results = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.deadline"]
    command += ["-p", "no:cacheprovider", f"--rootdir={tmp_path}", f"--junitxml={results}"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        deadline.VARIABLE: "0" if late else "1e12",
    }
    code = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=environment).returncode
    counts, failures = entries.read_results(results, code)
    assert counts["tests"] == 5
    assert counts["no_time"] == (5 if late else 0)
    assert counts["note"] == ("5 of 5 tests had no time left" if late else "")
    assert failures, "nothing passed, or not all"
    if not late:
        alike = [f"test_alike[{n}]" for n in range(3)]
        assert sorted(counts["failed"].values(), key=len) == [["test_fuzz_one"], alike]
        names = [case.get("name") for case in ElementTree.parse(results).iter("testcase")]
        assert names[-1] == "test_fuzz_one"


def test_without_results_the_step_fails(tmp_path: Path) -> None:
    assert entries.read_results(tmp_path / "none.xml", 4) == (
        {},
        ["pytest ended with 4 and wrote no results"],
    )


def test_results_go_where_out_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "STEPS", ())
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert command.main(["--device", "cpu", "--interpret"]) == 0
    assert (tmp_path / "out" / "gpu-check.json").is_file()


def test_steps_and_cases_are_told_apart_by_name() -> None:
    names = [step.name for step in steps.STEPS]
    assert names[0] == "build"
    assert len(set(names)) == len(names)
    cases = plans("cuda")
    assert len({(plan.case.name, plan.mode) for plan in cases}) == len(cases)
    assert {plan.mode for plan in cases} == {"forward", "training", "serving"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_on_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import main

    assert main(["--device", "cuda"]) == 2
    assert "--device: expected a GPU that torch sees" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_check_fails_and_says_so(tmp_path: Path) -> None:
    code = command.main(["--only", "environment", "--out", str(tmp_path)])
    assert code == 1
    (outcome,) = json.loads((tmp_path / "gpu-check.json").read_text())["steps"]
    assert outcome["status"] == "failed"
    assert "torch sees no GPU" in outcome["reason"]
