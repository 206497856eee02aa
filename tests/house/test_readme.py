"""The examples in README.md run as printed, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_python_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, str(README), "exec"), names)
    assert tuple(names["interests"].shape) == (3, 4, 2, 32)
    assert tuple(names["scores"].shape) == (512, 4, 2, 32)
