"""What DTRN's tables compare TIM with: separate transformers, and injection into other weights."""

from __future__ import annotations

import pytest
import torch

from mtlfast.jagged import JaggedSequences
from mtlfast.nn import ConditionalTransformer, InjectedTransformer, SeparateTransformers

T, M, D, FFN, B = 3, 2, 8, 12, 7
INJECTED = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "ffn1": ("linear1_weight", "linear1_bias"),
    "ffn2": ("linear2_weight", "linear2_bias"),
}
every_injection = pytest.mark.parametrize("injection", INJECTED)


def inputs(users: int | None = None):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([[3, 0, 1, 5, 2, 0, 4], [0, 2, 1, 1, 0, 0, 3]])[:, : users or B]
    values = torch.randn(int(lengths.sum()), D, generator=generator, dtype=torch.float64)
    target = torch.randn(B, D, generator=generator, dtype=torch.float64)
    index = None if users is None else torch.tensor([0, 1, 1, 2, 3, 3, 0])
    return JaggedSequences.from_lengths(values, lengths), target, index


def shaken(module):
    """Every parameter away from its special start."""
    torch.manual_seed(1)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def separate(**options):
    return shaken(SeparateTransformers(D, 2, FFN, T, M, backend="reference", **options))


def injected(injection, **options):
    return InjectedTransformer(
        D, 2, FFN, T, M, injection=injection, hyper_dim=5, backend="reference", **options
    ).double()


def plain(encoder, decoder, norm_weight, norm_bias, **options):
    """One transformer for one task and behavior, whose hypernetwork is still at its start."""
    module = ConditionalTransformer(D, 2, FFN, 1, 1, backend="reference", **options).double()
    with torch.no_grad():
        module.norm_weight.copy_(norm_weight)
        module.norm_bias.copy_(norm_bias)
        for layer, state in ((module.encoder, encoder), (module.decoder, decoder)):
            for own, other in zip(layer.weights(), state, strict=True):
                own.copy_(other)
    return module


@pytest.mark.parametrize("users", [None, 4])
@pytest.mark.parametrize("options", [{}, {"empty": "zero_interest"}, {"share_enc_dec": True}])
def test_separate_transformers_are_ordinary_ones_side_by_side(users, options):
    module = separate(**options)
    sequences, target, index = inputs(users)
    out = module(sequences, target, user_index=index)
    assert out.shape == (B, T, module.output_dim)
    empty = {name: value for name, value in options.items() if name == "empty"}
    for b in range(M):
        one = plain(
            module.encoders[b].weights(), module.decoders[b].weights(),
            module.norm_weight[b], module.norm_bias[b], **empty,
        )  # fmt: skip
        expected = one(sequences.behavior(b), target, user_index=index)[:, 0, 0]
        for t in range(T):
            torch.testing.assert_close(out[:, t, b * D : (b + 1) * D], expected)


def test_separate_transformers_share_nothing():
    module = separate()
    sequences, target, _ = inputs()
    module(sequences, target)[..., :D].sum().backward()
    for name, parameter in module.named_parameters():
        if name.startswith("norm"):
            assert parameter.grad[0].any()
            assert not parameter.grad[1].any()
        else:
            assert (parameter.grad is not None and bool(parameter.grad.any())) == (".0." in name)


@every_injection
def test_all_pairs_start_equal_and_as_an_ordinary_transformer(injection):
    torch.manual_seed(0)
    module = injected(injection)
    sequences, target, _ = inputs()
    out = module(sequences, target).unflatten(2, (M, D))
    one = plain(
        module.encoder.weights(), module.decoder.weights(), module.norm_weight, module.norm_bias
    )
    for b in range(M):
        expected = one(sequences.behavior(b), target)[:, 0, 0]
        for t in range(T):
            torch.testing.assert_close(out[:, t, b], expected)


@every_injection
@pytest.mark.parametrize("where", ["both", "encoder", "decoder"])
@pytest.mark.parametrize("users", [None, 4])
def test_injection_multiplies_the_named_weights(injection, where, users):
    module = shaken(injected(injection, where=where))
    sequences, target, index = inputs(users)
    out = module(sequences, target, user_index=index).unflatten(2, (M, D))

    def modulated(side, layer, t, b):
        weights = layer.weights()
        if where not in ("both", side):
            return weights
        condition = torch.cat(
            [module.task_embedding.weight[t], module.behavior_embedding.weight[b]]
        )
        for name in INJECTED[injection]:
            network = module.hypernetworks[side][name]
            hidden = (network.linear1.weight @ condition + network.linear1.bias).relu()
            change = network.linear2.weight @ hidden + network.linear2.bias
            weight = getattr(weights, name)
            weights = weights._replace(**{name: weight * (1 + change.view_as(weight))})
        return weights

    for t in range(T):
        for b in range(M):
            one = plain(
                modulated("encoder", module.encoder, t, b),
                modulated("decoder", module.decoder, t, b),
                module.norm_weight,
                module.norm_bias,
            )
            expected = one(sequences.behavior(b), target, user_index=index)[:, 0, 0]
            torch.testing.assert_close(out[:, t, b], expected)


@every_injection
def test_the_first_step_breaks_the_symmetry(injection):
    torch.manual_seed(0)
    module = injected(injection)
    sequences, target, _ = inputs()
    weight = torch.randn(B, T, M * D, dtype=torch.float64)
    (module(sequences, target) * weight).sum().backward()
    for name, parameter in module.named_parameters():
        # Biases start at zero, and what multiplies them waits for that to change.
        if (
            name.startswith("hypernetworks")
            and name.endswith(".linear2.weight")
            and "bias" not in name
        ):
            assert parameter.grad.any(), name
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0
    out = module(sequences, target)
    assert not torch.allclose(out[:, 0], out[:, 1])


def test_only_the_named_weights_are_modulated():
    for injection, names in INJECTED.items():
        module = injected(injection, where="decoder")
        assert list(module.hypernetworks) == ["decoder"]
        assert set(module.hypernetworks["decoder"]) == set(names)
        sizes = dict(module.decoder.weights()._asdict())
        for name in names:
            network = module.hypernetworks["decoder"][name]
            assert network.linear2.weight.shape == (sizes[name].numel(), 5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: injected("wo"), r"injection: expected one of \['qkv', .* found 'wo'"),
        (lambda: injected("qkv", where="head"), "where: expected both, encoder or decoder"),
        (lambda: SeparateTransformers(8, 3, 4, 1, 1), "num_heads: expected a divisor"),
        (lambda: SeparateTransformers(8, 2, 0, 1, 1), "ffn_dim"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("module", [separate, lambda: injected("ffn1")])
def test_wrong_number_of_behaviors(module):
    sequences, target, _ = inputs()
    with pytest.raises(ValueError, match="sequences: expected 2 behaviors, found 1"):
        module()(sequences.behavior(0), target)
