from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from aliccp_rows import skeleton_row
from aliccp_rows import write_raw as write_aliccp
from aliexpress_rows import write_raw as write_aliexpress

from mtlfast import cli
from mtlfast.commands import checkout, demo

COMMANDS = [module.NAME for module in cli.COMMANDS]
SMALL = ["num_users=500", "num_items=2000", "train_samples=2048", "test_samples=512"]
TRAIN = [
    "train", "--data", "synthetic:tenrec", "--data-options", *SMALL, "--model-options",
    "embed_dim=8", "--batch-size", "128", "--log-every", "1", "--accelerator", "cpu",
    "--threads", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def mtlfast(*arguments: str, folder: Path, **kwargs) -> subprocess.CompletedProcess:
    """The command in a process of its own, started in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "mtlfast", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


def environment() -> dict[str, str]:
    root = str(Path(cli.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def curve(folder: Path) -> list[str]:
    """train.csv without the speed."""
    lines = (folder / "train.csv").read_text().splitlines()
    return [line.rsplit(",", 1)[0] for line in lines]


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"\n    {name}\s", text)
    assert "first steps:" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_with_examples(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"mtlfast {name}" in text


def examples() -> list[str]:
    text = cli._EPILOG + "".join(module.EXAMPLES for module in cli.COMMANDS)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if re.match(r"(\w+=\S+ )?mtlfast ", line)]
    return [re.split(r"\s{3,}| > ", line)[0].partition("mtlfast ")[2] for line in commands]


@pytest.mark.parametrize("example", examples())
def test_examples_parse(example, capsys):
    arguments = shlex.split(example)
    if "--help" in arguments:
        with pytest.raises(SystemExit):
            cli.build_parser().parse_all(arguments)
    else:
        cli.build_parser().parse_all(arguments)


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from mtlfast import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'lightning_fabric', 'torchmetrics', 'pyarrow', 'matplotlib', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--lerning-rate", "1"], "--lerning-rate, did you mean --learning-rate?"),
        (["train", "--precision", "bf16"], "did you mean bf16-mixed?"),
        (["train", "--batch-size", "many"], "batch_size: expected int, found 'many'"),
        (["train", "--max-steps", "0"], "max_steps: expected at least 1, found 0"),
        (["train", "--model-options", "embed_dim"], "expected KEY=VALUE, found 'embed_dim'"),
        (["train", "--model-options", "embed_dm=8"], "embed_dm: unknown key, did you mean"),
        (["train", "--model-options", "head.name=moe"], "head.name: expected one of"),
        (["train", "--model", "dtrm"], "settings.model: expected one of dtrn, dtn, "),
        (["train", "--model", "dtrm"], "found 'dtrm'"),
        (["train", "--run-dir", "/dev/null/run"], "run_dir: expected a folder that can be made"),
        (
            [*TRAIN, "--quiet", "--backend", "cuda"],
            "backend: expected one that can run conditional_interest",
        ),
        (["train", "--data", "tenrek"], "data source: expected one of"),
        (["train", "--data-options", "sed=1"], "options: expected some of"),
        (["train", "--config", "absent.yaml"], "cannot read absent.yaml: No such file"),
        (["train", "--resume", "absent"], "absent: no such checkpoint or run folder"),
        (["evaluate", "--checkpoint", "absent"], "absent: no such checkpoint or run folder"),
        (["evaluate"], "required: --checkpoint"),
        (
            ["evaluate", "--checkpoint", "absent", "--output", "/dev/null/x/y.json"],
            "--output: expected a file in a folder that can be made, found /dev/null/x/y.json",
        ),
        (["models", "dtrm"], "model: expected one of dtrn, dtn, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_explained(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("mtlfast")
    assert not list(tmp_path.rglob("*-001"))  # no run folder is left behind


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*TRAIN, "--accelerator", "cuda"]) == 2
    assert "settings.accelerator: expected auto or cpu" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*-001"))


def test_yaml_is_overridden_by_options_and_unknown_keys_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(
        "data: synthetic:tenrec\nlearning_rate: 1e-4\n"
        "model_options: {embed_dim: 8, num_heads: 2}\n"
        "data_options: {num_users: 500, num_items: 2000, train_samples: 512, test_samples: 128}\n"
    )
    options = ["--max-steps", "1", "--model-options", "num_heads=1", "--batch-size", "64"]
    assert cli.main(["train", "--config", "good.yaml", "--quiet", *options]) == 0
    stored = json.loads(Path("runs/dtrn-tenrec-001/results.json").read_text())["config"]
    assert stored["learning_rate"] == 1e-4
    assert stored["max_steps"] == 1
    assert stored["model_options"] == {"embed_dim": 8, "num_heads": 1}

    Path("bad.yaml").write_text("learning_rates: 1e-4\n")
    assert cli.main(["train", "--config", "bad.yaml"]) == 2
    text = capsys.readouterr().err
    assert "bad.yaml.learning_rates: unknown key, did you mean 'learning_rate'?" in text


def test_missing_packages_are_named(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert cli.main(["train", "--config", "a.yaml"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'mtlfast[train,bench,analyze]'" in error


def test_models_lists_what_an_option_chooses(capsys):
    assert cli.main(["models", "sequence"]) == 0
    text = capsys.readouterr().out
    assert "the names for encoder" in text
    assert "dien        behavior=0 gru=augru auxiliary_weight=0.0" in text
    assert "mmoe          num_experts=4" in text
    assert "the names for interaction" not in text
    assert cli.main(["models", "dtn"]) == 0
    assert "learn how much each task's loss counts" in capsys.readouterr().out  # of its base


def test_models_and_env(capsys):
    assert cli.main(["models"]) == 0
    assert "dtrn" in capsys.readouterr().out
    assert cli.main(["models", "dtrn"]) == 0
    text = capsys.readouterr().out
    assert "embed_dim" in text
    assert "attention heads, a divisor of embed_dim" in text
    assert cli.main(["env", "--json"]) == 0
    assert "torch" in json.loads(capsys.readouterr().out)["versions"]


def test_bench_without_a_checkout_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(checkout.mtlfast, "__file__", str(tmp_path / "mtlfast" / "__init__.py"))
    assert cli.main(["bench"]) == 2
    assert "not part of the installed package" in capsys.readouterr().err


def test_demo_without_benchmarks(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTLFAST_DATA", str(tmp_path))
    small = dict(item.split("=") for item in SMALL)
    options = {"data_options": {k: int(v) for k, v in small.items()}, "batch_size": 128}
    monkeypatch.setattr(demo, "_GENERATED", {**demo._GENERATED, **options})
    assert cli.main(["demo", "--steps", "3", "--no-bench"]) == 0
    text = capsys.readouterr().out
    assert "no deskdrop/events.parquet" in text
    for word in ("mean AUC", "gradients", "float64", "runs on backend"):
        assert word in text
    assert (tmp_path / "runs" / "demo-tenrec-001" / "results.json").is_file()


def test_train_evaluate_and_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = mtlfast(*TRAIN, "--max-steps", "8", "--run-dir", "whole", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "mean AUC" in whole.stdout
    assert "samples/s" in whole.stderr
    results = json.loads((tmp_path / "whole" / "results.json").read_text())

    assert cli.main([*TRAIN, "--run-dir", "whole"]) == 2
    assert "--resume whole" in capsys.readouterr().err

    assert cli.main(["evaluate", "--checkpoint", "whole", "--quiet"]) == 0
    assert "mean AUC" in capsys.readouterr().out
    report = json.loads((tmp_path / "whole" / "evaluation-tenrec-step-000000008.json").read_text())
    assert report["metrics"] == results["metrics"]
    assert (tmp_path / "whole" / "evaluation-tenrec-step-000000008.csv").is_file()
    other = ["--backend", "reference", "--output", "other.json"]
    assert cli.main(["evaluate", "--checkpoint", "whole", "--quiet", *other]) == 0
    reference = json.loads((tmp_path / "other.json").read_text())
    assert reference["backend"] == "reference"
    assert reference["mean_auc"] == pytest.approx(results["mean_auc"], abs=1e-3)

    # In another process than the unbroken run, and with another state of its generators.
    assert cli.main([*TRAIN, "--max-steps", "3", "--run-dir", "part", "--quiet"]) == 0
    assert cli.main(["train", "--resume", "part", "--learning-rate", "0.5"]) == 2
    assert "learning_rate: the run in part" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "part", "--max-steps", "8", "--quiet"]) == 0
    assert curve(tmp_path / "part") == curve(tmp_path / "whole")
    resumed = json.loads((tmp_path / "part" / "results.json").read_text())
    for key in ("weights_sha256", "metrics", "train_loss"):
        assert resumed[key] == results[key]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    arguments = [sys.executable, "-m", "mtlfast", *TRAIN, "--epochs", "1000", "--run-dir", "run"]
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        log = tmp_path / "run" / "train.csv"
        deadline = time.monotonic() + 60
        while not (log.is_file() and len(log.read_text().splitlines()) > 3):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "go on with: mtlfast train --resume run" in error
    assert "Traceback" not in error
    steps = int(log.read_text().splitlines()[-1].split(",")[0])
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == [f"step-{steps:09d}.pt"]


SMALL_DTN = ["embed_dim=4", "output_dim=8", "interactions=[{name: gdcn}, {name: masknet}]"]


def train_dtn(data: str, folder: Path, *more: str) -> int:
    """20 steps in this process, with a cache of their own."""
    return cli.main(
        [
            "train", "--model", "dtn", "--data", data, "--data-options",
            f"cache={folder / 'cache'}", "--model-options", *SMALL_DTN, "--batch-size", "16",
            "--max-steps", "20", "--epochs", "9", "--accelerator", "cpu", "--threads", "1",
            "--run-dir", str(folder / "run"), "--no-tensorboard", *more,
        ]
    )  # fmt: skip


def test_dtn_on_raw_aliexpress_files(tmp_path, capsys):
    pytest.importorskip("pyarrow", reason="tables are kept as parquet")
    write_aliexpress(tmp_path / "AliExpress_NL", pages=30)
    path = tmp_path / "AliExpress_NL" / "NL_item_train.csv"
    path.write_text("1,2,3\n" + path.read_text())
    assert train_dtn(f"aliexpress:{path.parent}", tmp_path) != 0
    assert "NL_item_train.csv, line 1: expected 49 columns, found 3" in capsys.readouterr().err
    assert train_dtn(f"aliexpress:{path.parent}", tmp_path, "--on-error", "skip") == 0
    assert "1 malformed rows skipped" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["conversion"]["samples"] == 45
    assert len(curve(tmp_path / "run")) == 1 + 2


@pytest.mark.parametrize("preset", ["rechub", "aitm", "dtn"])
def test_dtn_on_raw_aliccp_files(tmp_path, preset, capsys):
    pytest.importorskip("pyarrow", reason="tables are kept as parquet")
    write_aliccp(tmp_path / "raw")
    with open(tmp_path / "raw" / "sample_skeleton_train.csv", "a") as file:
        file.write(skeleton_row(1, 1, click=0, purchase=1) + "\n")
    options = ["--data-options", f"cache={tmp_path / 'cache'}", f"preset={preset}", "part=test"]
    assert train_dtn(f"aliccp:{tmp_path / 'raw'}", tmp_path, *options) == 0
    assert "left out: 1 rows with a purchase but no click" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["click"]["samples"] == 15
