"""From a config, or a checkpoint, to a trainer or a model that is ready."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlfast import models
from mtlfast.data import DatasetSpec, DataSource, open_source
from mtlfast.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from mtlfast.training.config import TrainConfig, changed_keys, expand
from mtlfast.training.loop import Trainer, check_spec, load_weights
from mtlfast.training.metrics import mean_auc
from mtlfast.training.progress import Progress

__all__ = [
    "Restored",
    "evaluate_checkpoint",
    "load_model",
    "make_model",
    "make_source",
    "open_checkpoint",
    "resume_training",
    "start_training",
    "stored_settings",
]

_GATE_BATCHES = 20  # which of DTN's modules are used least shows in so many


def make_source(config: TrainConfig, *, quiet: bool = False) -> DataSource:
    """The data source that ``config`` names; without ``quiet``, long work shows a progress bar."""
    options = dict(config.data_options)
    if config.on_error != "raise":
        options["on_error"] = config.on_error
    progress = partial(Progress, delay=1.0, quiet=quiet)
    return open_source(expand(config.data), progress=progress, **options)


def make_model(config: TrainConfig, spec: DatasetSpec) -> nn.Module:
    """The model that ``config`` names, freshly initialised from its seed."""
    if config.model not in models.available():
        expected = f"one of {', '.join(models.available())}"
        raise ValueError(f"settings.model: expected {expected}, found {config.model!r}")
    torch.manual_seed(config.seed)
    return models.build(config.model, spec, config.model_options, backend=_backend(config))


def start_training(config: TrainConfig, run_dir: str | Path, *, quiet: bool = False) -> Trainer:
    """A trainer at step 0, with fresh weights or those of ``config.start_from``.

    Where modules are trimmed, the trainer's config names them in ``model_options.removed``.

    Raises:
        CheckpointError: if the weights to start from do not fit model or data.
        ValueError: naming a wrong setting.
    """
    source = make_source(config, quiet=quiet)
    if config.start_from is None:
        return _trainer(config, source, run_dir, quiet)
    file = find_checkpoint(config.start_from)
    content = load_checkpoint(file)
    check_spec(content, source.spec, file)
    model = make_model(config, source.spec)
    load_weights(model, content, file)
    if config.trim:
        model, config = _trimmed(model, config, source)
    trainer = _trainer(config, source, run_dir, quiet)
    trainer.model.load_state_dict(model.state_dict())
    return trainer


def _trainer(config: TrainConfig, source: DataSource, run_dir: str | Path, quiet: bool) -> Trainer:
    from lightning_fabric import seed_everything

    seed_everything(config.seed, verbose=False)
    return Trainer(config, source, make_model(config, source.spec), run_dir, quiet=quiet)


def _trimmed(
    model: nn.Module, config: TrainConfig, source: DataSource
) -> tuple[nn.Module, TrainConfig]:
    """DTN-trim (arXiv 2408.11611) by the gates of the first training batches."""
    if not isinstance(model, models.DTN):
        raise ValueError(f"trim: expected 0 for models other than dtn, found {config.trim}")
    count = len(model.module_keys)
    if config.trim >= count:
        raise ValueError(f"trim: expected fewer than the {count} modules, found {config.trim}")
    batches = islice(source.train_batches(config.batch_size), _GATE_BATCHES)
    smaller = models.trim(model, config.trim, batches=batches)
    options = {**config.model_options, "removed": [list(key) for key in smaller.config.removed]}
    return smaller, replace(config, model_options=options)


def resume_training(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False
) -> Trainer:
    """A trainer that goes on where a checkpoint stands.

    Args:
        path: a run folder (its latest checkpoint) or a checkpoint file in one.
        overrides: settings to change; only those that leave the numbers so far as they are, for
            example ``max_steps``.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
        ValueError: naming a setting that may not change.
    """
    file = find_checkpoint(path)
    content = load_checkpoint(file)
    stored = _stored_config(content, file)
    config = TrainConfig.from_dict({**stored.to_dict(), **(overrides or {})}, "settings")
    for name, (was, asked) in changed_keys(stored, config).items():
        raise ValueError(
            f"{name}: the run in {file} was trained with {was!r}, asked for is {asked!r}; a run "
            "goes on with its own settings: leave this one out, or start a new run"
        )
    trainer = _trainer(config, make_source(config, quiet=quiet), _run_folder(file), quiet)
    trainer.restore(content, file)
    return trainer


def load_model(path: str | Path, *, backend: str | None = None) -> tuple[nn.Module, TrainConfig]:
    """The trained model of a checkpoint, in eval mode, and the settings it was trained with.

    Args:
        path: a run folder (its latest checkpoint) or a checkpoint file.
        backend: implementation of the fused ops; that of the training run when None.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
    """
    file = find_checkpoint(path)
    content = load_checkpoint(file)
    config = _stored_config(content, file)
    spec = DatasetSpec.from_dict(content["spec"])
    backend = _backend(config) if backend is None else backend
    model = models.build(config.model, spec, config.model_options, backend=backend)
    load_weights(model, content, file)
    return model.eval(), config


@dataclass(frozen=True)
class Restored:
    """A trained model with its data.

    Attributes:
        file: the checkpoint.
        step: training steps behind it.
        config: the settings it was trained with, but for those that were overridden.
        source: the data that ``config`` names.
        model: in the mode that a fresh model has.
    """

    file: Path
    step: int
    config: TrainConfig
    source: DataSource
    model: nn.Module


def open_checkpoint(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False
) -> Restored:
    """The model of a checkpoint and a data source that fits it.

    Args:
        path: a run folder (its latest checkpoint) or a checkpoint file.
        overrides: settings that differ from those the model was trained with: data, backend,
            precision, batch_size and the like.
        quiet: no progress bar while data are prepared.

    Raises:
        CheckpointError: if the checkpoint cannot be used with this data.
        ValueError: naming a wrong setting.
    """
    file = find_checkpoint(path)
    content = load_checkpoint(file)
    stored = _stored_config(content, file)
    config = TrainConfig.from_dict({**stored.to_dict(), **(overrides or {})}, "settings")
    source = make_source(config, quiet=quiet)
    check_spec(content, source.spec, file)
    model = make_model(config, source.spec)
    load_weights(model, content, file)
    return Restored(file, content["progress"]["step"], config, source, model)


def evaluate_checkpoint(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Metrics of a checkpoint on the test part of a data source.

    Args:
        path: a run folder (its latest checkpoint) or a checkpoint file.
        overrides: settings that differ from those the model was trained with: data, backend,
            precision, batch_size and the like.

    Returns:
        checkpoint, step, model, data, backend, precision, metrics per task, mean_auc, seconds.

    Raises:
        CheckpointError: if the checkpoint cannot be used with this data.
    """
    found = open_checkpoint(path, overrides, quiet=quiet)
    config = found.config
    begun = time.perf_counter()
    metrics = Trainer(config, found.source, found.model, found.file.parent, quiet=quiet).evaluate()
    return {
        "checkpoint": str(found.file),
        "step": found.step,
        "model": config.model,
        "data": config.data,
        "data_options": config.data_options,
        "backend": config.backend,
        "precision": config.precision,
        "metrics": metrics,
        "mean_auc": mean_auc(metrics),
        "seconds": time.perf_counter() - begun,
    }


def stored_settings(path: str | Path) -> dict[str, Any]:
    """The settings that the run of a checkpoint was trained with, as plain values.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
    """
    file = find_checkpoint(path)
    return _stored_config(load_checkpoint(file), file).to_dict()


def _backend(config: TrainConfig) -> str | None:
    """What overrides the model's own option; "auto" leaves the choice to it."""
    return None if config.backend == "auto" else config.backend


def _stored_config(content: Mapping[str, Any], file: Path) -> TrainConfig:
    try:
        return TrainConfig.from_dict(content["config"], "config")
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _run_folder(file: Path) -> Path:
    if file.parent.name != "checkpoints":
        raise CheckpointError(f"{file}: expected a checkpoint in the folder 'checkpoints' of a run")
    return file.parent.parent
