"""Every method built from its config: shapes, gradients, errors, copies, dtypes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mtlfast._config import from_mapping, to_mapping
from mtlfast.interactions import (
    INTERACTION_CONFIGS,
    BilinearInteraction,
    CompressedInteraction,
    CrossNetworkMix,
    DHENConfig,
    FieldAttention,
    FieldSizes,
    GatedCrossNetwork,
    InteractionConfig,
    MaskNet,
    MaskNetConfig,
    SqueezeExcitation,
)

B, G, OUT = 5, 3, 6
SIZES = FieldSizes(embed_dim=4, vocab_sizes=(9, 7, 30, 5, 12))
N, D = SIZES.num_fields, SIZES.embed_dim
SMALL = {
    "mlp": {"units": [6]},
    "deepfm": {"units": [6]},
    "xdeepfm": {"cin_units": [4, 2], "units": [6]},
    "dcn_mix": {"num_experts": 2, "rank": 3},
    # Two ReLUs in a row would leave small cases without a gradient.
    "senet": {"reduction": 1, "excitation": "sigmoid"},
    "fibinet": {"reduction": 1, "excitation": "sigmoid"},
    "masknet": {"block_units": [7], "agg_dim": 8},
    "memonet": {"num_codewords": 50},
    "dhen": {"modules": ["dcn_m", {"name": "mlp", "units": [6]}, "attention"]},
}
METHODS = list(INTERACTION_CONFIGS)


def config(name: str) -> InteractionConfig:
    return InteractionConfig.from_value({"name": name, **SMALL.get(name, {})}, "interaction")


def make(name: str, num_modules: int | None = G):
    torch.manual_seed(0)
    module = config(name).build(SIZES, OUT, num_modules)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def make_input(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(B, N, D, generator=generator)
    ids = torch.stack(
        [torch.randint(0, size, (B,), generator=generator) for size in SIZES.vocab_sizes], dim=1
    )
    return fields, ids


every_method = pytest.mark.parametrize("name", METHODS)


@every_method
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_shapes_and_gradients(name, groups):
    module = make(name, groups)
    fields, ids = make_input()
    fields.requires_grad_()
    out = module(fields, ids)
    assert out.shape == (groups, B, OUT)
    out.square().sum().backward()
    assert bool((fields.grad.abs().sum((1, 2)) > 0).all())
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@every_method
def test_modules_are_independent(name):
    """No module reads another's weights: the gradient of one output stays in its own module."""
    module = make(name)
    fields, ids = make_input()
    module(fields, ids)[1].square().sum().backward()
    for g in (0, 2):
        alone = copy.deepcopy(module)
        alone.select([g])
        with torch.no_grad():
            torch.testing.assert_close(alone(fields, ids)[0], module(fields, ids)[g])
    if name == "memonet":
        return
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad[1].abs().sum() > 0, parameter_name
        assert parameter.grad[0].abs().sum() == parameter.grad[2].abs().sum() == 0, parameter_name


@every_method
def test_a_nan_stays_in_its_sample(name):
    module = make(name)
    fields, ids = make_input()
    fields[2, 1, 0] = float("nan")
    fields.requires_grad_()
    out = module(fields, ids)
    bad = out.isnan().any(-1).any(0)
    assert bad.tolist() == [False, False, True, False, False]
    (grad,) = torch.autograd.grad(out[:, [0, 1, 3, 4]].square().sum(), fields)
    assert bool(grad[[0, 1, 3, 4]].isfinite().all())


@every_method
def test_empty_batch(name):
    fields, ids = make_input()
    assert make(name)(fields[:0], ids[:0]).shape == (G, 0, OUT)


@every_method
def test_copies_pickles_and_checkpoints(name):
    module = make(name)
    batch = make_input()
    other = config(name).build(SIZES, OUT, G)
    other.load_state_dict(module.state_dict())
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert torch.equal(clone(*batch), module(*batch))


