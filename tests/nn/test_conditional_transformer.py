"""ConditionalTransformer, its hypernetwork and TIM."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from mtlfast.jagged import JaggedSequences
from mtlfast.nn import ConditionalTransformer, TaskSpecificInterest
from mtlfast.reference import conditional_interest

T, M, D, D_F, U_DIM = 3, 2, 8, 12, 5


def make_module(**options) -> ConditionalTransformer:
    torch.manual_seed(0)
    options = {"backend": "reference", "hyper_dim": U_DIM, **options}
    return ConditionalTransformer(D, 2, D_F, T, M, **options).double()


def trained(module: ConditionalTransformer) -> ConditionalTransformer:
    """Every parameter away from its special start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def make_inputs(users: int = 5, seed: int = 0) -> tuple[JaggedSequences, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (M, users), generator=generator)
    lengths[0, 0] = 0
    lengths[1, min(1, users - 1)] = 1
    values = torch.randn(int(lengths.sum()), D, generator=generator, dtype=torch.float64)
    target = torch.randn(users, D, generator=generator, dtype=torch.float64)
    return JaggedSequences.from_lengths(values, lengths), target


STATE_DICT = {
    "task_embedding.weight": (T, D),
    "behavior_embedding.weight": (M, D),
    "hypernetwork.weight1": (2, 4, 2 * D, U_DIM),
    "hypernetwork.bias1": (2, 4, U_DIM),
    "hypernetwork.weight2": (2, 4, U_DIM, D),
    "hypernetwork.bias2": (2, 4, D),
    "norm_weight": (4, D),
    "norm_bias": (4, D),
    "encoder.q_proj.weight": (D, D),
    "encoder.k_proj.weight": (D, D),
    "encoder.v_proj.weight": (D, D),
    "encoder.out_proj.weight": (D, D),
    "encoder.linear1.weight": (D_F, D),
    "encoder.linear1.bias": (D_F,),
    "encoder.linear2.weight": (D, D_F),
    "encoder.linear2.bias": (D,),
    "decoder.q_proj.weight": (D, D),
    "decoder.k_proj.weight": (D, D),
    "decoder.v_proj.weight": (D, D),
    "decoder.out_proj.weight": (D, D),
    "decoder.linear1.weight": (D_F, D),
    "decoder.linear1.bias": (D_F,),
    "decoder.linear2.weight": (D, D_F),
    "decoder.linear2.bias": (D,),
}


def test_state_dict_is_the_published_one():
    found = {name: tuple(value.shape) for name, value in make_module().state_dict().items()}
    assert found == STATE_DICT


def test_hyper_dim_is_embed_dim_by_default():
    module = ConditionalTransformer(D, 2, D_F, T, M)
    assert module.hypernetwork.weight1.shape == (2, 4, 2 * D, D)


def test_identity_start_tables_are_exact():
    scale, shift = make_module().norm_tables()
    assert scale.shape == shift.shape == (T, M, 4, D)
    assert torch.equal(scale, torch.ones_like(scale))
    assert torch.equal(shift, torch.zeros_like(shift))


def test_identity_start_gives_every_task_the_same_interests():
    interests = make_module()(*make_inputs())
    torch.testing.assert_close(
        interests, interests[:, :1].expand_as(interests), rtol=1e-12, atol=1e-12
    )
    behaviors = interests[:, 0]
    assert not torch.allclose(behaviors[:, 0], behaviors[:, 1])


def test_identity_start_equals_ordinary_layer_norms():
    module = make_module()
    sequences, target = make_inputs()
    interests = module(sequences, target)
    for user in range(target.shape[0]):
        for behavior in range(M):
            start, end = sequences.offsets[behavior * 5 + user : behavior * 5 + user + 2].tolist()
            expected = _plain_transformer(module, sequences.values[start:end], target[user])
            for task in range(T):
                torch.testing.assert_close(interests[user, task, behavior], expected)


