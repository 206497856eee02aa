from __future__ import annotations

import random
import resource

import numpy as np
import pytest
import torch

from mtlfast.training import checkpoint
from mtlfast.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def content(value: float) -> dict:
    return {
        "config": {},
        "spec": {},
        "model": {"w": torch.full((1000,), value)},
        "optimizers": [],
        "rng": checkpoint.capture_rng(),
        "progress": {"step": 1},
    }


def test_round_trip_needs_no_pickled_code(tmp_path):
    save_checkpoint(tmp_path / "a.pt", content(2.0))
    loaded = load_checkpoint(tmp_path / "a.pt")  # weights_only: would refuse anything but data
    assert torch.equal(loaded["model"]["w"], torch.full((1000,), 2.0))


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_crash_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.pt"
    save_checkpoint(path, content(1.0))
    old = path.read_bytes()

    def crash(*args, **kwargs):
        raise OSError("disk gone")

    if moment == "write":

        def half(record, file):
            file.write(b"half a checkpoint")
            crash()

        monkeypatch.setattr(torch, "save", half)
    else:
        monkeypatch.setattr(f"mtlfast.training.files.os.{moment}", crash)
    with pytest.raises(OSError, match="disk gone"):
        save_checkpoint(path, content(2.0))
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_kill_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """A killed process cleans up nothing: the partial file is neither found nor kept."""
    save_checkpoint(tmp_path / "step-000000001.pt", content(1.0))
    (tmp_path / ".step-000000002.pt.77.partial").write_bytes(b"half a checkpoint")
    assert checkpoint.find_checkpoint(tmp_path).name == "step-000000001.pt"
    checkpoint.prune(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.pt"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"", "damaged"),
        (lambda data: b"not a checkpoint at all", "damaged"),
        (lambda data: data.replace(b"@@@@", b"@@AA"), "damaged"),
    ],
    ids=["truncated", "empty", "text", "flipped bits"],
)
def test_damaged_files_are_named(tmp_path, damage, reason):
    path = tmp_path / "step-000000001.pt"
    record = content(1.0)
    record["model"]["w"] = torch.frombuffer(bytearray(b"@" * 4000), dtype=torch.float32)
    save_checkpoint(path, record)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"step-000000001.pt: {reason}"):
        load_checkpoint(path)


def test_other_files_are_named(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: not a checkpoint of mtlfast"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"format": checkpoint.FORMAT, "version": 99}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match=r"new.pt: expected checkpoint version 1, found 99"):
        load_checkpoint(tmp_path / "new.pt")
    torch.save({"format": checkpoint.FORMAT, "version": 1, "model": {}}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"part.pt: incomplete, without config"):
        load_checkpoint(tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint or run folder"):
        checkpoint.find_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        checkpoint.find_checkpoint(tmp_path)


def test_random_generators_are_restored():
    state = checkpoint.capture_rng()
    first = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002 (the global one)
    checkpoint.restore_rng(state)
    second = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002
    assert torch.equal(first[0], second[0])
    assert (first[1] == second[1]).all()
    assert first[2] == second[2]


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "step.pt"
    save_checkpoint(path, {"model": torch.zeros(3)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*step\.pt'"):
            save_checkpoint(path, {"model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
