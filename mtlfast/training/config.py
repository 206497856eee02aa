"""Settings of a training run: one typed, flat dataclass that YAML and the command line fill."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mtlfast._config import from_mapping, to_mapping

__all__ = ["RESUMABLE", "TrainConfig", "changed_keys", "expand", "load_yaml", "parse_yaml"]


def _about(group: str, text: str) -> dict[str, str]:
    """What the command line shows of a setting: its heading and its help."""
    return {"group": group, "help": text}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run; stored in every checkpoint.

    The defaults are the published set-up where there is one: Adam, batches of 2048, learning
    rate 1e-3, one epoch (DTRN, CIKM 2023, section 4.4).

    Raises:
        ValueError: naming the setting, what was expected and what was found.
    """

    model: str = field(
        default="dtrn", metadata=_about("what to train", "a model; `mtlfast models` lists them")
    )
    model_options: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "what to train", "settings of the model, such as embed_dim=16 head.name=aitm"
        ),
    )
    data: str = field(
        default="synthetic:tenrec",
        metadata=_about(
            "what to train",
            "synthetic:tenrec, synthetic:ecommerce, tenrec:PATH, deskdrop:PATH, census:PATH, "
            "aliexpress:PATH or aliccp:PATH; variables such as ${MTLFAST_DATA} are replaced",
        ),
    )
    data_options: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "what to train", "settings of the data source, such as train_samples=50000"
        ),
    )
    on_error: Literal["raise", "skip"] = field(
        default="raise",
        metadata=_about(
            "what to train", "a malformed row of the data: stop and name it, or skip and count it"
        ),
    )
    backend: Literal["auto", "reference", "cpu", "triton", "cuda"] = field(
        default="auto", metadata=_about("what to train", "implementation of the fused ops")
    )
    seed: int = field(
        default=0,
        metadata=_about(
            "what to train", "of weights and dropout; data have their own (data_options)"
        ),
    )
    start_from: str | None = field(
        default=None,
        metadata=_about(
            "what to train",
            "a run or checkpoint whose weights to start from; model and data are its own unless "
            "given",
        ),
    )
    trim: int = field(
        default=0,
        metadata=_about(
            "what to train",
            "with start_from, of DTN: leave out so many of its least used modules (DTN-trim)",
        ),
    )

    batch_size: int = field(default=2048, metadata=_about("how long", "impressions per step"))
    epochs: int = field(default=1, metadata=_about("how long", "passes over the training data"))
    max_steps: int | None = field(
        default=None, metadata=_about("how long", "stop after this many steps, even mid-epoch")
    )

    learning_rate: float = field(default=1e-3, metadata=_about("optimizer", "step size of Adam"))
    embedding_learning_rate: float | None = field(
        default=None,
        metadata=_about("optimizer", "step size of large tables (default: learning_rate)"),
    )
    weight_decay: float = field(
        default=0.0, metadata=_about("optimizer", "L2 penalty of Adam, not on large tables")
    )
    embedding_optimizer: Literal["sparse_adam", "rowwise_adagrad", "dense"] = field(
        default="sparse_adam",
        metadata=_about("optimizer", "of large embedding tables; dense is plain Adam"),
    )
    sparse_min_rows: int = field(
        default=100_000, metadata=_about("optimizer", "a table with this many rows is large")
    )

    precision: Literal["float32", "bf16-mixed"] = field(
        default="float32",
        metadata=_about("machine", "bf16-mixed: bfloat16 activations, float32 weights"),
    )
    accelerator: Literal["auto", "cpu", "cuda"] = field(
        default="auto", metadata=_about("machine", "where to compute")
    )
    threads: int | None = field(
        default=None, metadata=_about("machine", "CPU threads (default: torch's choice)")
    )
    prefetch: int = field(
        default=2, metadata=_about("machine", "batches a second thread prepares ahead; 0: none")
    )

    log_every: int = field(
        default=10, metadata=_about("records", "steps per row of the log, which has their mean")
    )
    checkpoint_every: int = field(
        default=500, metadata=_about("records", "steps between checkpoints; 0: only the last")
    )
    keep_checkpoints: int = field(
        default=2, metadata=_about("records", "how many of the latest checkpoints to keep")
    )
    keep_best: bool = field(
        default=False,
        metadata=_about("records", "also keep best.pt, the best mean AUC of all evaluations"),
    )
    evaluate_every: int = field(
        default=0, metadata=_about("records", "steps between evaluations; 0: only at the end")
    )
    test_batches: int | None = field(
        default=None, metadata=_about("records", "evaluate on so many batches (default: all)")
    )
    tensorboard: bool = field(default=True, metadata=_about("records", "write TensorBoard curves"))

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name}: expected at least {least}, found {value}")
        for name in ("learning_rate", "embedding_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a positive number, found {value}")
        if self.trim and self.start_from is None:
            raise ValueError(f"trim: expected 0 without start_from, found {self.trim}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> TrainConfig:
        """Check and convert ``values``; an error for an unknown key names the nearest valid one."""
        return from_mapping(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML, JSON and checkpoints store them."""
        return to_mapping(self)


_LEAST = {
    "seed": 0,
    "trim": 0,
    "batch_size": 1,
    "epochs": 1,
    "max_steps": 1,
    "weight_decay": 0,
    "sparse_min_rows": 1,
    "threads": 1,
    "prefetch": 0,
    "log_every": 1,
    "checkpoint_every": 0,
    "keep_checkpoints": 1,
    "evaluate_every": 0,
    "test_batches": 1,
}

#: Settings that may change when a run resumes, because they do not change its numbers so far.
RESUMABLE = frozenset(
    {
        "epochs",
        "max_steps",
        "prefetch",
        "threads",
        "checkpoint_every",
        "keep_checkpoints",
        "evaluate_every",
        "keep_best",
        "test_batches",
        "tensorboard",
    }
)


def changed_keys(stored: TrainConfig, asked: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and must not when a run resumes: name -> (stored, asked for)."""
    return {
        f.name: (getattr(stored, f.name), getattr(asked, f.name))
        for f in dataclasses.fields(TrainConfig)
        if f.name not in RESUMABLE and getattr(stored, f.name) != getattr(asked, f.name)
    }


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        ValueError: naming the file, when it cannot be read or is no mapping of settings.
    """
    import yaml

    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"config: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"config: expected settings such as 'model: dtrn' in {path}")
    return content


def parse_yaml(text: str) -> Any:
    """Safe YAML in which ``1e-3`` is a number, as in YAML 1.2; PyYAML alone reads it as text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return yaml.load(text, Loader)


def expand(text: str) -> str:
    """``text`` with ``~`` and environment variables replaced.

    Raises:
        ValueError: naming a variable that is not set.
    """
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        raise ValueError(f"data: an environment variable in {text!r} is not set")
    return expanded
