from __future__ import annotations

from pathlib import Path

import pytest

from mtlfast.training import config
from mtlfast.training.config import TrainConfig, changed_keys, load_yaml, parse_yaml

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def test_round_trip():
    settings = TrainConfig(learning_rate=1e-4, model_options={"embed_dim": 16}, max_steps=3)
    assert TrainConfig.from_dict(settings.to_dict()) == settings


def test_yaml_numbers(tmp_path):
    assert parse_yaml("a: 1e-3")["a"] == 0.001
    assert parse_yaml("[1E5, 2.5e-2, 3, text, 1e, e5]") == [1e5, 2.5e-2, 3, "text", "1e", "e5"]
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 1e-4\nepochs: 3\n")
    settings = TrainConfig.from_dict(load_yaml(path))
    assert (settings.learning_rate, settings.epochs) == (1e-4, 3)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"learning_rte": 1}, "learning_rte: unknown key, did you mean 'learning_rate'"),
        ({"batch-size": 1}, "batch-size: unknown key, did you mean 'batch_size'"),
        ({"zzz": 1}, "zzz: unknown key, expected one of accelerator, backend"),
        ({"epochs": "many"}, "epochs: expected int, found 'many'"),
        ({"epochs": 1.5}, "epochs: expected int, found 1.5"),
        ({"epochs": True}, "epochs: expected int, found True"),
        ({"epochs": 0}, "epochs: expected at least 1, found 0"),
        ({"learning_rate": -1}, "learning_rate: expected a positive number, found -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a positive number, found nan"),
        ({"precision": "fp8"}, "precision: expected one of .*float32.*, found 'fp8'"),
        ({"model_options": 3}, "model_options: expected a mapping, found 3"),
        ({"tensorboard": "yes"}, "tensorboard: expected bool, found 'yes'"),
    ],
)
def test_errors_name_the_setting(values, text):
    with pytest.raises(ValueError, match=text):
        TrainConfig.from_dict(values, "run.yaml")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a: [", "is not valid YAML"),
        ("- a\n- b\n", "expected settings such as"),
        (None, "cannot read"),
    ],
)
def test_bad_files_are_named(tmp_path, content, text):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=text) as error:
        load_yaml(path)
    assert "bad.yaml" in str(error.value)


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_yaml(path)


def test_only_harmless_settings_may_change_on_resume():
    stored = TrainConfig()
    asked = TrainConfig(max_steps=7, learning_rate=0.5, keep_best=True, model_options={"a": 1})
    assert changed_keys(stored, asked) == {
        "learning_rate": (1e-3, 0.5),
        "model_options": ({}, {"a": 1}),
    }


def test_variables_in_paths(monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", "/data/x")
    assert config.expand("deskdrop:${SOME_FOLDER}/log") == "deskdrop:/data/x/log"
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(ValueError, match=r"environment variable .*SOME_FOLDER.* is not set"):
        config.expand("deskdrop:${SOME_FOLDER}/log")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_valid(path):
    settings = TrainConfig.from_dict(load_yaml(path), path.name)
    from mtlfast.models import available

    entry = available()[settings.model]
    entry.config_class.from_dict(settings.model_options, path.name)


def test_there_are_examples():
    assert EXAMPLES
