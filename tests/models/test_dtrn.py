"""DTRN assembled: hooks, loss, backends, checkpoints, compilation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mtlfast.jagged import JaggedSequences
from mtlfast.models import DTRN, DTRNConfig, DTRNOutput, Sizes, available, build
from mtlfast.reference import conditional_interest

SPEC = Sizes(
    vocab_sizes=(50, 100, 7),
    item_field=1,
    max_lengths=(9, 4),
    task_parents=(None, 0, 0, 2),
    positive_rates=(0.3, 0.1, 0.05, 0.01),
)
T, M, D = 4, 2, 8
HEADS = {
    "share_bottom": {"name": "share_bottom", "bottom_units": [6], "tower_units": [4]},
    "mmoe": {"name": "mmoe", "num_experts": 2, "expert_units": [6, 5], "tower_units": [4]},
    "ple": {"name": "ple", "expert_units": [[6], [5]], "tower_units": [4]},
    "aitm": {"name": "aitm", "bottom_units": [6, 5], "calibrator": 0.3},
}


def make(**options) -> DTRN:
    torch.manual_seed(0)
    options = {"embed_dim": D, "ffn_dim": 16, "head": HEADS["mmoe"], "init_std": 0.5, **options}
    return build("dtrn", SPEC, options, backend=options.pop("backend", "reference"))


def trained(model: DTRN) -> DTRN:
    """Every parameter away from its special start, the zero rows of the tables excepted."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "embedding.weight":
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def make_batch(batch: int = 12, users: int | None = None, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    num_users = batch if users is None else users
    lengths = torch.stack(
        [
            torch.randint(0, longest + 1, (num_users,), generator=generator)
            for longest in SPEC.max_lengths
        ]
    )
    tokens = torch.randint(0, 100, (int(lengths.sum()),), generator=generator)
    sparse = torch.stack(
        [torch.randint(0, size, (batch,), generator=generator) for size in SPEC.vocab_sizes], 1
    )
    user_index = None if users is None else torch.randint(0, users, (batch,), generator=generator)
    return sparse, JaggedSequences.from_lengths(tokens, lengths, max_len=9), user_index


def make_labels(batch: int = 12) -> torch.Tensor:
    return torch.rand(batch, T, generator=torch.Generator().manual_seed(5)).round()


every_head = pytest.mark.parametrize("head", HEADS)


@every_head
def test_logits_are_the_parts_put_together(head):
    model = trained(make(head=HEADS[head]))
    sparse, sequences, user_index = make_batch(users=5)
    fields, target, tokens = model.embedding(sparse, sequences)
    interest = model.tim(tokens, target, user_index=user_index)
    bottom = model.trm(fields, interest)
    expected = model.head(bottom)
    assert expected.shape == (12, T)
    assert torch.equal(model(sparse, sequences, user_index), expected)


@every_head
@pytest.mark.parametrize("refinement", [True, False])
def test_hooks(head, refinement):
    model = trained(make(head=HEADS[head], refinement=refinement))
    batch = make_batch()
    logits = model(*batch)
    full = model(*batch, return_interests=True, return_bottom=True, return_task_repr=True)
    assert isinstance(full, DTRNOutput)
    assert torch.equal(full.logits, logits)
    width = (len(SPEC.vocab_sizes) + M) * D
    assert full.interests.shape == (12, T, M, D)
    assert full.raw.shape == full.refined.shape == (12, T, width)
    fields, _, _ = model.embedding(batch[0], batch[1])
    for t in range(T):
        expected = torch.cat((fields.flatten(1), full.interests[:, t].flatten(1)), 1)
        assert torch.equal(full.raw[:, t], expected)
    gate = full.refined / full.raw
    gate = gate[full.raw.abs() > 1e-3]
    assert torch.equal(full.refined, full.raw) != refinement
    assert not refinement or bool(((gate > 0) & (gate < 1)).all())
    assert full.task_repr.shape == (12, T, model.head.repr_dim)
    for hook, names in (
        ("return_interests", {"interests"}),
        ("return_bottom", {"raw", "refined"}),
        ("return_task_repr", {"task_repr"}),
    ):
        some = model(*batch, **{hook: True})
        assert torch.equal(some.logits, logits)
        found = {name for name in DTRNOutput._fields[1:] if getattr(some, name) is not None}
        assert found == names


@every_head
@pytest.mark.parametrize("sparse_grad", [False, True])
def test_gradients_reach_every_parameter(head, sparse_grad):
    model = trained(make(head=HEADS[head], sparse_grad=sparse_grad, pos_encoding="learned"))
    model.loss(model(*make_batch()), make_labels()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.is_sparse == (sparse_grad and name == "embedding.weight")
        assert parameter.grad.abs().sum() > 0, name


def test_a_few_steps_learn_a_small_batch():
    model = make(prior_bias=False)
    batch, labels = make_batch(), make_labels()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        loss = model.loss(model(*batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(model.embedding.weight[[0, 50, 150]], torch.zeros(3, D))


def test_permuting_samples_permutes_logits():
    model = trained(make()).double()
    sparse, sequences, _ = make_batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    padded, lengths = sequences.to_padded()
    permuted = JaggedSequences.from_padded([p[order] for p in padded], lengths[:, order])
    torch.testing.assert_close(
        model(sparse[order], permuted), model(sparse, sequences)[order], rtol=1e-10, atol=1e-10
    )


def test_user_index_is_the_same_as_repeating_the_users():
    model = trained(make()).double()
    sparse, sequences, user_index = make_batch(users=5)
    padded, lengths = sequences.to_padded()
    repeated = JaggedSequences.from_padded([p[user_index] for p in padded], lengths[:, user_index])
    torch.testing.assert_close(
        model(sparse, sequences, user_index), model(sparse, repeated), rtol=1e-10, atol=1e-10
    )


def test_splitting_a_batch_gives_the_same_rows():
    model = trained(make()).double()
    sparse, sequences, _ = make_batch()
    padded, lengths = sequences.to_padded()
    parts = [
        model(
            sparse[rows],
            JaggedSequences.from_padded([p[rows] for p in padded], lengths[:, rows]),
        )
        for rows in (slice(0, 5), slice(5, 12))
    ]
    torch.testing.assert_close(torch.cat(parts), model(sparse, sequences), rtol=1e-10, atol=1e-10)


def test_the_task_tree_of_the_data_reaches_aitm():
    assert make(head=HEADS["aitm"]).head.parents == SPEC.task_parents
    own = {**HEADS["aitm"], "parents": [None, None, 1, 0]}
    assert make(head=own).head.parents == (None, None, 1, 0)


def test_prior_bias():
    rates = torch.tensor(SPEC.positive_rates)
    torch.testing.assert_close(make().head.towers.bias.sigmoid(), rates)
    assert torch.equal(make(prior_bias=False).head.towers.bias, torch.zeros(T))


def test_loss_is_the_sum_of_the_tasks_mean_cross_entropies():
    model = make()
    logits = torch.randn(12, T)
    labels = make_labels()
    p = logits.double().sigmoid()
    y = labels.double()
    each = -(y * p.log() + (1 - y) * (1 - p).log()).mean(0)
    torch.testing.assert_close(model.loss(logits, labels), each.sum().float())
    weighted = make(task_weights=[1.0, 0.0, 2.0, 0.5])
    expected = each[0] + 2 * each[2] + 0.5 * each[3]
    torch.testing.assert_close(weighted.loss(logits, labels), expected.float())
    calibrated = make(head=HEADS["aitm"])
    penalty = (p[:, [1, 2, 3]] - p[:, [0, 0, 2]]).clamp(min=0).sum(1).mean()
    torch.testing.assert_close(
        calibrated.loss(logits, labels), (each.sum() + 0.3 * penalty).float()
    )
    with pytest.raises(ValueError, match=r"labels: expected shape \[12, 4\]"):
        model.loss(logits, labels[:, :2])


def test_checkpoints_and_copies():
    model = trained(make())
    batch = make_batch()
    expected = model(*batch)
    other = make()
    assert not torch.equal(other(*batch), expected)
    other.load_state_dict(model.state_dict())
    clones = [other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        model.head.towers.bias.add_(1.0)
    for clone in clones:
        assert torch.equal(clone(*batch), expected)


def test_backends_share_checkpoints_and_agree():
    reference, auto = trained(make()), make(backend="auto")
    assert auto.tim.transformer.backend == "auto"
    auto.load_state_dict(reference.state_dict())
    batch, labels = make_batch(40), make_labels(40)
    torch.testing.assert_close(auto(*batch), reference(*batch), rtol=1e-4, atol=1e-5)
    for model in (auto, reference):
        model.loss(model(*batch), labels).backward()
    for (name, a), b in zip(auto.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)


def slow_backend(sequences, target, weights, scale, shift, *, num_heads, eps, user_index):
    return 0.0 * conditional_interest(
        sequences,
        target,
        weights,
        scale,
        shift,
        num_heads=num_heads,
        eps=eps,
        user_index=user_index,
    )


def test_a_function_can_replace_only_the_interests():
    model = trained(make(backend=slow_backend))
    out = model(*make_batch(), return_interests=True)
    assert torch.equal(out.interests, torch.zeros(12, T, M, D))


@every_head
def test_bfloat16_autocast(head):
    model = trained(make(head=HEADS[head]))
    batch, labels = make_batch(), make_labels()
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(*batch)
        loss = model.loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.1)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all())


def test_learned_positions_break_the_symmetry_of_a_sequence():
    sparse, sequences, _ = make_batch()
    one = JaggedSequences(sequences.values[:6], torch.tensor([0, 6, 6]), 2, 9)
    other = one.with_values(one.values.flip(0))
    assert not torch.equal(other.values, one.values)
    for kind, same in (("none", True), ("learned", False), ("sinusoidal", False)):
        model = trained(make(pos_encoding=kind)).double()
        assert torch.allclose(model(sparse[:1], one), model(sparse[:1], other)) == same


def test_scaled_embeddings_are_what_the_transformer_alone_reads():
    model = trained(make(scale_embeddings=True, pos_encoding="learned"))
    sparse, sequences, user_index = make_batch(users=5)
    fields, target, tokens = model.embedding(sparse, sequences)
    tokens = model.positions(tokens.with_values(D**0.5 * tokens.values))
    interest = model.tim(tokens, D**0.5 * target, user_index=user_index)
    expected = model.head(model.trm(fields, interest))
    assert torch.equal(model(sparse, sequences, user_index), expected)


def test_token_dropout_is_of_training_and_of_the_interests():
    model, plain = trained(make(token_dropout=0.5)), trained(make())
    batch = make_batch()
    assert torch.equal(model.eval()(*batch), plain(*batch))
    model.train()
    torch.manual_seed(0)
    found = model(*batch, return_interests=True, return_bottom=True)
    torch.manual_seed(0)
    fields, target, tokens = model.embedding(*batch[:2])
    target = torch.nn.functional.dropout(target, 0.5)
    tokens = tokens.with_values(torch.nn.functional.dropout(tokens.values, 0.5))
    assert torch.equal(found.interests.flatten(2), model.tim(tokens, target))
    width = fields.flatten(1).shape[1]
    assert torch.equal(found.raw[:, 0, :width], fields.flatten(1))  # what TRM reads is whole


@pytest.mark.parametrize(
    "options",
    [
        {"share_item_table": False},
        {"share_enc_dec": True},
        {"share_positions": True, "num_encoder_layers": 2},
        {"empty": "zero_interest"},
        {"hyper_dim": 3, "refinement_dim": 5, "eps": 1e-3},
        {"ffn_dim": None, "num_heads": 4},
    ],
)
def test_options_build_and_run(options):
    model = make(**options)
    assert model(*make_batch()).shape == (12, T)
    for name, value in options.items():
        assert getattr(model.config, name) == value
    layers = options.get("num_encoder_layers", 1)
    assert (model.tim.transformer.front is None) == (layers == 1)
    assert model.tim.transformer.ffn_dim == (32 if "ffn_dim" in options else 16)


def test_empty_batch():
    sparse, sequences, _ = make_batch(0)
    assert make()(sparse, sequences).shape == (0, T)


def test_compiled_equals_eager_with_gradients():
    model = trained(make(backend="auto"))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    labels = make_labels()
    for seed in (0, 1):
        batch = make_batch(seed=seed)
        found, expected = compiled(*batch), model(*batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        leaves = list(model.parameters())
        grads = torch.autograd.grad(model.loss(found, labels), leaves)
        wanted = torch.autograd.grad(model.loss(expected, labels), leaves)
        for a, b in zip(grads, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_config_round_trip():
    plain = {
        "embed_dim": 16,
        "head": {"name": "ple", "expert_units": [[8], [4]]},
        "task_weights": [1, 2, 3, 4],
        "eps": "1e-6",
    }
    config = DTRNConfig.from_dict(plain)
    assert config.head.expert_units == ((8,), (4,))
    assert config.eps == 1e-6
    assert DTRNConfig.from_dict(config.to_dict()) == config
    assert DTRNConfig.from_dict({"head": "aitm"}).head.name == "aitm"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"embed_dim": 0}, r"dtrn\.embed_dim: expected a positive int, found 0"),
        ({"embed_dim": 9}, r"dtrn\.num_heads: expected a divisor of embed_dim = 9, found 2"),
        ({"embed_dim": "8"}, r"dtrn\.embed_dim: expected int, found '8'"),
        ({"ffn_dim": -1}, r"dtrn\.ffn_dim: expected a positive int, found -1"),
        ({"eps": 0}, r"dtrn\.eps: expected a positive float, found 0"),
        ({"pos_encoding": "rotary"}, r"dtrn\.pos_encoding: expected one of .* found 'rotary'"),
        ({"token_dropout": 1.0}, r"dtrn\.token_dropout: expected a probability in \[0, 1\)"),
        (
            {"share_positions": True, "interests": "separate"},
            r"dtrn\.share_positions: expected False without conditional layer norms",
        ),
        (
            {"num_encoder_layers": 2, "injection": "qkv"},
            r"dtrn\.num_encoder_layers: expected 1 without conditional layer norms, found 2",
        ),
        ({"empty": "mean"}, r"dtrn\.empty: expected one of .* found 'mean'"),
        ({"init_std": -1.0}, r"dtrn\.init_std: expected at least 0, found -1.0"),
        ({"head": "moe"}, r"dtrn\.head\.name: expected one of"),
        ({"head": {"name": "mmoe", "num_experts": 0}}, r"dtrn\.head\.num_experts: expected"),
        ({"task_weights": [1, -1, 1, 1]}, r"dtrn\.task_weights: expected weights of at least 0"),
        ({"task_weights": [1, 1]}, "task_weights: expected 4 weights, found 2"),
        ({"embed": 8}, r"dtrn\.embed: unknown key"),
    ],
)
def test_config_errors_name_the_field(options, text):
    with pytest.raises(ValueError, match=text):
        build("dtrn", SPEC, options)


def test_direct_construction_checks_too():
    with pytest.raises(ValueError, match="head: expected a HeadConfig, found str"):
        DTRNConfig(head="mmoe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pos_encoding: expected none, learned or sinusoidal"):
        DTRNConfig(pos_encoding="rotary")  # type: ignore[arg-type]


def test_registry():
    entries = available()
    assert {"dtrn", "dtn", "tfi", "sfm", "mtl"} <= set(entries)
    for name, entry in entries.items():
        assert entry.name == name
        assert entry.description
        assert "\n" not in entry.description
        assert entry.paper
        assert isinstance(build(name, SPEC), entry.model_class)
        assert isinstance(build(name, SPEC, entry.config_class()), entry.model_class)
    with pytest.raises(ValueError, match=r"name: expected one of \['dtrn', .*\], found 'din'"):
        build("din", SPEC)
    with pytest.raises(ValueError, match="config: expected a DTRNConfig or a mapping, found int"):
        build("dtrn", SPEC, 3)


def test_the_data_sets_spec_fits():
    from mtlfast.data import DatasetSpec

    spec = DatasetSpec(
        name="x",
        fields=("user", "item", "place"),
        vocab_sizes=SPEC.vocab_sizes,
        item_field=1,
        behaviors=("click", "like"),
        max_lengths=SPEC.max_lengths,
        tasks=("a", "b", "c", "d"),
        task_parents=SPEC.task_parents,
        positive_rates=SPEC.positive_rates,
    )
    options = {"embed_dim": D, "ffn_dim": 16, "head": HEADS["mmoe"], "init_std": 0.5}
    torch.manual_seed(0)
    model = build("dtrn", spec, options, backend="reference")
    assert torch.equal(model(*make_batch()), make()(*make_batch()))


def test_sizes_are_checked():
    for sizes in (Sizes((3,), 0, (), (None,)), Sizes((3,), None, (4,), (None,))):
        with pytest.raises(ValueError, match="spec: expected data with an item field and"):
            DTRN(sizes)
    with pytest.raises(ValueError, match="task_parents: expected at least one task"):
        Sizes((3,), 0, (4,), ())
