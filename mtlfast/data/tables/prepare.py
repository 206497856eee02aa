"""From a publisher's files to the parquet files of the cache, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.compressed import OnError
from mtlfast.data.progress import MakeProgress, ProgressBar
from mtlfast.data.tables.bags import StagedBags, bag_column
from mtlfast.data.tables.blocks import BLOCK_BYTES
from mtlfast.data.tables.encoders import EncoderFit, Encoders
from mtlfast.data.tables.stored_rows import RowWriter, import_parquet
from mtlfast.data.tables.table_format import FilePart, Reading, RowBlock, TableFormat

__all__ = ["PrepareOptions", "bags_path", "label_column", "prepare"]

_SPLIT_SEED = 2018  # fixed, so that the halves of the test part are the same in every run


@dataclass(frozen=True)
class PrepareOptions:
    """What decides the ids of a data set, beside its files.

    Args:
        min_count: how often an id must occur in training to have a row of its own.
        value_min_count: how often a number must occur in the sample to have a row of its own.
        num_bins: bins for the other numbers of a field.
        sample_rows: training rows drawn for the bins.
        on_error: raise on a malformed row, or skip and count it.
        multi_valued: keep all ids of multi-valued fields. An id then counts once for every list
            that holds it, and a list that rows share counts once.
    """

    min_count: int = 1
    value_min_count: int = 8
    num_bins: int = 32
    sample_rows: int = 200_000
    on_error: OnError = "raise"
    multi_valued: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: expected 'raise' or 'skip', found {self.on_error!r}")
        for name, value in asdict(self).items():
            if name not in ("on_error", "multi_valued") and value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")

    def identity(self) -> dict[str, Any]:
        """Plain values that differ where the content differs."""
        values = asdict(self)
        if not self.multi_valued:
            del values["multi_valued"]  # as caches were named before there was such an option
        return values


def label_column(task: str) -> str:
    """Where the labels of a task are."""
    return f"label/{task}"


def prepare(
    folder: Path,
    source: TableFormat,
    options: PrepareOptions,
    progress: MakeProgress,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """Fill ``folder`` with ``{train,validation,test}.parquet`` and ``encoders.npz``; on request
    with the lists of multi-valued fields, see :func:`bags_path`.

    The training part is read once: its rows wait on disk, as they are, until the encoders are
    fitted. Where the publisher has no validation part, it is one half of the test part, drawn once
    and for all.

    Returns:
        For the manifest: fields with their sizes, rows per part, positive rates, rows left out.

    Raises:
        ValueError: naming file and line of a malformed row; if there is no training row.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    files = [file for part in source.files.values() for file in part]
    bar = progress(sum(f.stat().st_size for f in files), label=f"reading {source.name}", unit="B")
    reading = Reading(scratch, options.on_error, bar.advance, block_bytes)
    multi_valued = source.multi_valued if options.multi_valued else ()
    single = [name for name in source.categorical if name not in multi_valued]
    fit = EncoderFit(single, source.numeric, options.sample_rows)
    bags = {
        part: {name: StagedBags(bags_path(folder, part, name)) for name in multi_valued}
        for part in ("train", "test")
    }
    positive = np.zeros(len(source.tasks), np.int64)
    try:
        reading.bags = bags["train"] if multi_valued else None
        with RowWriter(scratch / "train.parquet") as writer:
            for block in source.read("train", reading):
                fit.add(block.columns)
                positive += block.labels.sum(axis=0)
                writer.add(_columns(source, block.columns, block.labels))
        if not writer.rows:
            raise ValueError(f"{source.files['train'][-1]}: expected training rows, found none")
        for name, lists in bags["train"].items():
            for ids in lists.ids():
                fit.add_ids(name, ids)
        encoders = fit.finish(options.min_count, options.value_min_count, options.num_bins)
        reading.bags = bags["test"] if multi_valued else None
        rows = _write_test_parts(folder, source, reading, encoders)
    finally:
        bar.close()
    bar = progress(writer.rows, label=f"encoding {source.name}", unit=" rows")
    try:
        rows["train"] = _encode_train(scratch / "train.parquet", folder, source, encoders, bar)
    finally:
        bar.close()
    for part, stores in bags.items():
        for name, lists in stores.items():
            lists.encode(bags_path(folder, part, name), encoders.vocabulary(name))
    encoders.save(folder / "encoders.npz")
    shutil.rmtree(scratch)
    return {
        "vocab_sizes": {name: encoders.sizes[name] for name in source.fields},
        "rows": rows,
        "positive_rates": (positive / rows["train"]).tolist(),
        "left_out": reading.left_out,
    }


def _encode_train(
    staged: Path, folder: Path, source: TableFormat, encoders: Encoders, bar: ProgressBar
) -> int:
    with (
        import_parquet().ParquetFile(staged) as reader,
        RowWriter(folder / "train.parquet") as writer,
    ):
        for group in range(reader.metadata.num_row_groups):
            table = reader.read_row_group(group)
            columns = {name: table.column(name).to_numpy() for name in table.column_names}
            labels = {name: columns[name] for name in map(label_column, source.tasks)}
            writer.add({**encoders(columns), **_bag_numbers(columns), **labels})
            bar.advance(table.num_rows)
    return writer.rows


def _write_test_parts(
    folder: Path, source: TableFormat, reading: Reading, encoders: Encoders
) -> dict[str, int]:
    with ExitStack() as stack:
        writers = {
            part: stack.enter_context(RowWriter(folder / f"{part}.parquet"))
            for part in ("validation", "test")
        }
        for part, block in _test_blocks(source, reading):
            columns = {**encoders(block.columns), **_bag_numbers(block.columns)}
            writers[part].add(_columns(source, columns, block.labels))
    return {part: writer.rows for part, writer in writers.items()}


def _test_blocks(source: TableFormat, reading: Reading) -> Iterator[tuple[FilePart, RowBlock]]:
    if "validation" in source.files:
        for block in source.read("validation", reading):
            yield "validation", block
        for block in source.read("test", reading):
            yield "test", block
        return
    halves = Halves(_SPLIT_SEED)
    for block in source.read("test", reading):
        chosen = halves.next(len(block))
        yield "validation", block.rows(~chosen)
        yield "test", block.rows(chosen)


class Halves:
    """Draws one row of each pair of consecutive rows, however they are cut into blocks."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._open: bool | None = None  # what the second row of an unfinished pair gets

    def next(self, rows: int) -> NDArray[np.bool_]:
        """For each of the next rows, whether it is drawn."""
        carried = [] if self._open is None else [self._open]
        pairs = (max(rows - len(carried), 0) + 1) // 2
        first = self._rng.integers(0, 2, pairs).astype(np.bool_)
        drawn = np.concatenate(
            (np.array(carried, np.bool_), np.stack((first, ~first), axis=1).ravel())
        )
        self._open = bool(drawn[rows]) if len(drawn) > rows else None
        return drawn[:rows]


def bags_path(folder: Path, part: str, field: str) -> Path:
    """Where the lists of a multi-valued field are, see :class:`StoredBags`; the validation part's
    are among the test part's.
    """
    return folder / f"bags-{part}-{field}"


def _bag_numbers(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: values for name, values in columns.items() if name.startswith(bag_column(""))}


def _columns(
    source: TableFormat, columns: dict[str, NDArray[Any]], labels: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    named = {label_column(task): labels[:, t] for t, task in enumerate(source.tasks)}
    return {**columns, **named}
