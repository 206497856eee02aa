from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
import torch

from mtlfast.training import CheckpointError, Interrupted, load_checkpoint
from mtlfast.training.checkpoint import find_checkpoint
from mtlfast.training.loop import weights_digest

SETTINGS = [
    {},
    {"embedding_optimizer": "rowwise_adagrad"},
    {"embedding_optimizer": "dense"},
    {"precision": "bf16-mixed"},
    {"log_every": 4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: str(list(s.values())) or "default")
def test_resume_continues_bit_for_bit(make_trainer, tiny_source, curve, settings):
    """A crash at step 17 of 20, resume at 15 in epoch 2: same curve and weights as unbroken."""
    whole = make_trainer("whole", epochs=2, **settings)
    expected = whole.fit()

    broken = make_trainer("broken", epochs=2, source=tiny_source(fail_at=7), **settings)
    broken.epoch = 1  # the planted failure is in the second epoch
    first = make_trainer("broken", epochs=2, max_steps=10, **settings)
    first.fit()
    broken.restore(load_checkpoint(find_checkpoint(broken.run_dir)), "first")
    assert (broken.step, broken.epoch, broken.epoch_step) == (10, 1, 0)
    with pytest.raises(RuntimeError, match="planted failure"):
        broken.fit()
    assert find_checkpoint(broken.run_dir).name == "step-000000015.pt"

    resumed = make_trainer("broken", epochs=2, **settings)
    torch.manual_seed(1234)  # whatever the state of the process, the checkpoint's counts
    resumed.restore(load_checkpoint(find_checkpoint(broken.run_dir)), "broken")
    assert (resumed.step, resumed.epoch, resumed.epoch_step) == (15, 1, 5)
    result = resumed.fit()

    assert curve(resumed.run_dir) == curve(whole.run_dir)
    assert weights_digest(resumed.model) == weights_digest(whole.model)
    for key in ("metrics", "train_loss", "steps", "samples", "weights_sha256", "mean_auc"):
        assert result[key] == expected[key], key


def test_dropout_state_is_needed_for_exactness(make_trainer, curve):
    """The test above can fail: without the random state the curve differs."""
    whole = make_trainer("whole", max_steps=6)
    whole.fit()
    part = make_trainer("part", max_steps=3)
    part.fit()
    content = load_checkpoint(find_checkpoint(part.run_dir))
    torch.manual_seed(99)
    content["rng"]["torch"] = torch.get_rng_state()
    rest = make_trainer("part", max_steps=6)
    rest.restore(content, "part")
    rest.fit()
    assert curve(rest.run_dir)[:4] == curve(whole.run_dir)[:4]
    assert curve(rest.run_dir) != curve(whole.run_dir)


def test_same_seed_same_bits_and_prefetch_changes_nothing(make_trainer, curve):
    results = {}
    for name, settings in {
        "a": {},
        "b": {},
        "no_prefetch": {"prefetch": 0},
        "other_seed": {"seed": 1},
    }.items():
        trainer = make_trainer(name, **settings)
        results[name] = (trainer.fit()["weights_sha256"], curve(trainer.run_dir))
    assert results["a"] == results["b"] == results["no_prefetch"]
    assert results["a"][0] != results["other_seed"][0]


def test_evaluation_on_the_way_changes_nothing(make_trainer):
    plain = make_trainer("plain").fit()
    watched = make_trainer("watched", evaluate_every=2, keep_best=True)
    assert watched.fit()["weights_sha256"] == plain["weights_sha256"]
    best = load_checkpoint(watched.run_dir / "checkpoints" / "best.pt")
    assert best["progress"]["best_auc"] == watched.best_auc
    assert watched.best_auc >= plain["mean_auc"]


def test_loss_falls_and_results_are_written(make_trainer):
    trainer = make_trainer(
        "run", epochs=30, learning_rate=0.02, log_every=20, tensorboard=True, keep_checkpoints=2
    )
    results = trainer.fit()
    folder = trainer.run_dir
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["steps"] == 300
    assert results["samples"] == 3000
    assert results["metrics"]["click"]["auc"] > 0.7
    rows = (folder / "train.csv").read_text().splitlines()
    assert rows[0] == "step,epoch,loss,loss/click,loss/like,samples_per_s"
    assert len(rows) == 16
    losses = [float(row.split(",")[2]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    first = rows[1].split(",")
    assert float(first[2]) == pytest.approx(float(first[3]) + float(first[4]), rel=1e-6)
    assert (folder / "metrics.csv").read_text().splitlines()[0].startswith("task,auc,logloss")
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == [
        "step-000000297.pt",
        "step-000000300.pt",
    ]
    assert list((folder / "tensorboard").glob("events.*"))


def test_bf16_keeps_float32_weights(make_trainer):
    trainer = make_trainer("bf16", precision="bf16-mixed")
    seen = []
    trainer.model.out.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    results = trainer.fit()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert results["train_loss"] == pytest.approx(make_trainer("f32").fit()["train_loss"], rel=0.05)


def test_max_steps_and_last_short_batch(make_trainer, tiny_source):
    trainer = make_trainer("short", source=tiny_source(num_train=25), epochs=2, max_steps=5)
    assert trainer.total_steps == 5
    assert trainer.fit()["samples"] == 25 + 20
    assert (trainer.epoch, trainer.epoch_step) == (1, 2)


def test_a_last_row_cut_short_is_written_anew_when_the_run_goes_further(make_trainer, curve):
    first = make_trainer("run", max_steps=6, log_every=4)
    first.fit()
    assert [row[0] for row in curve(first.run_dir)] == ["step", "4", "6"]
    second = make_trainer("run", max_steps=10, log_every=4)
    second.restore(load_checkpoint(find_checkpoint(first.run_dir)), "run")
    second.fit()
    whole = make_trainer("whole", max_steps=10, log_every=4)
    whole.fit()
    assert curve(second.run_dir) == curve(whole.run_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_saves_and_the_run_goes_on_exactly(make_trainer, curve, number):
    whole = make_trainer("whole", epochs=2)
    whole.fit()
    trainer = make_trainer("stopped", epochs=2, checkpoint_every=0)
    train_step = trainer._train_step

    def stop_at_seven(batch):
        train_step(batch)
        if trainer.step == 6:
            os.kill(os.getpid(), number)

    trainer._train_step = stop_at_seven
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        trainer.fit()
    assert stopped.value.checkpoint.name == "step-000000007.pt"
    assert signal.getsignal(number) is before
    rest = make_trainer("stopped", epochs=2)
    rest.restore(load_checkpoint(stopped.value.checkpoint), "stopped")
    rest.fit()
    assert curve(rest.run_dir) == curve(whole.run_dir)


def test_threads_of_a_failed_run_end(make_trainer, tiny_source):
    trainer = make_trainer("failing", source=tiny_source(fail_at=2))
    with pytest.raises(RuntimeError, match="planted failure"):
        trainer.fit()
    deadline = time.monotonic() + 5
    while any(t.name == "mtlfast-prefetch" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_restore_names_what_does_not_fit(make_trainer, tiny_source, tiny_model):
    trainer = make_trainer("run", max_steps=3)
    trainer.fit()
    path = find_checkpoint(trainer.run_dir)

    other_data = tiny_source()
    other_data.spec = type(other_data.spec).from_dict(
        {**other_data.spec.to_dict(), "vocab_sizes": [8, 60]}
    )
    with pytest.raises(CheckpointError, match=r"step-000000003.pt: .*vocab_sizes = \[8, 50\]"):
        make_trainer("a", source=other_data).restore(load_checkpoint(path), path)

    other_model = tiny_model()
    other_model.out = torch.nn.Linear(4, 2, bias=False)
    with pytest.raises(CheckpointError, match=r"step-000000003.pt: weights do not fit.*out.bias"):
        make_trainer("b", model=other_model).restore(load_checkpoint(path), path)

    with pytest.raises(CheckpointError, match="expected the states of 1 optimizers, found 2"):
        make_trainer("c", embedding_optimizer="dense").restore(load_checkpoint(path), path)


def test_empty_epoch_does_not_hang(make_trainer, tiny_source):
    trainer = make_trainer("empty", source=tiny_source(num_train=0, num_test=0), epochs=3)
    results = trainer.fit()
    assert results["steps"] == 0
    assert results["mean_auc"] is None
