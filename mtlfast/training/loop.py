"""The training loop: Lightning Fabric steps, records, checkpoints, exact resume."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, cast

import torch
from torch import nn

from mtlfast.data import Batch, DatasetSpec, DataSource
from mtlfast.env import env
from mtlfast.models import task_losses
from mtlfast.training.checkpoint import (
    CheckpointError,
    capture_rng,
    checkpoint_name,
    prune,
    restore_rng,
    save_checkpoint,
)
from mtlfast.training.config import TrainConfig
from mtlfast.training.evaluation import METRIC_COLUMNS, Metrics, evaluate, metrics_rows
from mtlfast.training.files import write_csv, write_json
from mtlfast.training.metrics import mean_auc
from mtlfast.training.optimizers import build_optimizers
from mtlfast.training.prefetch import prefetch
from mtlfast.training.progress import Progress
from mtlfast.training.records import Records

__all__ = ["Interrupted", "Trainer"]

_PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16-mixed": "bf16-mixed"}


class Interrupted(Exception):
    """Training was stopped by the user; ``checkpoint`` holds everything up to that step."""

    def __init__(self, checkpoint: Path, run_dir: Path) -> None:
        super().__init__(f"stopped; everything so far is in {checkpoint}")
        self.checkpoint = checkpoint
        self.run_dir = run_dir


class Trainer:
    """Trains one model on one data source in one run folder.

    The folder gets ``train.csv``, ``tensorboard/``, ``checkpoints/``, and at the end
    ``results.json`` and ``metrics.csv``.

    A run that resumes from a checkpoint computes what an unbroken run computes, bit for bit on
    CPU: the checkpoint holds weights, optimizer states, random generators, the position in the
    data and the running means of the log.

    Args:
        config: settings of the run.
        source: training and test batches.
        model: ``model(*batch.inputs())`` gives logits ``[B, T]``, and
            ``model.loss(logits, labels)`` the loss.
        run_dir: an existing folder.
        quiet: no progress bar.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: DataSource,
        model: nn.Module,
        run_dir: str | Path,
        *,
        quiet: bool = False,
    ) -> None:
        from lightning_fabric import Fabric

        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.source = source
        self.model = model
        self.run_dir = Path(run_dir)
        self.quiet = quiet
        self.step = 0
        self.epoch = 0
        self.epoch_step = 0
        self.samples = 0
        self.seconds = 0.0
        self.best_auc: float | None = None
        self.last_loss: float | None = None
        self.optimizers = build_optimizers(
            model,
            learning_rate=config.learning_rate,
            embedding_learning_rate=config.embedding_learning_rate,
            weight_decay=config.weight_decay,
            embedding_optimizer=config.embedding_optimizer,
            sparse_min_rows=config.sparse_min_rows,
        )
        if config.accelerator == "cuda" and not torch.cuda.is_available():
            expected = "auto or cpu where torch sees no GPU"
            raise ValueError(f"settings.accelerator: expected {expected}, found cuda")
        self.fabric = Fabric(
            accelerator=config.accelerator, devices=1, precision=_PRECISIONS[config.precision]
        )
        self._module = self.fabric.setup_module(model)
        self._steppers: list[Any] = [self.fabric.setup_optimizers(o) for o in self.optimizers]
        self._loss = cast(Any, model).loss
        # Sums since the last row of the log: the loss, the loss of each task, the steps.
        self._sums = torch.zeros(
            1 + source.spec.num_tasks, dtype=torch.float64, device=self.fabric.device
        )
        self._steps_in_sums = 0

    # -- state -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds."""
        return {
            "config": self.config.to_dict(),
            "spec": self.source.spec.to_dict(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": capture_rng(),
            "progress": {
                "step": self.step,
                "epoch": self.epoch,
                "epoch_step": self.epoch_step,
                "samples": self.samples,
                "seconds": self.seconds,
                "best_auc": self.best_auc,
                "last_loss": self.last_loss,
                "loss_sums": self._sums.cpu(),
                "steps_in_sums": self._steps_in_sums,
            },
        }

    def restore(self, content: Mapping[str, Any], origin: str | Path) -> None:
        """Go on from the ``content`` of a checkpoint.

        Raises:
            CheckpointError: naming ``origin``, if it belongs to another data set or model.
        """
        check_spec(content, self.source.spec, origin)
        load_weights(self.model, content, origin)
        if len(content["optimizers"]) != len(self.optimizers):
            raise CheckpointError(
                f"{origin}: expected the states of {len(self.optimizers)} optimizers, "
                f"found {len(content['optimizers'])}"
            )
        try:
            for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{origin}: optimizer state does not fit: {error}") from error
        progress = content["progress"]
        for name in (
            "step",
            "epoch",
            "epoch_step",
            "samples",
            "seconds",
            "best_auc",
            "last_loss",
        ):
            setattr(self, name, progress[name])
        self._sums.copy_(progress["loss_sums"])
        self._steps_in_sums = progress["steps_in_sums"]
        restore_rng(content["rng"])

    # -- training ----------------------------------------------------------------------------

    def describe(self) -> str:
        """One paragraph on what is about to be trained."""
        spec, config = self.source.spec, self.config
        weights = sum(p.numel() for p in self.model.parameters())
        skipped = self.source.skipped
        left_out = f"; {skipped:,} malformed rows skipped" if skipped else ""
        for reason, count in self.source.left_out.items():
            left_out += f"; left out: {count:,} {reason}"
        return (
            f"{config.model} ({weights:,} weights) on {spec.name}: "
            f"{self.source.num_train_samples:,} training and {self.source.num_test_samples:,} test "
            f"samples, {spec.num_tasks} tasks ({', '.join(spec.tasks)}), "
            f"{spec.num_behaviors} behaviors{left_out}\n"
            f"{self.total_steps:,} steps of {config.batch_size}, {config.precision} on "
            f"{self.fabric.device}, run folder {self.run_dir}"
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        steps = len(self.source.train_batches(self.config.batch_size)) * self.config.epochs
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    def fit(self) -> dict[str, Any]:
        """Train to the end, evaluate on the test part, write the results.

        Returns:
            What ``results.json`` holds.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is on the disk.
        """
        config = self.config
        records = Records(
            self.run_dir,
            self.source.spec.tasks,
            start_step=self.step,
            every=config.log_every,
            tensorboard=config.tensorboard,
        )
        progress = Progress(
            self._total_samples(), done=self.samples, label="training", quiet=self.quiet
        )
        try:
            with _StopRequest() as stop:
                while self.step < self.total_steps:
                    self._train_epoch(records, progress, stop)
            progress.close()
            self._save()
            if self._steps_in_sums:  # after saving: a run that goes further writes a whole row
                self._log(records, progress, self.samples / max(self.seconds, 1e-9))
            metrics = self.evaluate()
            records.test(self.step, metrics)
            self._note_best(metrics)
        finally:
            progress.close()
            records.close()
        return self._write_results(metrics)

    def _train_epoch(self, records: Records, progress: Progress, stop: _StopRequest) -> None:
        """Train to the end of the current epoch or of the run."""
        config = self.config
        stream = self.source.train_batches(config.batch_size, self.epoch, self.epoch_step)
        batches = self._prepared(islice(stream, self.total_steps - self.step))
        self._module.train()
        mark, mark_samples = time.perf_counter(), self.samples
        begun, seconds_before = mark, self.seconds
        try:
            for batch in batches:
                self._train_step(batch)
                self.step += 1
                self.epoch_step += 1
                self.samples += len(batch)
                progress.advance(len(batch))
                self.seconds = seconds_before + time.perf_counter() - begun
                if self.step % config.log_every == 0:
                    now = time.perf_counter()
                    rate = (self.samples - mark_samples) / max(now - mark, 1e-9)
                    mark, mark_samples = now, self.samples
                    self._log(records, progress, rate)
                if stop.requested:
                    raise Interrupted(self._save(), self.run_dir)
                if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                    self._save()
                if self._evaluation_due():
                    metrics = self.evaluate()
                    records.test(self.step, metrics)
                    self._note_best(metrics)
                    progress.say(f"step {self.step}: mean test AUC {_auc_text(metrics)}")
        finally:
            batches.close()  # stops the thread that prepares batches
        if self.epoch_step == stream.num_steps:
            self.epoch += 1
            self.epoch_step = 0

    def _prepared(self, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
        """Batches made ahead by a second thread, ready for a quick copy to the device."""
        if self.fabric.device.type == "cuda":
            batches = map(Batch.pin_memory, batches)
        return prefetch(batches, self.config.prefetch)

    def _train_step(self, batch: Batch) -> None:
        batch = batch.to(self.fabric.device, non_blocking=True)
        logits = self._module(*batch.inputs())
        loss = self._loss(logits, batch.labels)
        for optimizer in self._steppers:
            optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        for optimizer in self._steppers:
            optimizer.step()
        with torch.no_grad():
            self._sums[0] += loss
            self._sums[1:] += task_losses(logits, batch.labels)
        self._steps_in_sums += 1

    def _log(self, records: Records, progress: Progress, rate: float) -> None:
        self.last_loss, *losses = (self._sums / self._steps_in_sums).tolist()
        self._sums.zero_()
        self._steps_in_sums = 0
        records.train(self.step, self.epoch, self.last_loss, losses, rate)
        progress.show(loss=self.last_loss)

    def _total_samples(self) -> int:
        config = self.config
        per_epoch = self.source.num_train_samples
        steps_per_epoch = len(self.source.train_batches(config.batch_size))
        full, rest = divmod(self.total_steps, max(steps_per_epoch, 1))
        return full * per_epoch + min(rest * config.batch_size, per_epoch)

    # -- evaluation --------------------------------------------------------------------------

    def evaluate(self) -> Metrics:
        """AUC and LogLoss per task on the test part."""
        config = self.config
        stream = self.source.test_batches(config.batch_size)
        count = len(stream) if config.test_batches is None else config.test_batches
        total = min(self.source.num_test_samples, count * config.batch_size)
        progress = Progress(total, label="testing", quiet=self.quiet)
        batches = self._prepared(islice(stream, count))
        try:
            return evaluate(
                self._module,
                batches,
                self.source.spec.tasks,
                parents=self.source.spec.task_parents,
                device=self.fabric.device,
                on_batch=progress.advance,
            )
        finally:
            batches.close()
            progress.close()

    def _evaluation_due(self) -> bool:
        every = self.config.evaluate_every
        return bool(every) and self.step % every == 0 and self.step < self.total_steps

    # -- writing -----------------------------------------------------------------------------

    def _save(self) -> Path:
        folder = self.run_dir / "checkpoints"
        path = folder / checkpoint_name(self.step)
        save_checkpoint(path, self.state())
        prune(folder, self.config.keep_checkpoints)
        return path

    def _note_best(self, metrics: Metrics) -> None:
        auc = mean_auc(metrics)
        if auc is None or (self.best_auc is not None and auc <= self.best_auc):
            return
        self.best_auc = auc
        if self.config.keep_best:
            save_checkpoint(self.run_dir / "checkpoints" / "best.pt", self.state())

    def _write_results(self, metrics: Metrics) -> dict[str, Any]:
        results = {
            "model": self.config.model,
            "data": self.config.data,
            "seed": self.config.seed,
            "steps": self.step,
            "samples": self.samples,
            "train_seconds": self.seconds,
            "samples_per_s": self.samples / max(self.seconds, 1e-9),
            "train_loss": self.last_loss,
            "mean_auc": mean_auc(metrics),
            "metrics": metrics,
            "checkpoint": str(self.run_dir / "checkpoints" / checkpoint_name(self.step)),
            "weights_sha256": weights_digest(self.model),
            "config": self.config.to_dict(),
            "environment": env().as_dict(),
        }
        write_csv(self.run_dir / "metrics.csv", METRIC_COLUMNS, metrics_rows(metrics))
        write_json(self.run_dir / "results.json", results)
        return results


def check_spec(content: Mapping[str, Any], spec: DatasetSpec, origin: str | Path) -> None:
    """Whether a checkpoint's ``content`` was trained on data of this ``spec``.

    Raises:
        CheckpointError: naming ``origin`` and what differs.
    """
    for key, value in spec.to_dict().items():
        stored = content["spec"].get(key, [])  # a key of later versions, empty before
        if key not in ("name", "positive_rates") and stored != value:
            raise CheckpointError(
                f"{origin}: was trained on other data: expected {key} = {stored!r}, found {value!r}"
            )


def load_weights(model: nn.Module, content: Mapping[str, Any], origin: str | Path) -> None:
    """Copy the weights of a checkpoint's ``content`` into ``model``.

    Raises:
        CheckpointError: naming ``origin`` and the first entry that does not fit.
    """
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        lines: Sequence[str] = str(error).splitlines()
        detail = lines[1].strip() if len(lines) > 1 else lines[0]
        raise CheckpointError(f"{origin}: weights do not fit this model: {detail}") from error


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names and values of all weights: equal digests mean equal models."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _auc_text(metrics: Metrics) -> str:
    auc = mean_auc(metrics)
    return "n/a" if auc is None else f"{auc:.4f}"


class _StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second one acts as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopRequest:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        except ValueError:  # only the main thread may; elsewhere signals stay as they are
            pass
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
