"""Each head against its paper's formula, written one task and one expert at a time."""

from __future__ import annotations

import pytest
import torch

from mtlfast.heads import (
    AITM,
    ESMM,
    M2M,
    PLE,
    MMoE,
    ShareBottom,
    SingleTask,
    calibration_penalty,
)

T, D, B = 4, 6, 5


def randomize(head):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return head.double()


def network(stack, index, x):
    """Network ``index`` of a StackedMLP on rows ``x [B, in]``."""
    for weight, bias in zip(stack.weights, stack.biases, strict=True):
        x = torch.relu(x @ weight[index].T + bias[index])
    return x


def tower(head, t, x):
    return network(head.towers.hidden, t, x) @ head.towers.weight[t, 0] + head.towers.bias[t]


@pytest.fixture
def x():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(head, x, reprs):
    logits, task_repr = head(x, return_task_repr=True)
    expected = torch.stack(reprs, dim=1)
    torch.testing.assert_close(task_repr, expected)
    towers = torch.stack([tower(head, t, expected[:, t]) for t in range(T)], dim=1)
    torch.testing.assert_close(logits, towers)


def test_share_bottom(x):
    head = randomize(ShareBottom(D, T, bottom_units=(5, 3), tower_units=(4, 2)))
    check(head, x, [network(head.bottom, 0, x[:, t]) for t in range(T)])


def test_single_task(x):
    head = randomize(SingleTask(D, T, bottom_units=(5, 3), tower_units=(4,)))
    check(head, x, [network(head.bottoms, t, x[:, t]) for t in range(T)])


@pytest.mark.parametrize("parents", [(None, 0, 0, 2), (2, None, 1, 2), (None,) * T])
def test_esmm_multiplies_along_the_tree(x, parents):
    head = randomize(ESMM(D, T, parents=parents, tower_units=(5, 3)))
    own = torch.stack([tower(head, t, x[:, t]) for t in range(T)], dim=1).sigmoid()
    expected = []
    for t in range(T):
        product, task = 1.0, t
        while task is not None:
            product, task = product * own[:, task], parents[task]
        expected.append(product)
    torch.testing.assert_close(head(x).sigmoid(), torch.stack(expected, dim=1))


def test_esmm_is_exact_where_probabilities_are_tiny_or_almost_one():
    head = ESMM(1, 2, tower_units=())
    outputs = torch.tensor([[-90.0, -90.0], [60.0, 60.0], [200.0, 300.0], [60.0, -3.0]])
    outputs.requires_grad_()
    logits = head.combine(outputs)
    # p = e^-180; 1 - p = 2 e^-60; 1 - p = e^-200 (+ e^-300); p = sigmoid(-3)
    expected = torch.tensor([-180.0, 60.0 - 2**0.5, 200.0, -3.0])
    expected[1] = 60.0 - torch.log(torch.tensor(2.0))
    torch.testing.assert_close(logits[:, 1], expected)
    logits.sum().backward()
    assert bool(outputs.grad.isfinite().all())


def test_esmm_starts_at_the_rates():
    head = ESMM(3, 3, parents=(None, 0, 1), tower_units=())
    with torch.no_grad():
        head.towers.weight.zero_()
    head.set_prior((0.3, 0.06, 0.003))
    expected = torch.tensor([[0.3, 0.06, 0.003]])
    torch.testing.assert_close(head(torch.zeros(1, 3)).sigmoid(), expected)


@pytest.mark.parametrize("units", [(5,), (5, 3)])
def test_mmoe(x, units):
    head = randomize(MMoE(D, T, num_experts=3, expert_units=units, tower_units=(4,)))
    reprs = []
    for t in range(T):
        gate = torch.softmax(x[:, t] @ head.gate_weight[t].T, dim=-1)
        reprs.append(sum(gate[:, k : k + 1] * network(head.experts, k, x[:, t]) for k in range(3)))
    check(head, x, reprs)


@pytest.mark.parametrize("levels", [((5, 3),), ((5,), (4, 3)), ((5,), (4,), (3,))])
@pytest.mark.parametrize(("own", "shared"), [(1, 1), (2, 3)])
def test_ple(x, levels, own, shared):
    head = randomize(
        PLE(
            D,
            T,
            expert_units=levels,
            num_task_experts=own,
            num_shared_experts=shared,
            tower_units=(),
        )
    )
    assert len(head.levels) == len(levels)
    task = [x[:, t] for t in range(T)]
    common = [x[:, t] for t in range(T)]  # the shared stream of every task
    for number, level in enumerate(head.levels):
        owned = [
            [network(level.task_experts, t * own + j, task[t]) for j in range(own)]
            for t in range(T)
        ]
        sharing = [
            [network(level.shared_experts, j, common[t]) for j in range(shared)] for t in range(T)
        ]
        next_task = []
        for t in range(T):
            gate = torch.softmax(task[t] @ level.task_gate_weight[t].T, dim=-1)
            experts = torch.stack([*owned[t], *sharing[t]], dim=1)
            next_task.append((gate.unsqueeze(-1) * experts).sum(1))
        if number < len(head.levels) - 1:
            next_common = []
            for t in range(T):
                gate = torch.softmax(common[t] @ level.shared_gate_weight[0].T, dim=-1)
                experts = [expert for experts in owned for expert in experts] + sharing[t]
                next_common.append((gate.unsqueeze(-1) * torch.stack(experts, dim=1)).sum(1))
            common = next_common
        else:
            assert level.shared_gate_weight is None
        task = next_task
    check(head, x, task)


