"""Tenrec QK-video as causal histories and labels, in files that are mapped into memory.

The publisher's table has one impression per line, those of a user behind each other in the order of
time, and no timestamp. What a user did before a row is therefore what stands above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.compressed import ENDINGS, OnError, open_binary
from mtlfast.data.progress import MakeProgress, ProgressBar
from mtlfast.data.tables.blocks import BLOCK_BYTES, LineReader, Malformed
from mtlfast.data.tables.csv_columns import Kind, labels, numpy, parse_columns
from mtlfast.data.tables.files import only_file
from mtlfast.data.vocabulary import IdCounts, Vocabulary

__all__ = [
    "BEHAVIORS",
    "FIELDS",
    "MAX_LENGTHS",
    "TASKS",
    "StoredImpressions",
    "TenrecOptions",
    "prepare_tenrec",
    "tenrec_file",
]

FIELDS = ("user_id", "item_id", "video_category", "gender", "age")
TASKS = ("click", "follow", "like", "share")
BEHAVIORS = (*TASKS, "negative")
MAX_LENGTHS = (50, 10, 20, 10, 50)  # DTRN (CIKM 2023), Table 3
_STEMS = ("ctr_data_1M", "QK-video")
_NUM_HISTORY = 10
_COLUMNS = (*FIELDS[:2], *TASKS, "video_category", "watching_times", "gender", "age")
_HISTORY = tuple(f"hist_{i}" for i in range(1, _NUM_HISTORY + 1))
_MISSING = b"\\N"
_CHUNK = 1 << 20
_SPLIT_SEED = 2022

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TenrecOptions:
    """What decides the content of the cache, beside the file.

    Args:
        below_user: users with larger ids are left out; all stay when None.
        min_item_count: items with fewer training rows are unknown.
        split: the test part is each user's last tenth of rows (at least one where there are two),
            "last", or a random tenth of all rows, "random".
        on_error: raise on a malformed row, or skip and count it.
    """

    below_user: int | None = None
    min_item_count: int = 1
    split: Literal["last", "random"] = "last"
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: expected 'raise' or 'skip', found {self.on_error!r}")
        if self.split not in ("last", "random"):
            raise ValueError(f"split: expected 'last' or 'random', found {self.split!r}")
        if self.min_item_count < 1:
            raise ValueError(f"min_item_count: expected at least 1, found {self.min_item_count}")
        if self.below_user is not None and self.below_user < 1:
            raise ValueError(f"below_user: expected at least 1, found {self.below_user}")

    def identity(self) -> dict[str, Any]:
        """Plain values that differ where the content differs."""
        return asdict(self)


def tenrec_file(path: Path) -> Path:
    """The table: the file itself; in a folder ``ctr_data_1M`` or else ``QK-video``.

    Raises:
        ValueError: if it is not there, saying what was looked for.
    """
    if path.is_file():
        return path
    for stem in _STEMS:
        try:
            return only_file(path, stem)
        except ValueError:
            continue
    names = " or ".join(f"{stem}.csv" for stem in _STEMS)
    raise ValueError(f"path: expected {names} (or {', '.join(ENDINGS[1:])}) in {path}, found none")


@dataclass(frozen=True)
class _Rows:
    """Some lines: ids ``[n, F]`` (-1 for a missing category), labels, clicks before the first."""

    ids: Ints
    labels: NDArray[np.bool_]
    history: Ints | None

    def chosen(self, rows: NDArray[np.bool_]) -> _Rows:
        history = None if self.history is None else self.history[rows]
        return _Rows(self.ids[rows], self.labels[rows], history)


def _parse(names: Sequence[str], block: bytes) -> _Rows:
    numbers = {*FIELDS, *TASKS, *_HISTORY}
    kinds: dict[str, Kind] = {name: "integer" if name in numbers else "bytes" for name in names}
    kinds["video_category"] = "category"
    table = parse_columns(block, kinds)
    columns = {name: numpy(table, name) for name in FIELDS if name != "video_category"}
    texts = table.column("video_category").unify_dictionaries().combine_chunks()
    known = np.array([_category(text) for text in texts.dictionary.to_pylist()], np.int64)
    columns["video_category"] = known[texts.indices.to_numpy()]
    for name in FIELDS[:2]:
        if (columns[name] < 0).any():
            raise Malformed(f"{name}: expected an id of at least 0, found {columns[name].min()}")
    history = None
    if _HISTORY[0] in kinds:
        history = np.stack([numpy(table, name) for name in _HISTORY], axis=1)
    return _Rows(
        np.stack([columns[name] for name in FIELDS], axis=1), labels(table, TASKS), history
    )


def _category(text: bytes) -> int:
    if text.isdigit() and len(text) < 19:
        return int(text)
    if text == _MISSING:
        return -1
    raise Malformed(
        f"video_category: expected an integer or \\N, found {text.decode('utf-8', 'replace')!r}"
    )


class _Staged:
    """Writes rows and events as they come; everything is counted over the whole file.

    Files: ``ids [N, F]``, ``labels [N]`` (a bit per task), ``ends [N, M]`` (events of a behavior
    before and up to each row, that of the row left out), ``events-b [E_b]`` item ids.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self.users: list[Ints] = []  # per block, the users that begin in it
        self.first_rows: list[Ints] = []
        self.first_events: list[Ints] = []  # [n, M]
        self._last_user: int | None = None
        self._counts = np.zeros(len(BEHAVIORS), np.int64)

    def add(self, block: _Rows, files: Mapping[str, BinaryIO]) -> None:
        """Append rows."""
        if not len(block.ids):
            return
        user, item = block.ids[:, 0], block.ids[:, 1]
        begins = np.concatenate(([self._last_user != user[0]], user[1:] != user[:-1]))
        self._last_user = int(user[-1])
        happens = np.concatenate((block.labels, ~block.labels[:, :1]), axis=1)
        older = np.zeros((len(user), 0), np.int64)
        if block.history is not None:
            older = np.where(begins[:, None], block.history, 0)
        ends = np.empty((len(user), len(BEHAVIORS)), np.int64)
        starts = np.empty((int(begins.sum()), len(BEHAVIORS)), np.int64)
        for b, name in enumerate(BEHAVIORS):
            before = (older > 0).sum(axis=1) if name == "click" else np.zeros(len(user), np.int64)
            total = before + happens[:, b]
            first = self._counts[b] + np.cumsum(total) - total
            starts[:, b] = first[begins]
            ends[:, b] = first + before
            # Row by row: the clicks before the first row, then the row's own event.
            of_rows = np.column_stack((older, item)) if name == "click" else item[:, None]
            real = happens[:, b : b + 1]
            if name == "click":
                real = np.column_stack((older > 0, real))
            of_rows[real].astype(np.int64).tofile(files[f"events-{b}"])
            self._counts[b] += total.sum()
        block.ids.astype(np.int64).tofile(files["ids"])
        np.packbits(block.labels, axis=1, bitorder="little").astype(np.uint8).tofile(
            files["labels"]
        )
        ends.astype(np.int64).tofile(files["ends"])
        self.users.append(user[begins])
        self.first_rows.append(self.rows + np.flatnonzero(begins))
        self.first_events.append(starts)
        self.rows += len(user)


