"""A pytest plugin: tests that would start too late are skipped, and fuzzing comes last.

On a GPU every width of a kernel is compiled anew, for seconds; how many fit into the time of the
step depends on the machine. What was skipped is counted and said.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

VARIABLE = "MTLFAST_TEST_DEADLINE"  # seconds, as time.time() counts them
NO_TIME = "no time was left for it"


def pytest_collection_modifyitems(items: list[Any]) -> None:
    items.sort(key=lambda item: "fuzz" in item.name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    if time.time() > float(os.environ.get(VARIABLE, "inf")):
        pytest.skip(NO_TIME)
