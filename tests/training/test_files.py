from __future__ import annotations

import pytest

from mtlfast.training.files import write_csv, write_json
from mtlfast.training.prefetch import prefetch
from mtlfast.training.records import Records
from mtlfast.training.runs import data_label, new_run_folder


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "folder" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert len(list(path.parent.iterdir())) == 1


def test_csv(tmp_path):
    write_csv(tmp_path / "a.csv", ["x", "y"], [[1, None], ["a,b", 2.5]])
    assert (tmp_path / "a.csv").read_text() == 'x,y\n1,\n"a,b",2.5\n'


def test_run_folders_are_never_written_over(tmp_path):
    first = new_run_folder(None, "dtrn", "synthetic:tenrec", root=str(tmp_path))
    second = new_run_folder(None, "dtrn", "synthetic:tenrec", root=str(tmp_path))
    assert (first.name, second.name) == ("dtrn-tenrec-001", "dtrn-tenrec-002")
    (first / "train.csv").write_text("precious")
    with pytest.raises(ValueError, match=r"run_dir: expected a new or empty folder.*--resume"):
        new_run_folder(first, "dtrn", "synthetic:tenrec")
    assert new_run_folder(second, "dtrn", "synthetic:tenrec") == second
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="run_dir"):
        new_run_folder(tmp_path / "file", "dtrn", "synthetic:tenrec")
    assert data_label("deskdrop:/some/where") == "deskdrop"


def test_records_drop_what_came_after_the_checkpoint(tmp_path):
    records = Records(tmp_path, ("a",), start_step=0, tensorboard=False)
    for step in (1, 2, 3):
        records.train(step, 0, 0.1 * step, [0.1 * step], 10.0)
    records.close()
    with open(tmp_path / "train.csv", "a") as file:
        file.write("4,0,0.4")  # cut short by a crash
    again = Records(tmp_path, ("a",), start_step=2, tensorboard=False)
    again.train(3, 0, 7.0, [7.0], 10.0)
    again.close()
    rows = [line.split(",") for line in (tmp_path / "train.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["step", "1", "2", "3"]
    assert float(rows[1][2]) == 0.1
    assert float(rows[3][2]) == 7.0


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_prefetch_keeps_the_order(depth):
    assert list(prefetch(range(50), depth)) == list(range(50))


def test_prefetch_raises_where_the_item_would_have_come():
    def items():
        yield 1
        yield 2
        raise KeyError("third")

    stream = prefetch(items(), 2)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(stream)


def test_prefetch_stops_early_and_makes_no_more_than_asked():
    made = []

    def items():
        for i in range(1000):
            made.append(i)
            yield i

    stream = prefetch(items(), 2)
    next(stream)
    stream.close()
    assert len(made) <= 5
