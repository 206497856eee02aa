"""`mtlfast env`: what runs on this machine."""

from __future__ import annotations

import argparse

NAME = "env"
USAGE = "[--json]"
PASSES_ON = False
HELP = "versions, instruction sets, compiled features, loaded ops"
DESCRIPTION = "Report what runs here; attach the output to bug reports."
EXAMPLES = """\
examples:
  mtlfast env
  mtlfast env --json > environment.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the report."""
    import json

    import mtlfast

    report = mtlfast.env()
    print(json.dumps(report.as_dict(), indent=2) if options.json else report)
    return 0