@every_method
def test_bfloat16_autocast(name):
    module = make(name)
    batch = make_input()
    with torch.autocast("cpu", torch.bfloat16):
        low = module(*batch)
    high = module(*batch)
    assert (low.float() - high).norm() < 0.05 * high.norm()


@pytest.mark.parametrize("name", ["gdcn", "masknet", "fibinet", "xdeepfm", "dhen"])
def test_compiled_equals_eager(name):
    module = make(name)
    batch = make_input()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch), module(*batch))


@every_method
def test_configs_survive_a_round_trip(name):
    first = config(name)
    plain = {"name": name, **to_mapping(first)}
    assert InteractionConfig.from_value(plain, "x") == first
    assert InteractionConfig.from_value(name, "x") == INTERACTION_CONFIGS[name]()


def test_released_masknet():
    module = MaskNetConfig(preset="released").build(SIZES, 256, 2)
    assert not module.field_norm
    assert module.blocks[0].num_blocks == 2
    assert [tuple(w.shape[1:]) for w in module.mlp.weights] == [(256, 256), (256, 256)]


def test_fields_of_a_wrong_shape_are_named():
    module = make("gdcn")
    for shape in ((B, N, D + 1), (B, N + 1, D), (B, N * D)):
        with pytest.raises(ValueError, match=r"fields: expected shape \[B, 5, 4\]"):
            module(torch.zeros(shape))


def test_missing_ids_are_named():
    module = make("memonet")
    fields, ids = make_input()
    for wrong in (None, ids[:, 1:], ids.int()):
        with pytest.raises(ValueError, match=r"ids: expected an int64 tensor of shape \[5, 5\]"):
            module(fields, wrong)


@pytest.mark.parametrize(
    ("make_module", "text"),
    [
        (lambda: GatedCrossNetwork(0, 4), "num_fields: expected a positive int, found 0"),
        (lambda: GatedCrossNetwork(2, 4, num_layers=0), "num_layers: expected a positive int"),
        (lambda: GatedCrossNetwork(2, 4, structure="x"), "structure: expected serial or parallel"),
        (lambda: GatedCrossNetwork(2, 4, num_modules=0), "num_modules: expected a positive int"),
        (lambda: CrossNetworkMix(2, 4, rank=0), "rank: expected a positive int"),
        (lambda: BilinearInteraction(1, 4), "num_fields: expected at least 2, found 1"),
        (lambda: BilinearInteraction(2, 4, kind="x"), "kind: expected all, each or interaction"),
        (lambda: CompressedInteraction(2, 4, units=(3, 2), split_half=True), "units: .* even"),
        (lambda: SqueezeExcitation(2, 4, squeeze="x"), "squeeze: expected mean or max"),
        (lambda: FieldAttention(2, 4, num_heads=3), "num_heads: expected a divisor of"),
        (lambda: MaskNet(2, 4, block_units=(3, 4)), "block_units: expected equal widths"),
        (lambda: MaskNet(2, 4, reduction_ratio=0.0), "reduction_ratio: expected a positive"),
        (lambda: DHENConfig(modules=()).build(SIZES, 3), "modules: expected at least one"),
        (
            lambda: InteractionConfig.from_value(
                {"name": "dhen", "modules": ["memonet"]}, "x"
            ).build(SIZES, 3),
            "modules: expected methods that read no ids",
        ),
        (lambda: InteractionConfig.from_value("gcdn", "x"), r"x.name: expected one of .* 'gcdn'"),
        (
            lambda: InteractionConfig.from_value({"name": "gdcn", "layers": 2}, "x"),
            "x.layers: unknown key, did you mean",
        ),
    ],
)
def test_wrong_options_are_named(make_module, text):
    with pytest.raises(ValueError, match=text):
        make_module()


def test_from_mapping_reads_lists_of_methods():
    found = from_mapping(DHENConfig, {"modules": ["fm", {"name": "dcn", "num_layers": 3}]})
    assert [type(method).__name__ for method in found.modules] == ["FMConfig", "DCNConfig"]
    assert found.modules[1].num_layers == 3
