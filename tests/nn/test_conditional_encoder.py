"""More than one conditional encoder layer, against loops over tasks, behaviors and users."""

from __future__ import annotations

import pytest
import torch

from mtlfast.jagged import JaggedSequences
from mtlfast.nn import ConditionalTransformer
from mtlfast.reference import conditional_interest

T, M, D, D_F, U_DIM, H = 3, 2, 8, 12, 5, 2
LENGTHS = torch.tensor([[3, 0, 1, 4], [2, 0, 0, 1]])
U = LENGTHS.shape[1]


def make(layers: int, **options) -> ConditionalTransformer:
    torch.manual_seed(0)
    options = {"backend": "reference", "hyper_dim": U_DIM, "eps": 1e-4, **options}
    module = ConditionalTransformer(D, H, D_F, T, M, num_encoder_layers=layers, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def make_inputs(lengths=LENGTHS):
    rng = torch.Generator().manual_seed(1)
    values = torch.randn(int(lengths.sum()), D, generator=rng, dtype=torch.float64)
    target = torch.randn(U, D, generator=rng, dtype=torch.float64)
    return JaggedSequences.from_lengths(values.requires_grad_(), lengths), target


def encoded(module, x, task, behavior):
    """One sequence ``[L, d]`` behind the layers in front, for one pair, head by head."""
    front = module.front
    network = front.hypernetwork
    c = torch.cat((module.task_embedding.weight[task], module.behavior_embedding.weight[behavior]))

    def norm(u, position):
        place = position if network.weight1.shape[1] > 1 else 0
        scale, shift = (
            (c @ network.weight1[k, place] + network.bias1[k, place]).relu()
            @ network.weight2[k, place]
            + network.bias2[k, place]
            for k in (0, 1)
        )
        mean, var = u.mean(1, keepdim=True), u.var(1, keepdim=True, correction=0)
        scale = scale * front.norm_weight[position]
        return scale * (u - mean) / torch.sqrt(var + 1e-4) + shift + front.norm_bias[position]

    for i, layer in enumerate(front.layers):
        heads = []
        for h in range(H):
            s = slice(h * D // H, (h + 1) * D // H)
            q, k, v = (p.weight[s] for p in (layer.q_proj, layer.k_proj, layer.v_proj))
            weights = ((x @ q.T) @ (x @ k.T).T / (D // H) ** 0.5).softmax(dim=1)
            heads.append(weights @ (x @ v.T))
        x = norm(x + torch.cat(heads, dim=1) @ layer.out_proj.weight.T, 2 * i)
        x = norm(x + layer.linear2(layer.linear1(x).relu()), 2 * i + 1)
    return x


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("share_positions", [False, True])
def test_layers_in_front(layers, share_positions):
    module = make(layers, share_positions=share_positions)
    sequences, target = make_inputs()
    found = module(sequences, target)
    scale, shift = module.norm_tables()
    columns = []
    for t in range(T):
        pieces = []
        for segment in range(M * U):
            x = sequences.values[sequences.offsets[segment] : sequences.offsets[segment + 1]]
            pieces.append(encoded(module, x, t, segment // U) if len(x) else x)
        columns.append(
            conditional_interest(
                sequences.with_values(torch.cat(pieces)),
                target,
                module.weights(),
                scale[t : t + 1],
                shift[t : t + 1],
                num_heads=H,
                eps=1e-4,
            )
        )
    expected = torch.cat(columns, dim=1)
    torch.testing.assert_close(found, expected)
    leaves = [sequences.values, *module.parameters()]
    upstream = torch.randn_like(expected)
    grads = torch.autograd.grad(found, leaves, upstream)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want)


def test_users_may_be_shared_and_the_op_may_be_fused():
    module, fused = make(2), make(2, backend="auto").float()
    sequences, target = make_inputs()
    users = torch.tensor([3, 0, 0, 1])
    found = module(sequences, target, user_index=users)
    lengths = LENGTHS[:, users]
    own = [
        sequences.values[sequences.offsets[b * U + u] : sequences.offsets[b * U + u + 1]]
        for b in range(M)
        for u in users.tolist()
    ]
    apart = JaggedSequences.from_lengths(torch.cat(own), lengths)
    torch.testing.assert_close(found, module(apart, target))
    single = sequences.with_values(sequences.values.detach().float())
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(
        fused(single, target.float(), user_index=users).double(), found, **close
    )


def test_it_begins_with_equal_tasks_and_one_layer_has_no_front():
    torch.manual_seed(0)
    fresh = ConditionalTransformer(D, H, D_F, T, M, num_encoder_layers=2, backend="reference")
    sequences, target = make_inputs()
    sequences = sequences.with_values(sequences.values.float())
    found = fresh(sequences, target.float())
    torch.testing.assert_close(found, found[:, :1].expand(-1, T, -1, -1))
    plain = ConditionalTransformer(D, H, D_F, T, M)
    assert plain.front is None
    assert not any(key.startswith("front") for key in plain.state_dict())
    with pytest.raises(ValueError, match="num_encoder_layers: expected a positive int"):
        ConditionalTransformer(D, H, D_F, T, M, num_encoder_layers=0)


@pytest.mark.parametrize("users", [0, U])
def test_nothing_at_all(users):
    module = make(2)
    lengths = torch.zeros(M, users, dtype=torch.int64)
    empty = JaggedSequences.from_lengths(torch.zeros(0, D, dtype=torch.float64), lengths)
    found = module(empty, torch.randn(users, D, dtype=torch.float64))
    assert found.shape == (users, T, M, D)
    assert bool(found.isfinite().all())


def test_compiled_equals_eager():
    module = make(2).float()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    for lengths in (LENGTHS, LENGTHS.flip(1)[:, :3]):
        values = torch.randn(int(lengths.sum()), D)
        inputs = (
            JaggedSequences.from_lengths(values, lengths, max_len=9),
            torch.randn(lengths.shape[1], D),
        )
        torch.testing.assert_close(compiled(*inputs), module(*inputs), rtol=1e-4, atol=1e-4)
