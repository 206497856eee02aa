"""The loop trains, resumes and scores every model on sparse fields."""

from __future__ import annotations

import pytest
import torch

from mtlfast import models
from mtlfast.training import load_checkpoint
from mtlfast.training.checkpoint import find_checkpoint
from mtlfast.training.loop import weights_digest

METHODS = ["gdcn", {"name": "memonet", "num_codewords": 40}]
OPTIONS = {
    "dtn": {"interactions": METHODS, "output_dim": 6},
    "tfi": {"interaction": "gdcn", "output_dim": 6},
    "sfm": {"interactions": METHODS, "output_dim": 6, "head": "mmoe"},
    "mtl": {"head": "esmm"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_like_an_unbroken_one(make_trainer, tiny_source, name):
    def trainer(folder, **settings):
        torch.manual_seed(0)
        model = models.build(name, tiny_source().spec, {"embed_dim": 4, **OPTIONS[name]})
        return make_trainer(folder, model=model, **settings)

    whole = trainer("whole", max_steps=6)
    expected = whole.fit()
    part = trainer("part", max_steps=3)
    part.fit()
    resumed = trainer("part", max_steps=6)
    resumed.restore(load_checkpoint(find_checkpoint(part.run_dir)), "part")
    assert resumed.fit()["metrics"] == expected["metrics"]
    assert weights_digest(resumed.model) == weights_digest(whole.model)
