"""``python -m benchmarks.gpu`` and ``make gpu-check``: the command line."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkout import ROOT
from .steps import STEPS, Outcome, Skipped, run_step, write_answer

_EXAMPLES = """\
examples:
  make gpu-check                                       everything, under nine minutes
  python -m benchmarks.gpu --only correctness,graphs   some steps
  python -m benchmarks.gpu --device cpu --interpret    the same code without a GPU, on tiny cases

Results: $OUT/gpu-check.json where OUT is set, else benchmarks/results/<device>/gpu-check.json.
The exit status is 1 where a step failed or ran out of time.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Checks and times everything that runs on a GPU.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(step.name for step in STEPS)
    parser.add_argument("--only", default="", metavar="STEP,...", help=f"some of: {names}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--interpret", action="store_true", help="Triton's interpreter, on the CPU")
    parser.add_argument("--seconds", type=float, default=530.0, help="for all steps together")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.interpret != (options.device == "cpu"):
        parser.error("--interpret goes with --device cpu")
    if options.entry:
        return _enter(options)
    known = [step.name for step in STEPS]
    only = [name for name in options.only.split(",") if name]
    if unknown := set(only) - set(known):
        parser.error(f"--only: expected some of {', '.join(known)}, found {sorted(unknown)}")
    return _check(options, [step for step in STEPS if not only or step.name in only])


def _check(options: argparse.Namespace, steps: Sequence[Any]) -> int:
    started, deadline = _now(), time.monotonic() + options.seconds
    passed_on = ["--device", options.device, *(["--interpret"] if options.interpret else [])]
    outcomes: list[Outcome] = []
    target = _folder(options)
    _write(target, started, options, outcomes)
    for step in steps:
        left = deadline - time.monotonic()
        print(f"{step.name}: {step.what} (at most {min(step.seconds, left):.0f} s) ...", flush=True)
        if left < 2:
            outcome = Outcome(step.name, "timed out", reason="no time left for it")
        else:
            seconds = min(step.seconds, left)
            outcome = run_step(step, passed_on, seconds, options.interpret)
        outcomes.append(outcome)
        print(f"  {outcome.status} in {outcome.seconds:.1f} s {outcome.reason}", flush=True)
        if not outcome.good:
            print("  | " + "\n  | ".join(outcome.log.strip().splitlines()[-40:]), flush=True)
        # After every step, so that what is known is kept whatever happens next.
        _write(target, started, options, outcomes)
    print(_table(outcomes))
    print(f"results: {target}")
    return 0 if all(outcome.good for outcome in outcomes) else 1


def _folder(options: argparse.Namespace) -> Path:
    folder = options.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    if folder is None:
        folder = ROOT / "benchmarks" / "results" / _device_slug(options.device)
    folder.mkdir(parents=True, exist_ok=True)
    return Path(folder) / "gpu-check.json"


def _device_slug(device: str) -> str:
    if device == "cpu":
        return "interpreted"
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _write(
    target: Path, started: str, options: argparse.Namespace, outcomes: Sequence[Outcome]
) -> None:
    content = {
        "started": started,
        "written": _now(),
        "device": options.device,
        "interpreted": options.interpret,
        "steps": [outcome.to_dict() for outcome in outcomes],
    }
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(target)


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = ["", f"{'step':<14}{'status':<11}{'seconds':>8}  "]
    lines += [f"{o.step:<14}{o.status:<11}{o.seconds:>8.1f}  {o.reason[:80]}" for o in outcomes]
    for outcome in outcomes:
        if outcome.step == "benchmark" and outcome.data.get("rows"):
            from .benchmark import table

            lines += ["", table(outcome.data)]
    return "\n".join(lines)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _enter(options: argparse.Namespace) -> int:
    """The process of one step: runs its entry and writes what it says."""
    from . import entries

    answer: dict[str, Any] = {}
    try:
        run = getattr(entries, options.entry)
        answer["data"], answer["failures"] = run(options.device, options.seconds, options.answer)
    except Skipped as reason:
        answer["skipped"] = str(reason)
    except Exception as error:
        traceback.print_exc()
        if options.answer.is_file():  # what it had found before
            answer = json.loads(options.answer.read_text(encoding="utf-8"))
        answer["failures"] = [f"{type(error).__name__}: {error}".partition("\n")[0]]
    write_answer(options.answer, answer)
    for failure in answer.get("failures", []):
        print(f"failure: {failure}", file=sys.stderr)
    return 1 if answer.get("failures") else 0


if __name__ == "__main__":
    raise SystemExit(main())
