"""AliExpress: both formats give the same data; ids of training alone; malformed rows."""

from __future__ import annotations

import gzip
import lzma
import os
import zipfile
from pathlib import Path

import pytest
import torch
from aliexpress_rows import item_row, processed_row, text, user_row, write_raw

from mtlfast.data import AliExpressSource, open_source
from mtlfast.data.tables.aliexpress import HEADER, aliexpress_format
from mtlfast.data.tables.table_format import Reading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_raw(tmp_path / "NL")
    return tmp_path / "NL"


def write_processed(folder: Path, raw: Path) -> None:
    folder.mkdir()
    for part in ("train", "test"):
        users = {
            line.split(",")[0]: line.split(",")
            for line in (raw / f"NL_user_{part}.csv").read_text().splitlines()
        }
        items = [line.split(",") for line in (raw / f"NL_item_{part}.csv").read_text().splitlines()]
        rows = [processed_row(users[item[0]], item) for item in items]
        (folder / f"{part}.csv").write_text(text([list(HEADER), *rows]))


def rows(source: AliExpressSource) -> list[list[float]]:
    """Everything in order of the content."""
    batches = [*source.train_batches(16), *source.test_batches(16)]
    return sorted(torch.cat([torch.cat((b.sparse, b.labels), 1) for b in batches]).tolist())


def test_fields_tasks_and_ids(folder: Path) -> None:
    source = AliExpressSource(folder)
    spec = source.spec
    assert (spec.num_fields, spec.tasks, spec.task_parents) == (
        79,
        ("click", "conversion"),
        (None, 0),
    )
    assert (source.num_train_samples, source.num_test_samples) == (60, 30)
    assert spec.positive_rates == (40 / 60, 20 / 60)
    sizes = dict(zip(spec.fields, spec.vocab_sizes, strict=True))
    # 3 values of every user field and 4 of every item field, and the unknown id.
    assert {sizes[f"categorical_{i}"] for i in range(1, 10)} == {4}
    assert {sizes[f"categorical_{i}"] for i in range(10, 17)} == {5}
    assert sizes["numerical_1"] == 1 + 3 + 1
    batch = source.test_batch(30, 0)
    assert batch.sparse.dtype == torch.int64
    assert bool((batch.sparse < torch.tensor(spec.vocab_sizes)).all())
    assert bool((batch.sparse > 0).all())
    assert batch.sequences is None
    assert AliExpressSource(folder, fields=["numerical_3", "categorical_7"]).spec.fields == (
        "numerical_3",
        "categorical_7",
    )


def test_columns_are_where_the_description_says(folder: Path, tmp_path: Path) -> None:
    blocks = list(aliexpress_format(folder).read("train", Reading(tmp_path / "scratch")))
    assert len(blocks) == 1
    columns = blocks[0].columns
    assert list(columns) == list(HEADER[1:-2])
    user, item = user_row(100), item_row(100, 0)
    expected = processed_row(user, item)[1:-2]
    assert [float(column[0]) for column in columns.values()] == [float(v) for v in expected]
    assert user[31] == expected[7]  # column 32 of the user file is categorical_8
    assert item[18] == expected[9]  # column 19 of the item file is categorical_10
    assert item[1] == expected[16 + 23]  # column 2 of the item file is numerical_24
    assert blocks[0].labels[:3].tolist() == [[False, False], [True, False], [True, True]]


def test_raw_and_processed_are_the_same(folder: Path, tmp_path: Path) -> None:
    write_processed(tmp_path / "processed", folder)
    raw, processed = AliExpressSource(folder), AliExpressSource(tmp_path / "processed")
    assert raw.spec == processed.spec
    assert rows(raw) == rows(processed)
    assert raw.folder != processed.folder


def test_ids_that_training_does_not_hold_are_unknown(folder: Path) -> None:
    users = [user_row(page) for page in range(500, 510)]
    for user in users[:4]:
        user[1] = "777"
    (folder / "NL_user_test.csv").write_text(text(users))
    source = AliExpressSource(folder, fields=["categorical_1"])
    assert source.spec.vocab_sizes == (4,)
    unknown = source.test_batch(30, 0).sparse == 0
    assert int(unknown.sum()) == 4 * 3
    rare = AliExpressSource(folder, fields=["categorical_1"], min_count=21)
    assert rare.spec.vocab_sizes == (3,)  # 21, 21 and 18 rows have one of the three ids, by page


def test_halves_of_the_test_part(folder: Path) -> None:
    parts = {
        part: AliExpressSource(folder, part=part)  # type: ignore[arg-type]
        for part in ("validation", "test", "both")
    }
    sizes = [source.num_test_samples for source in parts.values()]
    assert sizes == [15, 15, 30]
    both = parts["both"].test_batch(30, 0)
    halves = [parts[part].test_batch(30, 0) for part in ("validation", "test")]
    assert torch.equal(both.sparse, torch.cat([half.sparse for half in halves]))