@pytest.mark.parametrize(
    "parents", [(None, 0, 0, 2), (None, 0, 1, 2), (2, 0, None, None), (1, None, 1, 1), (None,) * T]
)
def test_aitm_over_a_tree(x, parents):
    head = randomize(AITM(D, T, parents=parents, bottom_units=(5, 3)))
    own = [network(head.bottoms, t, x[:, t]) for t in range(T)]
    order = [task for level in head.levels for task in level]
    done = {}
    child = 0  # transfer weights lie in the order in which children are computed
    for t in order:
        if parents[t] is None:
            done[t] = own[t]
            continue
        handed = torch.relu(
            done[parents[t]] @ head.transfer_weight[child].T + head.transfer_bias[child]
        )
        child += 1
        pair = torch.stack((handed, own[t]))
        value, query, key = (pair @ weight.T for weight in head.attention_weight)
        attention = torch.softmax((query * key).sum(-1) / 3**0.5, dim=0)
        done[t] = (attention.unsqueeze(-1) * value).sum(0)
    assert sorted(done) == list(range(T))
    assert (child == 0) == (not hasattr(head, "transfer_weight"))
    check(head, x, [done[t] for t in range(T)])


def test_aitm_is_a_chain_by_default(x):
    assert AITM(D, T).parents == (None, 0, 1, 2)
    assert AITM(D, 1).parents == (None,)
    assert AITM(D, 1)(x[:, :1].float()).shape == (B, 1)


def test_a_childs_logit_reads_its_ancestors_and_nobody_else(x):
    parents = (None, 0, 0, 2)
    head = randomize(AITM(D, T, parents=parents, bottom_units=(8,)))
    x.requires_grad_()
    for task, reads in enumerate([{0}, {0, 1}, {0, 2}, {0, 2, 3}]):
        (grad,) = torch.autograd.grad(head(x)[:, task].sum(), x)
        assert {t for t in range(T) if grad[:, t].abs().sum() > 0} == reads


def test_calibration_penalty():
    logits = torch.tensor([[0.0, 1.0, -1.0], [2.0, 3.0, 4.0]], dtype=torch.float64)
    p = logits.sigmoid().tolist()
    expected = sum(max(row[1] - row[0], 0) + max(row[2] - row[1], 0) for row in p) / 2
    assert abs(float(calibration_penalty(logits, (None, 0, 1))) - expected) < 1e-12
    assert float(calibration_penalty(logits, (None, None, None))) == 0.0
    head = AITM(D, 3, parents=(None, 0, 1), calibrator=0.6)
    assert abs(float(head.extra_loss(logits)) - 0.6 * expected) < 1e-12
    assert AITM(D, 3).extra_loss(logits) is None
    assert MMoE(D, 3).extra_loss(logits) is None


@pytest.mark.parametrize("columns", [None, (0, 3, 4)])
def test_m2m(x, columns):
    head = randomize(M2M(D, T, columns=columns, num_experts=3, expert_units=(5, 4), meta_layers=2))
    leaky = torch.nn.functional.leaky_relu

    def meta(layer, u, s):
        p = layer.width
        weight = (s @ layer.weight.weight.T + layer.weight.bias).view(p, p)
        return leaky(u @ weight + s @ layer.bias.weight.T + layer.bias.bias)

    reprs = torch.zeros(T, B, 4, dtype=torch.float64)
    for t in range(T):
        task = leaky(head.task(head.task_embedding[t]))
        for n in range(B):
            row = x[n, t]
            s = leaky(head.scenario(row if columns is None else row[list(columns)]))
            experts, scores = [], []
            for i in range(3):
                e = row
                for weight, bias in zip(head.expert_weights, head.expert_biases, strict=True):
                    e = leaky(weight[i] @ e + bias[i])
                u = torch.cat((e, task))
                for layer in head.attention:
                    u = meta(layer, u, s)
                experts.append(e)
                scores.append(head.score[t] @ u)
            found = torch.stack(scores).softmax(dim=0) @ torch.stack(experts)
            for layer in head.meta_towers:
                found = leaky(meta(layer, found, s) + found)
            reprs[t, n] = found
    check(head, x, list(reprs))


def test_small_heads(x):
    head = MMoE(D, T, expert_units=(5,), tower_units=(4,))
    labels = torch.tensor([[1.0, 0.0, 0.0, 1.0]] * B, dtype=torch.float64)
    head.add_small_towers((3,), 0.25)
    head = randomize(head)
    logits, task_repr = head(x, return_task_repr=True)
    expected = 0.0
    for t in range(T):
        hidden = network(head.small_towers.hidden, t, task_repr[:, t])
        out = hidden @ head.small_towers.weight[t, 0] + head.small_towers.bias[t]
        p = out.sigmoid()
        losses = labels[:, t] * p.log() + (1 - labels[:, t]) * (1 - p).log()
        expected = expected - losses.mean()
    extra = head.extra_loss(logits, labels)
    torch.testing.assert_close(extra, 0.25 * expected)
    assert head.extra_loss(logits, labels) is None  # of a forward pass but once
    extra.backward()
    assert head.experts.weights[0].grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"labels: expected shape \[5, 4\], found none"):
        head.extra_loss(head(x))
    # Nothing is added outside training, and the logits are the same.
    head.eval()
    torch.testing.assert_close(head(x), logits)
    assert head.extra_loss(logits, labels) is None
