"""What register_fusion takes, and what it refuses."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from mtlfast import fuse_, register_fusion
from mtlfast.fusions import registry


@pytest.fixture(autouse=True)
def _forget():
    before = list(registry._registered)
    yield
    registry._registered[:] = before


class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.a = nn.Parameter(torch.ones(2))
        self.b = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        return x * self.weight


def make(replaces=Theirs, name="Ours", **more):
    def from_unfused(cls, module, backend):
        fused = cls()
        fused.weight, fused.a, fused.b = module.weight, module.a, module.b
        fused.register_buffer("count", module.count)
        return fused

    body = {
        "replaces": replaces,
        "from_unfused": classmethod(from_unfused),
        "forward": lambda self, x: x * self.weight,
        **more,
    }
    return type(name, (nn.Module,), {k: v for k, v in body.items() if v is not None})


def test_it_is_a_decorator():
    ours = make()
    assert register_fusion(ours) is ours
    model = Theirs()
    fuse_(model)
    assert type(model) is ours


@pytest.mark.parametrize("name", ["a_library.layers.Layer", "a_library.Layer"])
def test_a_library_need_not_be_imported(name, monkeypatch):
    register_fusion(make((name, Theirs)))
    assert fuse_(nn.Linear(1, 1)).entries == ()
    library = types.ModuleType("a_library")
    library.Layer = type("Layer", (Theirs,), {"__module__": "a_library.layers"})
    monkeypatch.setitem(sys.modules, "a_library", library)
    model = library.Layer()
    assert fuse_(model).fused
    assert type(model).__name__ == "Ours"


def test_the_latest_wins_and_a_name_counts_once():
    first, second, again = make(), make(name="Other"), make()
    register_fusion(first)
    register_fusion(second)
    assert registry.fusion_for(Theirs) is second
    register_fusion(again)  # as running a notebook's cell again does
    assert registry.fusion_for(Theirs) is again
    assert first not in registry._registered


@pytest.mark.parametrize(
    ("cls", "argument"),
    [
        (3, "cls"),
        (dict, "cls"),
        (make(replaces=None), "cls.replaces"),
        (make(replaces=()), "cls.replaces"),
        (make(replaces=dict), "cls.replaces"),
        (make(replaces="Theirs"), "cls.replaces"),
        (make(replaces="a library.Theirs"), "cls.replaces"),
        (make(from_unfused=None), "cls.from_unfused"),
        (make(from_unfused=lambda self, module, backend: self), "cls.from_unfused"),
        (make(from_unfused=staticmethod(lambda module: module)), "cls.from_unfused"),
        (make(why_not=lambda self, module, backend: None), "cls.why_not"),
        (make(why_not=staticmethod(lambda: None)), "cls.why_not"),
    ],
)
def test_what_is_refused(cls, argument):
    before = list(registry._registered)
    with pytest.raises(ValueError, match=f"^{argument}: expected .*, found"):
        register_fusion(cls)
    assert registry._registered == before


def test_a_class_does_not_replace_itself():
    cls = make()
    cls.replaces = cls
    with pytest.raises(ValueError, match=r"cls\.replaces"):
        register_fusion(cls)


def broken(change):
    def from_unfused(cls, module, backend):
        fused = cls()
        fused.weight, fused.a, fused.b = module.weight, module.a, module.b
        fused.register_buffer("count", module.count)
        return change(fused, module) or fused

    return make(from_unfused=classmethod(from_unfused))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda fused, module: module, "expected a Ours, found Theirs"),
        (lambda fused, module: "fused", "expected a Ours, found str"),
        (lambda fused, module: setattr(fused, "weight", nn.Parameter(torch.ones(2))), "another"),
        (lambda fused, module: delattr(fused, "weight"), "parameter 'weight'"),
        (lambda fused, module: setattr(fused, "bias", nn.Parameter(torch.ones(2))), "bias"),
        (lambda fused, module: setattr(fused, "count", torch.ones(1)), "buffer 'count'"),
        (lambda fused, module: fused._parameters.update(a=fused._parameters.pop("a")), "order"),
        (lambda fused, module: fused.register_buffer("more", torch.ones(1)), "state_dict keys"),
        (lambda fused, module: fused._non_persistent_buffers_set.add("count"), "state_dict keys"),
        (lambda fused, module: fused.register_forward_hook(print) and None, "hooks"),
    ],
)
def test_a_broken_promise_is_an_error_and_changes_nothing(change, text):
    register_fusion(broken(change))
    model = nn.Sequential(Theirs(), Theirs())
    with pytest.raises(ValueError, match=text):
        fuse_(model)
    assert [type(module) for module in model] == [Theirs, Theirs]


def test_a_reason_must_be_a_text():
    register_fusion(make(why_not=staticmethod(lambda module, backend: True)))
    with pytest.raises(ValueError, match=r"why_not.*None or a reason"):
        fuse_(Theirs())


def test_buffers_that_state_dict_leaves_out_are_the_fusions_own():
    def add(fused, module):
        fused.register_buffer("packed", torch.ones(1), persistent=False)

    register_fusion(broken(add))
    model = Theirs()
    assert fuse_(model).fused
