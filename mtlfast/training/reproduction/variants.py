"""What tables and figures are made of: variants of models, trained alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtlfast.data import DatasetSpec

__all__ = ["SIZES", "Choices", "Options", "Published", "Table", "Variant"]

Options = Mapping[str, Any]
Published = Mapping[tuple[str, ...], Sequence[float | None]]

SIZES = (8, 16, 32, 64)


@dataclass(frozen=True)
class Variant:
    """One model of a table.

    Attributes:
        name: unique in its table.
        options: of the model, on top of those that all models share.
        model: name in the registry.
        removed: a task that it is trained without.
        size: the embedding width, in a sweep of it.
        trimmed_from: the variant, earlier in its table, of which this is DTN-trim: without the
            least used module, and trained for one more epoch at a tenth of the learning rate.
        published: the paper's AUC per task (None where it has none), by the tasks of its data.
        published_logloss: the same of LogLoss.
    """

    name: str
    options: Options
    model: str = "dtrn"
    removed: str | None = None
    size: int | None = None
    trimmed_from: str | None = None
    published: Published = field(default_factory=dict)
    published_logloss: Published = field(default_factory=dict)

    def paper(self, tasks: Sequence[str], task: str) -> float | None:
        """The published AUC of a task, where the data have the tasks of the paper's."""
        return _of_task(self.published, tasks, task)

    def paper_logloss(self, tasks: Sequence[str], task: str) -> float | None:
        """The published LogLoss of a task, where the data have the tasks of the paper's."""
        return _of_task(self.published_logloss, tasks, task)


def _of_task(published: Published, tasks: Sequence[str], task: str) -> float | None:
    values = published.get(tuple(tasks))
    return None if values is None else values[list(tasks).index(task)]


@dataclass(frozen=True)
class Choices:
    """What the user chooses.

    Attributes:
        head: name of the multi-task head, where the table does not decide.
        sizes: embedding widths of a sweep.
        embed_dim: embedding width where the table shares one budget of parameters.
        width: output width of DTN's modules, which decides that budget.
    """

    head: str = "mmoe"
    sizes: tuple[int, ...] = SIZES
    embed_dim: int = 16
    width: int = 128


@dataclass(frozen=True)
class Table:
    """A table or figure.

    Attributes:
        name: of the command.
        variants: its models, for given data and choices.
        base: the variant over which the table gives RelaImp, if it does.
    """

    name: str
    variants: Callable[[DatasetSpec, Choices], list[Variant]]
    base: str | None = None
