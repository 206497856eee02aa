"""Backend choice: auto, MTLFAST_BACKEND, explain, and life without the C++ ops."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from interest_cases import make

import mtlfast
from mtlfast import _extension, ops

LENGTHS = [[3, 0, 5, 1], [0, 2, 0, 1]]


def explain(**shape: Any) -> ops.Explanation:
    case = make(LENGTHS, **shape)
    return mtlfast.explain(ops.conditional_interest, *case.args, **case.kwargs)


def test_auto_takes_the_cpu_kernel() -> None:
    explanation = explain()
    assert explanation.op == "conditional_interest"
    assert explanation.backend == "cpu"
    assert str(explanation) == (
        "conditional_interest runs on backend 'cpu': fastest backend for these inputs on cpu; "
        f"instruction set: {_extension.cpu_capability()}"
    )
    assert ops.conditional_interest.__name__ == "conditional_interest"


def test_explain_takes_a_name() -> None:
    case = make(LENGTHS)
    assert mtlfast.explain("conditional_interest", *case.args, **case.kwargs) == explain()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"d": 20}, "cpu: d = 20 is not a multiple of 8 up to 256"),
        ({"d": 264}, "cpu: d = 264 is not a multiple of 8 up to 256"),
        ({"d_f": 12}, "cpu: d_f = 12 is not a multiple of 8 up to 1024"),
        ({"d_f": 1032}, "cpu: d_f = 1032 is not a multiple of 8 up to 1024"),
        ({"dtype": torch.float64}, "cpu: float64 is computed by the reference only"),
    ],
)
def test_what_the_kernel_cannot_do_runs_on_the_reference(
    shape: dict[str, Any], reason: str
) -> None:
    explanation = explain(**shape)
    assert (explanation.backend, explanation.reason) == ("reference", reason)
    case = make(LENGTHS, **shape)
    assert torch.equal(
        case.call(ops.conditional_interest),
        case.call(ops.conditional_interest, backend="reference"),
    )
    with pytest.raises(ValueError, match="one that can run conditional_interest here"):
        case.call(ops.conditional_interest, backend="cpu")


def test_layers_of_different_width_run_on_the_reference() -> None:
    case = make(LENGTHS)
    wide = make(LENGTHS, d_f=48)
    side = {name: wide.tensors[name] for name in wide.tensors if name.startswith("decoder.linear")}
    mixed = case.with_tensors(**side)
    explanation = mtlfast.explain("conditional_interest", *mixed.args, **mixed.kwargs)
    assert explanation.reason == "cpu: encoder and decoder differ in d_f: 32 and 48"
    assert mixed.call(ops.conditional_interest).shape == (4, 2, 2, 16)


def test_meta_tensors_give_shapes() -> None:
    case = make(LENGTHS).map(lambda tensor: tensor.to("meta"))
    case.offsets = case.offsets.to("meta")
    explanation = mtlfast.explain("conditional_interest", *case.args, **case.kwargs)
    assert explanation.reason == "no fused backend for device meta"
    out = case.call(ops.conditional_interest)
    assert (out.shape, out.device.type) == ((4, 2, 2, 16), "meta")


def test_the_environment_overrides_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLFAST_BACKEND", "reference")
    explanation = explain()
    assert (explanation.backend, explanation.reason) == (
        "reference",
        "MTLFAST_BACKEND asks for it",
    )
    case = make(LENGTHS)
    explicit = mtlfast.explain("conditional_interest", *case.args, **case.kwargs, backend="cpu")
    assert explicit.backend == "cpu"
    assert explicit.reason.startswith("backend asks for it; instruction set: ")
    monkeypatch.setenv("MTLFAST_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="MTLFAST_BACKEND: expected one of"):
        case.call(ops.conditional_interest)
    monkeypatch.setenv("MTLFAST_BACKEND", "cuda")
    with pytest.raises(ValueError, match=r"MTLFAST_BACKEND: .*not part of this build"):
        case.call(ops.conditional_interest)


def test_explain_refuses_what_the_op_refuses() -> None:
    case = make(LENGTHS)
    with pytest.raises(ValueError, match="num_heads: expected a positive divisor of d = 16"):
        mtlfast.explain("conditional_interest", *case.args, num_heads=5)
    with pytest.raises(ValueError, match=r"op: expected one of .*'conditional_interest'.*found"):
        mtlfast.explain("conditional_disinterest")


WITHOUT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import sys
    sys.path.insert(0, {support!r})
    from interest_cases import make
    import mtlfast
    from mtlfast import ops
    import torch
    case = make([[3, 0], [0, 2]])
    out = case.call(ops.conditional_interest)
    out.sum().backward()
    torch.compile(case.call, fullgraph=True, backend="aot_eager")(ops.conditional_interest)
messages = [str(warning.message) for warning in caught]
assert len([message for message in messages if "mtlfast" in message]) == 1, messages
explanation = mtlfast.explain("conditional_interest", *case.args, **case.kwargs)
assert explanation.backend == "reference", explanation
assert "the C++ ops are not loaded (MTLFAST_DISABLE_EXTENSION is set)" in explanation.reason
try:
    case.call(ops.conditional_interest, backend="cpu")
except ValueError as error:
    assert "the C++ ops are not loaded" in str(error), error
else:
    raise SystemExit("backend='cpu' ran without the C++ ops")
"""


def test_without_the_extension_everything_runs_on_the_reference_after_one_warning() -> None:
    support = os.path.join(os.path.dirname(os.path.dirname(__file__)), "support")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(support=support)],
        env={**os.environ, "MTLFAST_DISABLE_EXTENSION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