def _plain_transformer(module, x, target):
    """A post-norm encoder and decoder layer with ordinary layer norms, for one sequence."""

    def attend(layer, query, keys):
        if keys.shape[0] == 0:
            return torch.zeros_like(query)
        heads = []
        for q, k, v in zip(
            (query @ layer.q_proj.weight.T).chunk(2, -1),
            (keys @ layer.k_proj.weight.T).chunk(2, -1),
            (keys @ layer.v_proj.weight.T).chunk(2, -1),
            strict=True,
        ):
            heads.append(torch.softmax(q @ k.T / q.shape[-1] ** 0.5, -1) @ v)
        return torch.cat(heads, -1) @ layer.out_proj.weight.T

    def block(layer, query, keys):
        out = F.layer_norm(query + attend(layer, query, keys), (D,))
        return F.layer_norm(out + layer.linear2(F.relu(layer.linear1(out))), (D,))

    encoded = block(module.encoder, x, x)
    return block(module.decoder, target[None], encoded)[0]


def test_hypernetwork_is_equation_2_for_every_pair_and_position():
    module = trained(make_module())
    scale, shift = module.norm_tables()
    hyper = module.hypernetwork
    for task in range(T):
        for behavior in range(M):
            condition = torch.cat(
                (module.task_embedding.weight[task], module.behavior_embedding.weight[behavior])
            )
            for position in range(4):
                gamma, beta = (
                    torch.relu(
                        condition @ hyper.weight1[kind, position] + hyper.bias1[kind, position]
                    )
                    @ hyper.weight2[kind, position]
                    + hyper.bias2[kind, position]
                    for kind in range(2)
                )
                torch.testing.assert_close(
                    scale[task, behavior, position], gamma * module.norm_weight[position]
                )
                torch.testing.assert_close(
                    shift[task, behavior, position], beta + module.norm_bias[position]
                )


def test_forward_is_the_op_on_the_modules_parameters():
    module = trained(make_module())
    sequences, target = make_inputs()
    user_index = torch.tensor([4, 0, 0])
    scale, shift = module.norm_tables()
    expected = conditional_interest(
        sequences,
        target[:3],
        module.weights(),
        scale,
        shift,
        num_heads=2,
        eps=module.eps,
        user_index=user_index,
    )
    found = module(sequences, target[:3], user_index=user_index)
    assert found.shape == (3, T, M, D)
    assert torch.equal(found, expected)
    # Encoder and decoder are not mixed up, and eps and the number of heads arrive.
    for change in ({"eps": 0.5}, {"num_heads": 4}):
        other = make_module()
        other.load_state_dict(module.state_dict())
        for name, value in change.items():
            setattr(other, name, value)
        assert not torch.allclose(other(sequences, target[:3], user_index=user_index), expected)


def test_given_tables_replace_the_hypernetwork():
    module = trained(make_module())
    sequences, target = make_inputs()
    tables = module.norm_tables()
    expected = module(sequences, target)
    with torch.no_grad():
        module.hypernetwork.weight1.zero_()
    assert torch.equal(module(sequences, target, tables=tables), expected)
    assert not torch.allclose(module(sequences, target), expected)


def test_first_step_breaks_the_symmetry_between_tasks():
    module = make_module()
    sequences, target = make_inputs()
    weights = torch.randn(5, T, M, D, dtype=torch.float64)
    (module(sequences, target) * weights).sum().backward()
    grad = module.hypernetwork.weight2.grad
    assert bool((grad.flatten(2).norm(dim=-1) > 0).all())


def test_gradients_reach_every_parameter():
    module = trained(make_module())
    sequences, target = make_inputs()
    weights = torch.randn(5, T, M, D, dtype=torch.float64)
    (module(sequences, target) * weights).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_permuting_users_permutes_the_interests():
    module = trained(make_module())
    sequences, target = make_inputs()
    order = torch.tensor([3, 1, 4, 0, 2])
    padded, lengths = sequences.to_padded()
    permuted = JaggedSequences.from_padded([p[order] for p in padded], lengths[:, order])
    torch.testing.assert_close(
        module(permuted, target[order]), module(sequences, target)[order], rtol=1e-12, atol=1e-12
    )


