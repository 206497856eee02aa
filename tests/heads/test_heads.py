"""Every head: shapes, the rule for one representation per task, gradients, copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mtlfast.heads import AITM, ESMM, M2M, PLE, MMoE, MultiTaskHead, ShareBottom, SingleTask

T, D, B = 4, 10, 7

HEADS = {
    "single_task": lambda: SingleTask(D, T, bottom_units=(6, 5), tower_units=(4,)),
    "esmm": lambda: ESMM(D, T, parents=(None, 0, 0, 2), tower_units=(4,)),
    "share_bottom": lambda: ShareBottom(D, T, bottom_units=(6, 5), tower_units=(4,)),
    "share_bottom_no_tower": lambda: ShareBottom(D, T, bottom_units=(6,), tower_units=()),
    "mmoe": lambda: MMoE(D, T, num_experts=3, expert_units=(6, 5), tower_units=(4,)),
    "mmoe_one_layer": lambda: MMoE(D, T, num_experts=2, expert_units=(6,), tower_units=()),
    "cgc": lambda: PLE(D, T, expert_units=((6, 5),), num_shared_experts=2, tower_units=(4,)),
    "ple": lambda: PLE(D, T, expert_units=((6, 5), (4,), (3, 2)), num_task_experts=2),
    "aitm": lambda: AITM(D, T, parents=(None, 0, 0, 2), bottom_units=(6, 5)),
    "m2m": lambda: M2M(D, T, columns=(1, 4, 5), num_experts=2, expert_units=(6, 3)),
    "aitm_flat": lambda: AITM(D, T, parents=(None,) * T, bottom_units=(6,), tower_units=(3,)),
}


def make(name: str) -> MultiTaskHead:
    torch.manual_seed(0)
    head = HEADS[name]().double()
    with torch.no_grad():
        for parameter in head.parameters():  # biases, too
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def make_input() -> torch.Tensor:
    return torch.randn(
        B, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()


every_head = pytest.mark.parametrize("name", HEADS)


@every_head
def test_equal_representations_reproduce_the_ordinary_head(name):
    head = make(name)
    x = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    ordinary, ordinary_repr = head(x, return_task_repr=True)
    equal, equal_repr = head(x.unsqueeze(1).expand(-1, T, -1), return_task_repr=True)
    assert ordinary.shape == (B, T)
    assert ordinary_repr.shape == equal_repr.shape == (B, T, head.repr_dim)
    torch.testing.assert_close(equal, ordinary, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(equal_repr, ordinary_repr, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ordinary)
    leaves = [x, *head.parameters()]
    grads = torch.autograd.grad((equal * weight).sum(), leaves)
    expected = torch.autograd.grad((ordinary * weight).sum(), leaves)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@every_head
def test_memory_layout_of_the_input_does_not_matter(name):
    head = make(name)
    x = make_input()
    by_task = x.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(head(by_task), head(x), rtol=1e-12, atol=1e-12)


@every_head
def test_gradients_reach_every_parameter_and_input(name):
    head = make(name)
    x = make_input()
    head(x).pow(2).sum().backward()
    assert bool((x.grad.abs().sum(dim=(0, 2)) > 0).all())
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@every_head
def test_gradcheck(name):
    head = make(name)
    assert torch.autograd.gradcheck(head, (make_input()[:2].detach().requires_grad_(),))


@every_head
def test_permuting_samples_permutes_logits(name):
    head, x = make(name), make_input()
    order = torch.randperm(B)
    torch.testing.assert_close(head(x[order]), head(x)[order], rtol=1e-12, atol=1e-12)


@every_head
def test_empty_batch(name):
    head = make(name)
    assert head(make_input()[:0]).shape == (0, T)
    assert head(make_input()[:0, 0]).shape == (0, T)


@every_head
def test_copies_pickles_and_checkpoints(name):
    head, x = make(name), make_input()
    other = HEADS[name]().double()
    other.load_state_dict(head.state_dict())
    for clone in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), other):
        assert torch.equal(clone(x), head(x))


@every_head
def test_bfloat16_autocast(name):
    head, x = make(name).float(), make_input().detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        low = head(x)
    torch.testing.assert_close(low.float(), head(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["ple", "aitm"])
def test_compiled_equals_eager_with_gradients(name):
    head, x = make(name), make_input()
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))
    leaves = [x, *head.parameters()]
    found = torch.autograd.grad(compiled(x).pow(2).sum(), leaves)
    for a, b in zip(found, torch.autograd.grad(head(x).pow(2).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


# ESMM's towers model rates given the parent's, see test_formulas.py.
@pytest.mark.parametrize("name", [name for name in HEADS if name != "esmm"])
def test_prior_starts_the_outputs_at_the_log_odds(name):
    head = make(name)
    with torch.no_grad():
        head.towers.weight.zero_()
    rates = (0.5, 0.01, 0.2, 1e-9)
    head.set_prior(rates)
    expected = torch.tensor([0.5, 0.01, 0.2, 1e-6], dtype=torch.float64).expand(B, T)
    torch.testing.assert_close(head(make_input()).sigmoid(), expected, rtol=1e-5, atol=0)


@every_head
def test_wrong_inputs_are_named(name):
    head = make(name)
    for shape in ((B, T, D + 1), (B, T + 1, D), (B, D - 1), (D,), (B, 1, T, D)):
        with pytest.raises(ValueError, match=r"x: expected shape \[B, 4, 10\] or \[B, 10\]"):
            head(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="positive_rates: expected 4 rates, found 2"):
        head.set_prior((0.1, 0.2))


def test_copies_between_the_forward_pass_and_the_loss():
    """Small towers keep their logits for the loss; those are no part of a copy."""
    head = make("mmoe")
    head.add_small_towers((), 0.1)
    head.double()
    logits = head(make_input())
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert other.extra_loss(logits, torch.zeros_like(logits)) is None
    assert head.extra_loss(logits, torch.zeros_like(logits)) is not None


@pytest.mark.parametrize("name", ["share_bottom", "mmoe", "ple", "aitm"])
def test_dropout_in_training_only(name):
    torch.manual_seed(0)
    options = {"dropout": 0.5}
    head = {"share_bottom": ShareBottom, "mmoe": MMoE, "ple": PLE, "aitm": AITM}[name](
        D, T, **options
    ).double()
    x = make_input()
    assert not torch.allclose(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))


@pytest.mark.parametrize(
    ("make_head", "text"),
    [
        (lambda: MMoE(0, 1), "input_dim: expected a positive int, found 0"),
        (lambda: MMoE(1, 0), "num_tasks: expected a positive int, found 0"),
        (lambda: MMoE(1, 1, num_experts=0), "num_experts: expected a positive int, found 0"),
        (lambda: MMoE(1, 1, num_experts=1.5), r"num_experts: expected a positive int, found 1\.5"),
        (lambda: MMoE(1, 1, expert_units=(4.0,)), r"expert_units: .* found \[4\.0\]"),
        (lambda: MMoE(1, 1, expert_units=()), r"expert_units: expected positive .* found \[\]"),
        (lambda: MMoE(1, 1, tower_units=(3, 0)), r"tower_units: .* found \[3, 0\]"),
        (lambda: MMoE(1, 1, dropout=1.0), r"dropout: expected a probability in \[0, 1\)"),
        (lambda: ShareBottom(1, 1, bottom_units=(-1,)), r"bottom_units: .* found \[-1\]"),
        (lambda: PLE(1, 1, expert_units=()), "expert_units: expected at least one level"),
        (lambda: PLE(1, 1, expert_units=((4,), ())), r"expert_units\[1\]: .* found \[\]"),
        (lambda: PLE(1, 1, num_shared_experts=0), "num_shared_experts: expected a positive int"),
        (lambda: PLE(1, 1, num_task_experts=0), "num_task_experts: expected a positive int"),
        (lambda: AITM(1, 2, parents=(None,)), "parents: expected 2 entries"),
        (lambda: AITM(1, 2, parents=(None, 2)), r"found parents\[1\] = 2"),
        (lambda: AITM(1, 2, parents=(None, 1)), r"found parents\[1\] = 1"),
        (lambda: AITM(1, 3, parents=(None, 2, 1)), "parents: expected a tree, found a cycle"),
        (lambda: AITM(1, 1, calibrator=-0.1), "calibrator: expected at least 0, found -0.1"),
    ],
)
def test_wrong_options_are_named(make_head, text):
    with pytest.raises(ValueError, match=text):
        make_head()
