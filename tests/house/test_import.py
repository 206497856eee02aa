"""`import mtlfast` is light, and works where pieces are missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("MTLFAST_", "PYTHON"))}


def python(code: str, *, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env or CLEAN, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_takes_well_under_a_second_beyond_torch(tmp_path):
    code = (
        "import torch, numpy, time; start = time.perf_counter(); import mtlfast; "
        "print(time.perf_counter() - start)"
    )
    fastest = min(float(python(code, cwd=tmp_path)) for _ in range(2))
    assert fastest < 0.3


def test_import_pulls_in_nothing_but_torch_and_numpy(tmp_path):
    code = (
        "import torch, numpy, sys, json; before = set(sys.modules); import mtlfast; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    new = json.loads(python(code, cwd=tmp_path))
    # Standard library aside, only our own light files.
    foreign = {name.split(".")[0] for name in new} - set(sys.stdlib_module_names)
    assert {name for name in foreign if not name.startswith("__editable__")} == {"mtlfast"}
    assert not any(name.startswith(("mtlfast.nn", "mtlfast.ops", "mtlfast.data")) for name in new)


def test_names_are_found_on_first_use(tmp_path):
    code = (
        "import mtlfast, sys; assert 'mtlfast.jagged' not in sys.modules; "
        "mtlfast.JaggedSequences; from mtlfast import JaggedSequences as again; "
        "assert again is mtlfast.JaggedSequences; "
        "import mtlfast.jagged; assert mtlfast.jagged.JaggedSequences is again; "
        "import mtlfast.env; assert callable(mtlfast.env); "
        "assert 'JaggedSequences' in dir(mtlfast); print(mtlfast.nn.__name__)"
    )
    assert python(code, cwd=tmp_path).strip() == "mtlfast.nn"


def test_an_unknown_name_is_an_attribute_error():
    import mtlfast

    with pytest.raises(AttributeError, match="has no attribute 'no_such_thing'"):
        mtlfast.no_such_thing  # noqa: B018 (the access is the test)


@pytest.fixture
def bare_package(tmp_path: Path) -> Path:
    """mtlfast as an installation without C++ part leaves it: only the Python files."""
    site = tmp_path / "site"
    ignore = shutil.ignore_patterns("*.so", "lib", "__pycache__")
    shutil.copytree(ROOT / "mtlfast", site / "mtlfast", ignore=ignore)
    shutil.copytree(ROOT / "kernels", site / "mtlfast" / "kernels", ignore=ignore)
    return site


# No triton, and no compiler that could be found.
HIDE = (
    "import sys; sys.modules['triton'] = None; import warnings; warnings.simplefilter('always'); "
)


def bare_environment(site: Path, **more: str) -> dict[str, str]:
    return {**CLEAN, "PYTHONPATH": str(site), "PATH": "", **more}


def test_without_extension_triton_and_compiler_it_warns_once(bare_package, tmp_path):
    code = HIDE + (
        "import json\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    import mtlfast, mtlfast.ops, mtlfast.nn, mtlfast.data, mtlfast.models\n"
        "    from mtlfast import _extension\n"
        "    assert mtlfast.__file__.startswith(sys.argv[1]), mtlfast.__file__\n"
        "    assert not _extension.cpu_ops_available()\n"
        "    assert _extension.build_config() == {}\n"
        "    assert _extension.cpu_capability() == 'none'\n"
        "    assert 'missing' in str(mtlfast.env())\n"
        "ours = [str(w.message) for w in caught if 'mtlfast' in str(w.message)]\n"
        "print(json.dumps(ours))\n"
    ).replace("sys.argv[1]", repr(str(bare_package)))
    (warning,) = json.loads(python(code, env=bare_environment(bare_package), cwd=tmp_path))
    assert "libmtlfast_cpu.so is not installed" in warning
    assert "pip install" in warning


# A small conditional transformer, forward and backward, eagerly and compiled.
RUN = """
import sys, torch, mtlfast
from mtlfast.nn import ConditionalTransformer
torch.manual_seed(0)
lengths = torch.tensor([[2, 0, 3], [0, 0, 1]])
sequences = mtlfast.JaggedSequences.from_lengths(torch.randn(6, 8), lengths)
target = torch.randn(3, 8)
module = ConditionalTransformer(8, 2, 16, 2, 2)
for run in (module, torch.compile(module, backend="eager", fullgraph=True)):
    module.zero_grad()
    out = run(sequences, target)
    out[..., 0].sum().backward()
    numbers = [out[1, 0, 1, 2], out.abs().sum(), module.decoder.linear1.weight.grad.norm()]
    print(*out.shape, *(float(x) for x in numbers))
"""


def test_the_fallback_computes_what_the_ops_compute(bare_package, tmp_path):
    fallback = python(HIDE + RUN, env=bare_environment(bare_package), cwd=tmp_path)
    fused = python(RUN, cwd=tmp_path)
    rows = [[float(x) for x in line.split()] for line in (fallback + fused).splitlines()]
    assert len(rows) == 4
    assert rows[0][:4] == [3, 2, 2, 8]
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], rel=1e-4)


def test_a_disabled_extension_says_so(tmp_path):
    code = (
        "import warnings; warnings.simplefilter('ignore'); "
        "from mtlfast import _extension; print(_extension.why_unavailable())"
    )
    environment = {**CLEAN, "MTLFAST_DISABLE_EXTENSION": "1"}
    assert "MTLFAST_DISABLE_EXTENSION" in python(code, env=environment, cwd=tmp_path)


def test_a_broken_library_is_a_reason_not_a_crash(bare_package, tmp_path):
    (bare_package / "mtlfast" / "lib").mkdir()
    (bare_package / "mtlfast" / "lib" / "libmtlfast_cpu.so").write_bytes(b"not a library")
    code = (
        "import warnings; warnings.simplefilter('ignore'); "
        "from mtlfast import _extension; print(_extension.why_unavailable())"
    )
    answer = python(code, env=bare_environment(bare_package), cwd=tmp_path)
    assert answer.startswith("the libraries do not load")