def test_epochs_are_shuffled_and_repeat(folder: Path) -> None:
    source, again = AliExpressSource(folder), AliExpressSource(folder)
    first = torch.cat([b.sparse for b in source.train_batches(16, epoch=0)])
    second = torch.cat([b.sparse for b in source.train_batches(16, epoch=1)])
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert torch.equal(again.train_batch(16, 1, 2).sparse, second[32:48])
    assert not torch.equal(AliExpressSource(folder, seed=1).train_batch(60, 0, 0).sparse, first)


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zip"])
def test_compressed_files_are_the_same(folder: Path, ending: str) -> None:
    plain = rows(AliExpressSource(folder))
    for file in folder.iterdir():
        content = file.read_bytes()
        if ending == ".zip":
            # As the publisher names them: nl_user_train.zip.
            with zipfile.ZipFile(folder / f"{file.stem.lower()}.zip", "w") as archive:
                archive.writestr(file.name, content)
        else:
            opener = {".gz": gzip.open, ".xz": lzma.open}[ending]
            with opener(folder / (file.name + ending), "wb") as compressed:
                compressed.write(content)
        file.unlink()
    assert rows(AliExpressSource(folder)) == plain
    broken = next(file for file in folder.iterdir() if "item_test" in file.name)
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{ending}: expected a whole compressed file"):
        AliExpressSource(folder)


@pytest.mark.parametrize(
    ("file", "line", "text"),
    [
        ("user", user_row(7)[:-1], "expected 33 columns, found 32"),
        ("item", item_row(100, 0, label=3), "column 49 .label.: expected one of .0, 1, 2., found"),
        ("item", ["x", *item_row(100, 0)[1:]], "column 1: expected an integer, found 'x'"),
        ("item", [*item_row(100, 0)[:1], "-", *item_row(100, 0)[2:]], "column 2: expected a fin"),
    ],
)
def test_malformed_rows_are_named_or_skipped(
    folder: Path, cache: Path, file: str, line: list[str], text: str
) -> None:
    whole = rows(AliExpressSource(folder))
    path = folder / f"NL_{file}_train.csv"
    lines = path.read_text().splitlines()
    lines[11:11] = [",".join(line)]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=f"NL_{file}_train.csv, line 12: {text}"):
        AliExpressSource(folder)
    skipping = AliExpressSource(folder, on_error="skip")
    assert (skipping.skipped, skipping.left_out) == (1, {})
    assert rows(skipping) == whole
    with pytest.raises(ValueError, match="line 12"):
        AliExpressSource(folder)  # what was skipped before is an error here


def test_the_join_is_an_inner_one(folder: Path) -> None:
    path = folder / "NL_item_train.csv"
    path.write_text(path.read_text() + text([item_row(9999, 0), item_row(9998, 0)]))
    source = AliExpressSource(folder)
    assert source.num_train_samples == 60
    assert source.left_out == {"rows without a search page": 2}


def test_countries_and_missing_files(folder: Path, tmp_path: Path) -> None:
    write_raw(folder, country="es", pages=4)
    with pytest.raises(ValueError, match=r"country: expected one of \['es', 'nl'\]"):
        AliExpressSource(folder)
    with pytest.raises(ValueError, match="found 'fr'"):
        AliExpressSource(folder, country="fr")
    assert AliExpressSource(folder, country="ES").num_train_samples == 12
    (folder / "es_user_test.csv").unlink()
    with pytest.raises(ValueError, match=r"expected one file es_user_test\.csv"):
        AliExpressSource(folder, country="es")
    with pytest.raises(ValueError, match=r"expected one file train\.csv or aliexpress_train\.csv"):
        AliExpressSource(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"raw files such as NL_user_train\.csv"):
        AliExpressSource(tmp_path / "absent", country="NL")


def test_wrong_options_are_named(folder: Path) -> None:
    for options, message in (
        ({"part": "x"}, "part: expected test, validation or both"),
        ({"min_count": 0}, "min_count: expected at least 1, found 0"),
        ({"shuffle_rows": 0}, "shuffle_rows: expected at least 1"),
        ({"on_error": "x"}, "on_error: expected 'raise' or 'skip'"),
        ({"fields": ["age"]}, r"fields: expected some of .* found \['age'\]"),
        ({"prat": 1}, r"options: expected some of \['country', .*found \['prat'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(f"aliexpress:{folder}", **options)


def test_progress_counts_every_byte_and_row(folder: Path) -> None:
    bars: list[tuple[str, int, list[int]]] = []

    class Bar:
        def __init__(self, total: int, *, label: str, unit: str) -> None:
            self.seen: list[int] = []
            bars.append((unit, total, self.seen))

        def advance(self, amount: int) -> None:
            self.seen.append(amount)

        def close(self) -> None:
            pass

    open_source(f"aliexpress:{folder}", progress=Bar)
    assert [unit for unit, _, _ in bars] == ["B", " rows"]
    assert [sum(seen) for _, _, seen in bars] == [total for _, total, _ in bars]
    assert bars[1][1] == 60
    open_source(f"aliexpress:{folder}", progress=Bar)
    assert len(bars) == 2  # nothing left to do


def test_the_published_samples() -> None:
    root = os.environ.get("MTLFAST_DATA")
    if not root or not (Path(root) / "small-samples").is_dir():
        pytest.skip("MTLFAST_DATA names no folder with small-samples")
    source = AliExpressSource(Path(root) / "small-samples")
    assert (source.num_train_samples, source.num_test_samples) == (100, 20)
    assert source.spec.positive_rates == (0.6, 0.02)
    sizes = dict(zip(source.spec.fields, source.spec.vocab_sizes, strict=True))
    assert (sizes["categorical_1"], sizes["categorical_7"]) == (2, 17)
    ids = source.test_batch(20, 0).sparse
    assert bool((ids >= 0).all() and (ids < torch.tensor(source.spec.vocab_sizes)).all())
    lines = (Path(root) / "small-samples" / "aliexpress_test_sample.csv").read_text().splitlines()
    clicks = sum(int(line.split(",")[-2]) for line in lines[1:])
    assert int(source.test_batch(20, 0).labels[:, 0].sum()) == clicks