def test_without_positions_the_order_of_tokens_does_not_matter():
    module = trained(make_module())
    sequences, target = make_inputs()
    values = sequences.values.clone()
    offsets = sequences.offsets.tolist()
    for start, end in pairwise(offsets):
        values[start:end] = values[start:end].flip(0)
    assert not torch.equal(values, sequences.values)
    torch.testing.assert_close(
        module(sequences.with_values(values), target),
        module(sequences, target),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("user_index", [None, torch.tensor([1, 0, 0, 3])])
def test_zero_interest_blanks_empty_sequences_only(user_index):
    plain, blank = trained(make_module()), make_module(empty="zero_interest")
    blank.load_state_dict(plain.state_dict())
    sequences, target = make_inputs()
    target = target if user_index is None else target[:4]
    users = torch.arange(5) if user_index is None else user_index
    empty = (sequences.lengths() == 0)[:, users]  # [M, B]
    assert empty.any()
    assert not empty.all()
    expected = plain(sequences, target, user_index=user_index).clone()
    expected[empty.T[:, None, :].expand(-1, T, -1)] = 0
    assert torch.equal(blank(sequences, target, user_index=user_index), expected)


def test_shared_encoder_and_decoder():
    module = make_module(share_enc_dec=True)
    assert set(module.state_dict()) == set(STATE_DICT)
    assert module.decoder.linear1.weight is module.encoder.linear1.weight
    clone = copy.deepcopy(module)
    assert clone.decoder.linear1.weight is clone.encoder.linear1.weight
    assert clone.decoder.linear1.weight is not module.decoder.linear1.weight


def test_one_hypernetwork_for_all_positions_is_four_equal_ones():
    shared, each = trained(make_module(share_positions=True)), make_module()
    state = shared.state_dict()
    assert state["hypernetwork.weight1"].shape == (2, 1, 2 * D, U_DIM)
    repeated = {
        key: value.expand(2, 4, *value.shape[2:]) if key.startswith("hypernetwork") else value
        for key, value in state.items()
    }
    each.load_state_dict(repeated)
    inputs = make_inputs()
    found, expected = shared(*inputs), each(*inputs)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    found.backward(upstream)
    expected.backward(upstream)
    for name in ("weight1", "bias1", "weight2", "bias2"):
        grad = getattr(shared.hypernetwork, name).grad
        torch.testing.assert_close(
            grad, getattr(each.hypernetwork, name).grad.sum(dim=1, keepdim=True)
        )
    fresh = make_module(share_positions=True)
    scale, shift = fresh.norm_tables()
    assert scale.shape == (T, M, 4, D)
    assert bool((scale == 1).all() and (shift == 0).all())


def reverse_backend(sequences, target, weights, scale, shift, *, num_heads, eps, user_index):
    return -conditional_interest(
        sequences,
        target,
        weights,
        scale,
        shift,
        num_heads=num_heads,
        eps=eps,
        user_index=user_index,
    )


def test_a_function_can_stand_in_for_the_op():
    plain, other = trained(make_module()), make_module(backend=reverse_backend)
    other.load_state_dict(plain.state_dict())
    inputs = make_inputs()
    assert torch.equal(other(*inputs), -plain(*inputs))
    assert torch.equal(pickle.loads(pickle.dumps(other))(*inputs), -plain(*inputs))


def test_copies_and_pickles_are_equal_and_independent():
    module = trained(make_module())
    inputs = make_inputs()
    expected = module(*inputs)
    clones = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    with torch.no_grad():
        module.norm_weight.zero_()
    for clone in clones:
        assert torch.equal(clone(*inputs), expected)


def test_no_state_survives_a_change_of_parameters():
    """Nothing is cached: in eval mode, too, the next call sees new weights."""
    module = trained(make_module()).eval()
    inputs = make_inputs()
    with torch.no_grad():
        before = module(*inputs)
        module.task_embedding.weight.data.mul_(2.0)
        assert not torch.allclose(module(*inputs), before)


def test_autocast_keeps_the_tables_in_float32():
    module = trained(make_module()).float()
    sequences, target = make_inputs()
    sequences, target = sequences.to(dtype=torch.float32), target.float()
    exact = module(sequences, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(table.dtype == torch.float32 for table in module.norm_tables())
        low = module(sequences, target)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.1)


def test_empty_batch():
    module = make_module()
    sequences = JaggedSequences.from_lengths(
        torch.zeros(0, D, dtype=torch.float64), torch.zeros(M, 0, dtype=torch.int64), max_len=3
    )
    assert module(sequences, torch.zeros(0, D, dtype=torch.float64)).shape == (0, T, M, D)


def test_shapes_alone():
    """Tensors on the meta device have no data, nor autocast."""
    module = make_module().to("meta")
    sequences, target = make_inputs()
    assert module(sequences.to("meta"), target.to("meta")).shape == (len(target), T, M, D)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((0, 1, 1, 1, 1), {}, "embed_dim: expected a positive int, found 0"),
        ((8.0, 1, 1, 1, 1), {}, r"embed_dim: expected a positive int, found 8\.0"),
        ((8, True, 1, 1, 1), {}, "num_heads: expected a positive int, found True"),
        ((8, 3, 1, 1, 1), {}, "num_heads: expected a divisor of embed_dim = 8, found 3"),
        ((8, 2, 0, 1, 1), {}, "ffn_dim: expected a positive int, found 0"),
        ((8, 2, 4, -1, 1), {}, "num_tasks: expected a positive int, found -1"),
        ((8, 2, 4, 1, 0), {}, "num_behaviors: expected a positive int, found 0"),
        ((8, 2, 4, 1, 1), {"hyper_dim": 0}, "hyper_dim: expected a positive int, found 0"),
        ((8, 2, 4, 1, 1), {"eps": -1.0}, "eps: expected a positive float, found -1.0"),
        ((8, 2, 4, 1, 1), {"empty": "mean"}, "empty: expected .* found 'mean'"),
    ],
)
def test_wrong_options_are_named(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        ConditionalTransformer(*arguments, **options)


def test_wrong_inputs_are_named():
    module = make_module()
    sequences, target = make_inputs()
    with pytest.raises(ValueError, match=r"target: expected shape \[B, 8\], found shape \[5, 4\]"):
        module(sequences, target[:, :4])
    three = JaggedSequences(sequences.values, sequences.offsets[:10], 3, 6)
    with pytest.raises(ValueError, match="sequences: expected 2 behaviors, found 3"):
        module(three, target)
    with pytest.raises(ValueError, match="sequences: expected a JaggedSequences, found a float32"):
        module(sequences.values.float(), target)
    with pytest.raises(ValueError, match="target: expected shape"):
        module(sequences, target[:3])  # as many candidates as users unless user_index says more


def test_task_specific_interest_joins_the_behaviors_of_a_task():
    tim = TaskSpecificInterest(D, 2, D_F, T, M, hyper_dim=U_DIM, backend="reference").double()
    assert {f"transformer.{name}" for name in STATE_DICT} == set(tim.state_dict())
    assert tim.output_dim == M * D
    trained(tim.transformer)
    sequences, target = make_inputs()
    user_index = torch.tensor([2, 2])
    joined = tim(sequences, target[:2], user_index=user_index)
    interests = tim.transformer(sequences, target[:2], user_index=user_index)
    assert torch.equal(joined, torch.cat([interests[:, :, b] for b in range(M)], dim=-1))
