"""``python -m benchmarks`` and ``mtlfast bench``: the command line."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace

from .cases import BACKENDS, DTYPES, MODES, STEMS, Job, full_jobs, quick_jobs, select

_DESCRIPTION = """\
Times the fused ops and the training steps of DTRN and DTN against every baseline, interleaved in
one process, each checked against the float64 reference first. Prints a table; writes results.json,
results.csv and plots. A run that was stopped goes on where it was when it is started again.
"""
_EXAMPLES = """\
examples:
  mtlfast bench --quick                          a minute: fused, batched, ragged, reference
  mtlfast bench                                  everything: hours, but can be stopped and resumed
  mtlfast bench --cases conditional_interest --filter tenrec,d32 --dtype float32
  mtlfast bench --backends fused,ragged --threads 1 --modes forward --no-memory
  mtlfast bench --device cuda                    the GPU kernels and their baselines
  mtlfast bench --list                           the cases and how many rows each has
  mtlfast bench --table                          print the table of an earlier run again

Measure on a machine that does nothing else: a row says how many cores others used meanwhile.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, 1 where a result was wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; start it again to go on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtlfast bench",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choose = parser.add_argument_group("what to measure")
    choose.add_argument(
        "--quick", action="store_true", help="under a minute, smaller batches, few baselines"
    )
    choose.add_argument(
        "--cases", metavar="STEM,...", default="", help=f"only these: {', '.join(STEMS)}"
    )
    choose.add_argument(
        "--filter",
        metavar="TEXT,...",
        help="only cases whose name contains every TEXT; see --list",
    )
    choose.add_argument("--threads", metavar="N,...", default="", help="only on so many threads")
    choose.add_argument(
        "--dtype", metavar="DTYPE,...", default="", help=f"only these: {', '.join(DTYPES)}"
    )
    choose.add_argument(
        "--modes", metavar="MODE,...", default="", help=f"only these: {', '.join(MODES)}"
    )
    choose.add_argument("--backends", metavar="NAME,...", default="", help="only these backends")
    choose.add_argument("--list", action="store_true", help="show the cases and stop")

    choose.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: the cases for GPUs (python -m benchmarks.gpu has the options)",
    )

    how = parser.add_argument_group("how")
    how.add_argument("--seconds", type=float, help="time budget of one mode on one thread count")
    how.add_argument("--fresh", action="store_true", help="measure again what is there already")
    how.add_argument("--no-memory", dest="memory", action="store_false", help="skip peak memory")
    how.add_argument("--no-plots", dest="plots", action="store_false", help="draw nothing")
    how.add_argument("--out", metavar="DIR", help="folder of the results")
    how.add_argument("--quiet", action="store_true", help="no progress")
    how.add_argument("--table", action="store_true", help="print and plot an earlier run, stop")
    how.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.device == "cuda":
        return _run_on_gpu(options)
    jobs = select(
        quick_jobs() if options.quick else full_jobs(),
        pattern=options.filter,
        stems=_words("--cases", options.cases, STEMS),
        threads=_numbers("--threads", options.threads),
        dtypes=_words("--dtype", options.dtype, DTYPES),
        modes=_words("--modes", options.modes, MODES),
    )
    if not jobs:
        raise ValueError("no case is left; see --list")
    if options.seconds is not None and not 0 < options.seconds < math.inf:
        raise ValueError(f"--seconds: expected a positive number, found {options.seconds}")
    known = dict.fromkeys(name for job in jobs for name in BACKENDS[job.case.stem])
    backends = _words("--backends", options.backends, tuple(known))
    jobs = [_adjusted(job, backends, options.seconds) for job in jobs]
    if options.list:
        for job in jobs:
            threads = "/".join(map(str, job.threads))
            print(f"{job.case.name:58} {', '.join(job.modes):18} threads {threads}")
        return 0
    if options.table:
        return _print_earlier(options, jobs)

    from .runner import run

    rows = run(
        options.quick,
        jobs=jobs,
        out=options.out,
        fresh=options.fresh,
        memory=options.memory,
        plots=options.plots,
        quiet=options.quiet,
    )
    if options.json:
        print(json.dumps(rows, indent=1))
    return int(any(row["status"].startswith(("wrong", "failed")) for row in rows))


def _run_on_gpu(options: argparse.Namespace) -> int:
    import torch

    from .gpu.__main__ import main as check

    if not torch.cuda.is_available():
        raise ValueError("--device: expected a GPU that torch sees, found none")
    out = ["--out", options.out] if options.out else []
    return check(["--only", "environment,benchmark", *out])


def _print_earlier(options: argparse.Namespace, jobs: Sequence[Job]) -> int:
    from pathlib import Path

    from .report import report
    from .runner import default_folder
    from .store import Store

    folder = Path(options.out) if options.out else default_folder() / ("quick" * options.quick)
    store = Store(folder)
    names = {job.case.name for job in jobs}
    modes = {mode for job in jobs for mode in job.modes}
    threads = {n for job in jobs for n in job.threads}
    rows = [
        row
        for row in store.rows
        if row["name"] in names and row["mode"] in modes and row["threads"] in threads
    ]
    report(rows, store, plots=options.plots)
    return 0


def _adjusted(job: Job, backends: tuple[str, ...], seconds: float | None) -> Job:
    if backends:
        job = replace(job, backends=backends)
    return job if seconds is None else replace(job, seconds=seconds)


def _words(option: str, text: str, allowed: Sequence[str] = ()) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in words:
        if allowed and word not in allowed:
            raise ValueError(f"{option}: expected some of {', '.join(allowed)}, found {word!r}")
    return words


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = _words(option, text)
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise ValueError(f"{option}: expected positive numbers, found {text!r}")
    return tuple(int(word) for word in words)


if __name__ == "__main__":
    sys.exit(main())