def prepare_tenrec(
    folder: Path,
    file: Path,
    options: TenrecOptions,
    progress: MakeProgress,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """Fill ``folder`` with what :class:`StoredImpressions` reads.

    In memory: a block of lines, 48 bytes per user, every distinct id with its count.

    Returns:
        For the manifest: vocabulary sizes, rows per part, positive rates, rows left out.

    Raises:
        ValueError: naming file and line of a malformed row; for rows of one user apart from each
            other.
    """
    staged = _Staged(folder)
    skipped = left_out = 0

    def skip() -> None:
        nonlocal skipped
        skipped += 1

    with open_binary(file) as stream:
        header = stream.readline(1 << 16).decode("utf-8", "replace").strip("\ufeff\r\n")
    names = header.split(",")
    missing = [name for name in _COLUMNS if name not in names and name != "watching_times"]
    if missing or len(set(names)) != len(names):
        raise ValueError(
            f"{file}, line 1: expected a header with {','.join(_COLUMNS)}, found {header!r}"
        )
    bar = progress(file.stat().st_size, label="reading tenrec", unit="B")
    reader = LineReader(
        lambda block: _parse(names, block), options.on_error, header, bar.advance, skip, block_bytes
    )
    kinds = ("ids", "labels", "ends", *(f"events-{b}" for b in range(len(BEHAVIORS))))
    try:
        with ExitStack() as stack:
            files = {k: stack.enter_context(open(folder / f"{k}.raw", "wb")) for k in kinds}
            for rows in reader.read(file):
                if options.below_user is not None:
                    kept = rows.ids[:, 0] < options.below_user
                    left_out += int((~kept).sum())
                    rows = rows.chosen(kept)
                staged.add(rows, files)
    finally:
        bar.close()
    if not staged.rows:
        raise ValueError(f"{file}: expected impressions, found none")
    users = np.concatenate(staged.users)
    distinct, count = np.unique(users, return_counts=True)
    if (count > 1).any():
        raise ValueError(
            f"{file}: expected the rows of a user behind each other, found those of user "
            f"{distinct[count > 1][0]} in several places"
        )
    bar = progress(2 * staged.rows, label="encoding tenrec", unit=" rows")
    try:
        content = _encode(staged, options, bar)
    finally:
        bar.close()
    outside = f"rows of users from {options.below_user} on"
    content["left_out"] = {
        name: n for name, n in (("malformed", skipped), (outside, left_out)) if n
    }
    return content


def _encode(staged: _Staged, options: TenrecOptions, bar: ProgressBar) -> dict[str, Any]:
    folder, rows = staged.folder, staged.rows
    first_rows = np.concatenate(staged.first_rows)
    np.concatenate(staged.first_events).tofile(folder / "first-events.i64")
    size = np.diff(np.append(first_rows, rows))
    held = np.where(size > 1, np.maximum(size // 10, 1), 0)
    rng = np.random.default_rng(_SPLIT_SEED)

    def chunks() -> Iterator[tuple[slice, Ints]]:
        """Parts of the rows, with the number of each row's user."""
        for start in range(0, rows, _CHUNK):
            part = slice(start, min(start + _CHUNK, rows))
            row = np.arange(part.start, part.stop)
            yield part, np.searchsorted(first_rows, row, side="right") - 1

    ids = np.memmap(folder / "ids.raw", np.int64, "r", shape=(rows, len(FIELDS)))
    packed = np.memmap(folder / "labels.raw", np.uint8, "r", shape=(rows,))
    counts = [IdCounts() for _ in FIELDS]
    positive, num_train = np.zeros(len(TASKS), np.int64), 0
    with open(folder / "train.i64", "wb") as train, open(folder / "test.i64", "wb") as test:
        for part, user in chunks():
            row = np.arange(part.start, part.stop)
            if options.split == "last":
                is_test = row >= (first_rows + size - held)[user]
            else:
                is_test = rng.random(len(row)) < 0.1
            row[~is_test].tofile(train)
            row[is_test].tofile(test)
            chosen = ids[part][~is_test]
            for f, seen in enumerate(counts):
                seen.add(chosen[:, f])
            positive += _labels(packed[part][~is_test]).sum(axis=0)
            num_train += len(chosen)
            bar.advance(len(row))
    if not num_train:
        raise ValueError("data: expected training rows, found none")
    least = [options.min_item_count if name == "item_id" else 1 for name in FIELDS]
    vocabularies = [seen.vocabulary(n) for seen, n in zip(counts, least, strict=True)]
    with open(folder / "ids.i32", "wb") as out, open(folder / "users.i32", "wb") as numbers:
        for part, user in chunks():
            columns = [v(ids[part, f]) for f, v in enumerate(vocabularies)]
            np.stack(columns, axis=1).astype(np.int32).tofile(out)
            user.astype(np.int32).tofile(numbers)
            bar.advance(len(user))
    del ids, packed
    (folder / "ids.raw").unlink()
    (folder / "labels.raw").rename(folder / "labels.u8")
    (folder / "ends.raw").rename(folder / "ends.i64")
    for b in range(len(BEHAVIORS)):
        _encode_events(folder, b, vocabularies[FIELDS.index("item_id")])
    return {
        "vocab_sizes": [len(v) for v in vocabularies],
        "rows": {"train": num_train, "test": rows - num_train},
        "positive_rates": (positive / num_train).tolist(),
    }


def _encode_events(folder: Path, behavior: int, items: Vocabulary) -> None:
    raw = folder / f"events-{behavior}.raw"
    with open(raw, "rb") as file, open(folder / f"events-{behavior}.i32", "wb") as out:
        while len(events := np.fromfile(file, np.int64, _CHUNK)):
            items(events).astype(np.int32).tofile(out)
    raw.unlink()


def _labels(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.unpackbits(packed[:, None], axis=1, count=len(TASKS), bitorder="little").astype(bool)


class StoredImpressions:
    """Rows and histories in a folder of :func:`prepare_tenrec`, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.train, self.test = (_mapped(folder / f"{p}.i64", np.int64) for p in ("train", "test"))
        self._ids = _mapped(folder / "ids.i32", np.int32, len(FIELDS))
        self._labels = _mapped(folder / "labels.u8", np.uint8)
        self._users = _mapped(folder / "users.i32", np.int32)
        self._ends = _mapped(folder / "ends.i64", np.int64, len(BEHAVIORS))
        self._first = _mapped(folder / "first-events.i64", np.int64, len(BEHAVIORS))
        self._events = [
            _mapped(folder / f"events-{b}.i32", np.int32) for b in range(len(BEHAVIORS))
        ]

    def rows(self, rows: Ints) -> tuple[Ints, NDArray[np.bool_], Ints, Ints]:
        """Ids ``[B, F]``, labels ``[B, T]``, and the histories: item ids ``[N]`` behind each other,
        behavior by behavior, and their lengths ``[M, B]``.
        """
        ends = np.asarray(self._ends[rows])
        starts = np.maximum(self._first[self._users[rows]], ends - np.array(MAX_LENGTHS))
        lengths = np.ascontiguousarray((ends - starts).T)
        values = []
        for b, events in enumerate(self._events):
            last = np.cumsum(lengths[b])
            shift = np.repeat(starts[:, b] - last + lengths[b], lengths[b])
            values.append(events[shift + np.arange(len(shift))])
        return (
            self._ids[rows].astype(np.int64),
            _labels(self._labels[rows]),
            np.concatenate(values).astype(np.int64),
            lengths,
        )


def _mapped(path: Path, kind: type[np.generic], columns: int | None = None) -> NDArray[Any]:
    count = path.stat().st_size // np.dtype(kind).itemsize
    shape = (count,) if columns is None else (count // columns, columns)
    return np.memmap(path, kind, "r", shape=shape) if count else np.empty(shape, kind)
