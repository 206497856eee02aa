"""Swapping fused ops into models: what is replaced, what is not and why, and back again."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mtlfast
from mtlfast import JaggedSequences, fuse_, register_fusion, unfuse_
from mtlfast.fusions import registry
from mtlfast.nn import (
    ConditionalTransformer,
    InjectedTransformer,
    MultiHashCodebook,
    SeparateTransformers,
    TaskSpecificInterest,
)
from mtlfast.ops import stacked_linear

D, T, M, B = 8, 2, 2, 3


# ---- somebody's class, and what replaces it ----


class Gates(nn.Module):
    """One map per task in a Python loop, a running mean as a buffer."""

    def __init__(self, in_dim=D, out_dim=4, num_tasks=T, bias=False):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(in_dim, out_dim, bias) for _ in range(num_tasks))
        self.register_buffer("offset", torch.zeros(out_dim))

    def forward(self, x):
        return torch.stack([(one(x) + self.offset).softmax(-1) for one in self.maps], dim=1)


class SpecialGates(Gates):
    def forward(self, x):
        return super().forward(x) * 2


class FusedGates(nn.Module):
    replaces = Gates

    @staticmethod
    def why_not(module, backend):
        return "its maps have biases" if module.maps[0].bias is not None else None

    @classmethod
    def from_unfused(cls, module, backend):
        fused = cls()
        fused.maps, fused.backend = module.maps, backend
        fused.register_buffer("offset", module.offset)
        return fused

    def forward(self, x):
        weight = torch.stack([one.weight for one in self.maps])
        logits = stacked_linear(x[None], weight, backend=self.backend).transpose(0, 1)
        return (logits + self.offset).softmax(-1)


@pytest.fixture
def gates():
    """Fusions registered by the test are forgotten afterwards."""
    before = list(registry._registered)
    yield register_fusion(FusedGates)
    registry._registered[:] = before


class Model(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.first = Gates(bias=bias)
        self.second = Gates()
        self.same_again = self.second
        self.in_a_list = [self.second]
        self.tower = nn.Linear(8, 1)

    def forward(self, x):
        found = torch.cat((self.first(x), self.in_a_list[0](x)), dim=-1)
        return self.tower(found).squeeze(-1)


def state_of(model):
    return {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def outcomes(report):
    return {entry.names: entry.outcome for entry in report.entries}


X = torch.randn(B, D, generator=torch.Generator().manual_seed(0))


def test_a_users_class_is_replaced_and_restored(gates):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before, state, modules = model(X), state_of(model), list(model.modules())
    report = fuse_(model)
    assert outcomes(report) == {("first",): "fused", ("second", "same_again"): "fused"}
    assert report.fused[0].module.endswith("test_fuse.Gates")
    assert "FusedGates" in report.fused[0].replacement
    assert type(model.first) is FusedGates
    assert model.second is model.same_again is model.in_a_list[0]
    assert list(model.modules()) == modules  # the objects are the same ones
    assert state_of(model) == state
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model(X), before)

    weight = model.first.maps[0].weight
    start = weight.detach().clone()
    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(weight, start)
    model.second.offset = torch.ones(4)  # a buffer that training replaces
    model.eval()
    after = model(X)
    unfuse_(model)
    assert type(model.first) is type(model.second) is Gates
    assert list(model.modules()) == modules
    assert model.first.maps[0].weight is weight
    assert not model.second.training
    assert torch.equal(model.second.offset, torch.ones(4))
    assert set(vars(model.first)) == set(vars(Gates()))  # no trace
    torch.testing.assert_close(model(X), after)


def test_the_model_itself_can_be_replaced(gates):
    model = Gates()
    before = model(X)
    report = fuse_(model)
    assert type(model) is FusedGates
    assert "(the model)" in str(report)
    torch.testing.assert_close(model(X), before)
    unfuse_(model)
    assert type(model) is Gates


def test_calling_again_changes_nothing(gates):
    model = Model()
    fuse_(model)
    contents = vars(model.first)
    report = fuse_(model)
    assert {entry.outcome for entry in report.entries} == {"already"}
    assert len(report.fused) == 2
    assert vars(model.first) is contents
    unfuse_(model)
    assert type(model.first) is Gates
    unfuse_(model)
    assert type(model.first) is Gates


def test_another_backend_replaces_again_and_keeps_what_was_trained(gates):
    model = Model()
    fuse_(model, backend="cpu")
    with torch.no_grad():
        model.first.maps[0].weight.add_(1)
    model.first.offset = torch.ones(4)
    expected = model(X)
    assert outcomes(fuse_(model, backend="reference"))[("first",)] == "fused"
    assert model.first.backend == "reference"
    torch.testing.assert_close(model(X), expected)
    unfuse_(model)
    assert type(model.first) is Gates
    torch.testing.assert_close(model(X), expected)


def test_what_cannot_be_fused_says_why(gates):
    model = Model(bias=True)
    model.third = SpecialGates()
    report = fuse_(model)
    kept = {entry.names: entry.reason for entry in report.kept}
    assert set(kept) == {("first",), ("third",)}
    assert kept[("first",)] == "its maps have biases"
    assert "subclass of" in kept[("third",)]
    assert type(model.first) is Gates
    assert type(model.third) is SpecialGates
    lines = str(report).splitlines()
    assert "1 fused, 2 kept" in lines[0]
    assert any("second, same_again" in line and "FusedGates" in line for line in lines)
    assert any("its maps have biases" in line for line in lines)


def test_strict_is_all_or_nothing(gates):
    model = nn.ModuleDict({"good": Gates(), "bad": Gates(bias=True)})
    with pytest.raises(RuntimeError, match=r"(?s)nothing was changed.*bad .*biases"):
        fuse_(model, strict=True)
    assert type(model["good"]) is Gates
    accept = lambda name, module: name == "good"  # noqa: E731 (a name for the test's argument)
    report = fuse_(model, strict=True, filter_fn=accept)
    assert outcomes(report) == {("good",): "fused", ("bad",): "left out"}
    assert "filter_fn" in report.entries[1].reason


def test_nothing_to_do_says_so():
    report = fuse_(nn.Linear(2, 2), strict=True)
    assert report.entries == ()
    assert "nothing" in str(report)


def _drop_offset(module, state, prefix, meta):
    del state["offset"]


def test_hooks_and_modes_are_kept(gates):
    model = Gates()
    model.eval()
    model.maps[0].weight.requires_grad_(False)
    seen = []
    handle = model.register_forward_hook(lambda module, args, out: seen.append(type(module)))
    model.register_state_dict_post_hook(_drop_offset)
    fuse_(model)
    assert not model.training
    assert not model.maps[0].weight.requires_grad
    assert "offset" not in model.state_dict()
    model(X)
    later = model.register_forward_hook(lambda module, args, out: seen.append("later"))
    model(X)
    assert seen == [FusedGates, FusedGates, "later"]
    unfuse_(model)
    model(X)
    assert seen[3:] == [Gates, "later"]
    handle.remove()
    later.remove()
    model(X)
    assert len(seen) == 5
    assert "offset" not in model.state_dict()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.maps[1].register_forward_hook(print), "'maps.1' inside has hooks"),
        (lambda m: setattr(m, "forward", lambda x: x), "it has a forward of its own"),
        (lambda m: m.compile(), "it is compiled"),
        (lambda m: setattr(m, "extra", nn.LazyLinear(2)), "without a shape"),
    ],
)
def test_what_would_get_lost_is_a_reason(gates, change, reason):
    model = Gates()
    change(model)
    (entry,) = fuse_(model).kept
    assert reason in entry.reason
    assert type(model) is Gates


class Slotted(Gates):
    __slots__ = ("more",)


def test_a_class_that_objects_cannot_leave_is_a_reason(gates):
    class FusedSlotted(FusedGates):
        replaces = Slotted

    register_fusion(FusedSlotted)
    assert "cannot change it" in fuse_(Slotted()).kept[0].reason


def test_what_lies_inside_a_replaced_module_belongs_to_it(gates):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Gates()

        def forward(self, x):
            return self.inner(x)

    @register_fusion
    class FusedOuter(nn.Module):
        replaces = Outer

        @classmethod
        def from_unfused(cls, module, backend):
            fused = cls()
            fused.inner = module.inner
            return fused

        def forward(self, x):
            return self.inner(x)

    outer = Outer()
    model = nn.ModuleDict({"alias": outer.inner, "outer": outer})
    for outcome in ("fused", "already"):
        report = fuse_(model)
        assert outcomes(report) == {("alias", "outer.inner"): "inside", ("outer",): outcome}
        assert "outer is replaced" in report.entries[0].reason
    unfuse_(model)
    # Replaced alone first, the inner one comes back too, though it was hidden for a while.
    fuse_(model, filter_fn=lambda name, module: name == "alias")
    assert outcomes(fuse_(model))[("outer",)] == "fused"
    unfuse_(model)
    assert (type(outer), type(outer.inner)) == (Outer, Gates)


def test_other_models_are_left_alone(gates):
    fused, other = Model(), Model()
    fuse_(fused)
    assert type(other.first) is type(Gates()) is Gates


def test_copies_and_pickles(gates):
    model = Model()
    fuse_(model)
    expected = model(X)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    for other in (copy.deepcopy(model), loaded):
        assert type(other.first) is FusedGates
        assert other.second is other.same_again is other.in_a_list[0]
        torch.testing.assert_close(other(X), expected)
        with torch.no_grad():
            other.first.maps[0].weight.zero_()
            expected_now = other(X)
        unfuse_(other)
        assert type(other.first) is type(other.second) is Gates
        assert other.second is other.same_again
        torch.testing.assert_close(other(X), expected_now)
    assert type(model.first) is FusedGates
    torch.testing.assert_close(model(X), expected)


def test_conversion_after_fusing(gates):
    model = Model()
    fuse_(model, backend="reference")
    model.double()
    unfuse_(model)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float64}
    assert model(X.double()).dtype == torch.float64


def test_attributes_set_meanwhile_are_kept(gates):
    model = Gates()
    model.epoch = 1
    fuse_(model)
    model.note = "trained"
    unfuse_(model)
    assert model.note == "trained"
    assert model.epoch == 1
    assert not hasattr(model, "backend")  # the replacement's own


def test_checkpoints_load_either_way(gates):
    plain, fused = Model(), Model()
    fuse_(fused)
    fused.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused(X), plain(X))
    fused.load_state_dict({k: v + 1 for k, v in plain.state_dict().items()}, assign=True)
    expected = fused(X)
    unfuse_(fused)
    torch.testing.assert_close(fused(X), expected)


def test_compiles_afterwards(gates):
    model = Model()
    fuse_(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X))
    unfuse_(model)
    fuse_(model, backend="reference")
    torch.testing.assert_close(compiled(X), model(X))


def test_a_model_compiled_before_is_compiled_again(gates, monkeypatch):
    model = Gates()
    compiled = torch.compile(model, backend="eager")
    before = compiled(X)
    monkeypatch.setattr(FusedGates, "forward", lambda self, x: x + 1)
    fuse_(model)
    assert torch.equal(compiled(X), X + 1)
    unfuse_(model)
    torch.testing.assert_close(compiled(X), before)


# ---- our own modules ----


def sequences(dtype=torch.float32):
    lengths = torch.tensor([[2, 0, 1], [1, 1, 0]])
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(5, D, generator=generator, dtype=dtype)
    return JaggedSequences.from_lengths(values, lengths), torch.ones(B, D, dtype=dtype)


def codebook(**options):
    return MultiHashCodebook(3, 16, 8, D, backend="reference", **options)


OWN = [
    lambda: ConditionalTransformer(D, 2, 16, T, M, backend="reference"),
    lambda: TaskSpecificInterest(D, 2, 16, T, M, backend="reference"),
    lambda: SeparateTransformers(D, 2, 16, T, M, backend="reference"),
    lambda: InjectedTransformer(D, 2, 16, T, M, injection="ffn1", backend="reference"),
]


@pytest.mark.parametrize("make", OWN)
def test_our_transformers_are_switched(make):
    torch.manual_seed(0)
    model = make()
    inputs = sequences()
    before, state = model(*inputs), state_of(model)
    report = fuse_(model, strict=True)
    (entry,) = report.entries
    assert entry.outcome == "fused"
    assert "'cpu'" in entry.reason
    module = model.get_submodule(entry.names[0])
    assert module.backend == "auto"
    assert state_of(model) == state
    torch.testing.assert_close(model(*inputs), before)
    assert outcomes(fuse_(model)) == {entry.names: "already"}
    assert outcomes(fuse_(model, backend="cpu")) == {entry.names: "fused"}
    assert module.backend == "cpu"
    again = copy.deepcopy(model)
    for one in (model, again):
        unfuse_(one)
        assert one.get_submodule(entry.names[0]).backend == "reference"
        torch.testing.assert_close(one(*inputs), before)


@pytest.mark.parametrize("options", [{}, {"orders": (2, 3)}, {"hash": "siphash"}])
def test_our_codebook_is_switched(options):
    torch.manual_seed(0)
    model = codebook(**options)
    ids, embeddings = torch.arange(3 * B).view(B, 3), torch.randn(B, 3, D)
    before = model(ids, embeddings)
    assert fuse_(model, strict=True).entries[0].replacement == "backend 'auto' for 'reference'"
    assert model.backend == "auto"
    torch.testing.assert_close(model(ids, embeddings), before)
    unfuse_(model)
    assert model.backend == "reference"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ConditionalTransformer(6, 2, 16, T, M, backend="reference"), "multiple of 8"),
        (lambda: OWN[0]().double(), "float64"),
        (lambda: codebook().double(), "float64"),
    ],
)
def test_the_reasons_are_those_of_explain(make, reason):
    model = make()
    (entry,) = fuse_(model).kept
    assert reason in entry.reason
    assert model.backend == "reference"
    with pytest.raises(RuntimeError, match=reason):
        fuse_(model, strict=True)


def test_a_backend_that_cannot_run_here_is_a_reason():
    model = codebook()
    assert "cuda" in fuse_(model, backend="cuda").kept[0].reason
    assert model.backend == "reference"


def test_an_override_by_the_environment_is_a_reason(monkeypatch):
    monkeypatch.setenv("MTLFAST_BACKEND", "reference")
    assert "MTLFAST_BACKEND" in fuse_(codebook()).kept[0].reason


def test_a_function_as_backend_comes_back():
    function = F.relu  # any, it is not called
    model = ConditionalTransformer(D, 2, 16, T, M, backend=function)
    fuse_(model)
    assert model.backend == "auto"
    unfuse_(model)
    assert model.backend is function


def test_a_whole_model():
    from mtlfast.models import Sizes, build

    spec = Sizes(
        vocab_sizes=(50, 100, 7),
        item_field=1,
        max_lengths=(9, 4),
        task_parents=(None, 0),
        positive_rates=(0.3, 0.1),
    )
    head = {"name": "mmoe", "num_experts": 2, "expert_units": [6], "tower_units": [4]}
    model = build("dtrn", spec, {"embed_dim": D, "head": head}, backend="reference")
    (entry,) = fuse_(model, strict=True).entries
    assert entry.module == "mtlfast.nn.conditional_transformer.ConditionalTransformer"
    unfuse_(model)
    assert model.get_submodule(entry.names[0]).backend == "reference"


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (((),), "model"),
        ((nn.Linear(1, 1), {"filter_fn": 3}), "filter_fn"),
        ((nn.Linear(1, 1), {"backend": "fast"}), "backend"),
    ],
)
def test_wrong_arguments(arguments, argument):
    model, options = arguments[0], arguments[1] if len(arguments) > 1 else {}
    with pytest.raises(ValueError, match=f"{argument}: expected .*, found"):
        fuse_(model, **options)


def test_unfuse_of_no_module():
    with pytest.raises(ValueError, match="model: expected"):
        unfuse_(3)


def test_it_is_found_on_first_use():
    code = (
        "import sys, mtlfast; assert 'mtlfast.fuse' not in sys.modules; mtlfast.fuse_; "
        "assert mtlfast.fuse.fuse_ is mtlfast.fuse_; assert 'torch_rechub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert mtlfast.FuseReport
