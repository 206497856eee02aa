"""DTN against its formula, one task, module and sample at a time; its variants; trimming."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mtlfast.models import DTN, DTNConfig, Sizes, build, gate_usage, trim

T, D, OUT, B = 3, 4, 5, 6
SPEC = Sizes(
    vocab_sizes=(9, 30, 7, 12),
    item_field=None,
    max_lengths=(),
    task_parents=(None, 0, 1),
    positive_rates=(0.3, 0.1, 0.05),
)
SHARED = T
METHODS = (
    {"name": "masknet", "block_units": [7], "agg_dim": 6},
    {"name": "memonet", "num_codewords": 40},
    {"name": "gdcn"},
)


def make(spec=SPEC, **options) -> DTN:
    torch.manual_seed(0)
    options = {
        "embed_dim": D,
        "output_dim": OUT,
        "interactions": METHODS,
        "tower_units": [6],
        "init_std": 0.5,
        "prior_bias": False,
        **options,
    }
    model = build("dtn", spec, options).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "embedding.weight":
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def make_ids(batch: int = B, spec=SPEC, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, n, (batch,), generator=generator) for n in spec.vocab_sizes]
    return torch.stack(columns, dim=1)


def tower(model, task, x):
    hidden = model.towers.hidden
    for weight, bias in zip(hidden.weights, hidden.biases, strict=True):
        x = torch.relu(weight[task] @ x + bias[task])
    return model.towers.weight[task, 0] @ x + model.towers.bias[task]


def gate(model, task, places, x, vectors):
    """Softmax weights over candidates; ``vectors`` are their (scaled) outputs."""
    scores = []
    for place, vector in zip(places, vectors, strict=True):
        weight, bias = model.gates.weight[task, place], model.gates.bias[task, place]
        if model.config.gate == "paper":
            scores.append(weight @ x + bias)
        else:
            scores.append(torch.relu(weight @ vector + bias))
    return torch.softmax(torch.stack(scores), 0)


def formula(model, ids, ancestors):
    """Logits and, per task, the weights of the two gates by place."""
    tasks = len(ancestors)
    fields = model.embedding(ids)
    outputs = torch.cat([method(fields, ids) for method in model.interactions])  # [n, B, D_o]
    all_logits, all_gates = [], []
    for sample in range(len(ids)):
        x = fields[sample].flatten()
        logits, gates = {}, {}
        for task in sorted(range(tasks), key=lambda t: len(ancestors[t])):
            own, other = [], []
            own_places, other_places = [], []
            for place, key in enumerate(model.module_keys):
                vector = outputs[place, sample]
                if key.group == task:
                    own.append(vector)
                    own_places.append(place)
                    continue
                if key.group in ancestors[task]:
                    probability = torch.sigmoid(logits[key.group])
                    if model.config.tsn_stop_grad:
                        probability = probability.detach()
                    vector = probability * vector
                other.append(vector)
                other_places.append(place)
            parts, weights = [], torch.zeros(2, len(model.module_keys), dtype=x.dtype)
            for row, places, vectors in ((0, other_places, other), (1, own_places, own)):
                if not places:
                    parts.append(torch.zeros(OUT, dtype=x.dtype))
                    continue
                share = gate(model, task, places, x, vectors)
                weights[row, places] = share.detach()
                parts.append(sum(a * v for a, v in zip(share, vectors, strict=True)))
            combined = torch.cat(parts) if model.config.combine == "concat" else sum(parts)
            logits[task] = tower(model, task, combined)
            gates[task] = weights
        all_logits.append(torch.stack([logits[t] for t in range(tasks)]))
        all_gates.append(torch.stack([gates[t] for t in range(tasks)]))
    return torch.stack(all_logits), torch.stack(all_gates)


CHAIN = [set(), {0}, {0, 1}]
VARIANTS = {
    "paper": ({}, CHAIN),
    "released": ({"gate": "released", "combine": "sum"}, CHAIN),
    "gradients_through_probabilities": ({"tsn_stop_grad": False}, CHAIN),
    "released_with_gradients": ({"gate": "released", "tsn_stop_grad": False}, CHAIN),
    "no_dependencies": ({"dependencies": "none"}, [set(), set(), set()]),
    "no_dependencies_sum": ({"dependencies": "none", "combine": "sum"}, [set(), set(), set()]),
    "a_graph_against_the_order": ({"dependencies": "0:2,1:2"}, [{2}, {2}, set()]),
    "two_modules_each": ({"modules_per_group": 2, "interactions": METHODS[:2]}, CHAIN),
    "one_method": ({"interactions": METHODS[2:]}, CHAIN),
    "trimmed": ({"removed": [[0, 1, 0], [2, SHARED, 0]]}, CHAIN),
    "a_group_without_modules": ({"removed": [[0, 0, 0], [1, 0, 0], [2, 0, 0]]}, CHAIN),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_gates_and_gradients_are_those_of_the_formula(name):
    options, ancestors = VARIANTS[name]
    model, ids = make(**options), make_ids()
    expected, gates = formula(model, ids, ancestors)
    out = model(ids, return_gates=True)
    torch.testing.assert_close(out.logits, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(out.gates, gates, rtol=1e-9, atol=1e-10)
    assert torch.equal(model(ids), out.logits)
    weight = torch.randn_like(expected)
    parameters = list(model.parameters())
    grads = torch.autograd.grad((model(ids) * weight).sum(), parameters, allow_unused=True)
    truth = torch.autograd.grad((expected * weight).sum(), parameters, allow_unused=True)
    for (label, _), a, b in zip(model.named_parameters(), grads, truth, strict=True):
        zero = torch.zeros(())
        a, b = (zero if g is None else g for g in (a, b))
        torch.testing.assert_close(a + 0 * b, b + 0 * a, rtol=1e-7, atol=1e-9, msg=label)


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_any_number_of_tasks(tasks):
    spec = Sizes(SPEC.vocab_sizes, None, (), (None,) * tasks)
    model, ids = make(spec), make_ids()
    expected, gates = formula(model, ids, [set(range(t)) for t in range(tasks)])
    out = model(ids, return_gates=True, return_modules=True)
    torch.testing.assert_close(out.logits, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(out.gates, gates, rtol=1e-9, atol=1e-10)
    assert [tuple(m.shape) for m in out.modules] == [(tasks + 1, B, OUT)] * 3
    assert len(model.module_names()) == 3 * (tasks + 1)


def test_names_of_modules():
    names = make(removed=[[1, 0, 0]]).module_names()
    assert names[:4] == [
        "masknet/task0/0",
        "masknet/task1/0",
        "masknet/task2/0",
        "masknet/shared/0",
    ]
    assert names[4] == "memonet/task1/0"
    assert len(names) == 11


def test_no_gradient_reaches_the_tower_of_an_ancestor():
    for stop in (True, False):
        model = make(tsn_stop_grad=stop)
        model(make_ids())[:, 2].sum().backward()
        through = model.towers.weight.grad[:2].abs().sum()
        assert (through == 0) == stop


def test_with_probability_one_the_scaled_network_is_the_plain_one():
    model = make()
    with torch.no_grad():
        model.towers.bias[:2] = 1e4
    plain = make(dependencies="none")
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(make_ids()), plain(make_ids()))


def test_equal_modules_give_the_same_vector_twice():
    model = make(interactions=METHODS[2:], dependencies="none")
    with torch.no_grad():
        for parameter in model.interactions.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    ids = make_ids()
    vector = model(ids, return_modules=True).modules[0][0]
    expected = torch.stack(
        [torch.stack([tower(model, t, torch.cat((v, v))) for t in range(T)]) for v in vector]
    )
    torch.testing.assert_close(model(ids), expected)


@pytest.mark.parametrize("options", [{}, {"gate": "released", "combine": "sum"}])
def test_gradients_reach_every_parameter(options):
    model = make(**options)
    model.gates.bias.data.add_(3.0)  # no ReLU of a released gate is closed
    labels = torch.rand(B, T, generator=torch.Generator().manual_seed(3)).round()
    model.loss(model(make_ids()), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_few_steps_learn_a_small_batch():
    model, ids = make(interactions=[METHODS[0], METHODS[2]]).float(), make_ids(12)
    labels = torch.rand(12, T, generator=torch.Generator().manual_seed(3)).round()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model.loss(model(ids), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_nan_stays_in_its_sample():
    model, ids = make(), make_ids()
    ids[2] = torch.tensor([8, 29, 6, 11])
    others = [i for i in range(B) if i != 2]
    ids[others] = ids[others].clamp(max=5)
    with torch.no_grad():
        model.embedding.table(1)[29] = float("nan")
    logits = model(ids)
    assert logits.isnan().all(1).tolist() == [i == 2 for i in range(B)]
    assert not logits[others].isnan().any()
    logits[others].sum().backward()
    for field, size in enumerate(SPEC.vocab_sizes):
        first = sum(SPEC.vocab_sizes[:field])
        grad = model.embedding.weight.grad[first : first + size - 1]
        assert bool(grad.isfinite().all())
        assert grad.abs().sum() > 0


def test_compiled_equals_eager():
    model, ids = make().float(), make_ids()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), model(ids))


def test_empty_batch():
    assert make()(make_ids(0)).shape == (0, T)


@pytest.mark.parametrize("name", ["paper", "released", "trimmed"])
def test_copies_pickles_and_checkpoints(name):
    options, _ = VARIANTS[name]
    model, ids = make(**options), make_ids()
    again = DTN(SPEC, DTNConfig.from_dict(model.config.to_dict())).double()
    again.load_state_dict(model.state_dict())
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
        assert torch.equal(clone(ids), model(ids))


def test_gate_usage_is_the_mean_over_all_samples():
    model, ids = make(), make_ids(10)
    usage = gate_usage(model.train(), [ids[:7], ids[7:]])
    torch.testing.assert_close(usage, model(ids, return_gates=True).gates.mean(0))
    assert model.training
    own = usage[:, 1].sum(-1)
    torch.testing.assert_close(own, torch.ones_like(own))
    with pytest.raises(ValueError, match="batches: expected at least one sample"):
        gate_usage(model, [])


def test_trim_of_nothing_is_identical():
    model, ids = make(), make_ids()
    assert torch.equal(trim(model, 0)(ids), model(ids))


def test_trim_removes_the_least_used_module_with_its_weights():
    model, ids = make(), make_ids(50)
    usage = gate_usage(model, [ids]).sum((0, 1))
    trimmed = trim(model, 2, batches=[ids])
    gone = usage.argsort()[:2].tolist()
    expected = [key for i, key in enumerate(model.module_keys) if i not in gone]
    assert list(trimmed.module_keys) == expected
    assert len(model.module_keys) == 12  # the model itself is as it was
    assert {tuple(key) for key in trimmed.config.removed} == {
        tuple(model.module_keys[i]) for i in gone
    }

    # The same as never having had the modules: the gates' softmax runs over the others.
    truth, _ = formula(trimmed, ids[:4], CHAIN)
    torch.testing.assert_close(trimmed(ids[:4]), truth, rtol=1e-9, atol=1e-10)
    fresh = make(removed=[list(key) for key in trimmed.config.removed])
    fresh.load_state_dict(trimmed.state_dict())
    assert torch.equal(fresh(ids), trimmed(ids))

    # What stays keeps its values: each remaining module computes what it did.
    before = torch.cat(model(ids, return_modules=True).modules)
    after = torch.cat(trimmed(ids, return_modules=True).modules)
    kept = [i for i in range(12) if i not in gone]
    torch.testing.assert_close(after, before[kept], rtol=1e-12, atol=1e-12)
    size = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in trimmed.parameters()) < size
    trimmed(ids).sum().backward()  # it can be trained further

    again = trim(trimmed, 1, batches=[ids])
    assert len(again.module_keys) == 9


def test_trim_by_given_scores_down_to_one_module():
    model = make(dependencies="none")
    scores = torch.arange(12.0)
    trimmed = trim(model, 11, score=scores)
    assert trimmed.module_names() == ["gdcn/shared/0"]
    assert len(trimmed.interactions) == 1
    expected, _ = formula(trimmed, make_ids(), [set()] * 3)
    torch.testing.assert_close(trimmed(make_ids()), expected)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n": 12}, "n: expected 0 to 11 of 12 modules, found 12"),
        ({"n": -1}, "n: expected 0 to 11"),
        ({"n": 1}, "batches: expected samples to measure the gates on"),
        ({"n": 1, "score": "x"}, "score: expected mean_gate or a tensor"),
        ({"n": 1, "score": torch.zeros(3)}, "score: expected 12 numbers"),
    ],
)
def test_wrong_arguments_of_trim_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        trim(make(), **arguments)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dependencies": "0:1,1:2,2:0"}, "dependencies: expected no cycle"),
        ({"dependencies": "1:1"}, "dependencies: expected no cycle"),
        ({"dependencies": "3:0"}, "dependencies: expected tasks among"),
        ({"dependencies": "cvr"}, "dependencies: expected earlier, parents, none, or pairs"),
        ({"removed": [[0, 0, 1]]}, "removed: expected modules of this model"),
        ({"gate": "x"}, "dtn.gate: expected one of"),
        ({"combine": "x"}, "dtn.combine: expected one of"),
        ({"interactions": []}, "interactions: expected at least one method"),
        ({"interactions": ["gcdn"]}, r"dtn.interactions\[0\].name: expected one of"),
        ({"output_dim": 0}, "output_dim: expected a positive int"),
        ({"task_weights": [1.0]}, "task_weights: expected 3 weights, found 1"),
        ({"positive_weights": [1, -1, 1]}, "positive_weights: expected weights of at least 0"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        make(**options)


def test_dependencies_by_name():
    from mtlfast.models.task_graph import parse_dependencies, task_order

    names = ("ctr", "atc", "cvr")
    found = parse_dependencies("cvr:atc,atc:ctr", 3, (None,) * 3, names)
    assert found == (frozenset(), frozenset({0}), frozenset({0, 1}))
    assert parse_dependencies("parents", 3, (None, 0, 1)) == found
    assert parse_dependencies({2: [1], 1: [0]}, 3, (None,) * 3) == found
    assert parse_dependencies("earlier", 3, (None,) * 3) == found
    assert task_order((frozenset({1, 2}), frozenset({2}), frozenset())) == [2, 1, 0]


def test_released_set_up():
    config = DTNConfig.released(tower_units=(128, 64))
    assert (config.gate, config.combine, config.output_dim) == ("released", "sum", 256)
    assert config.interactions[1].shrinking == "none"
    assert DTNConfig.released(embed_dim=8).embed_dim == 8
