"""MTL, SFM and TFI: against their parts, the loss, configs, wrong input."""

from __future__ import annotations

import pytest
import torch

from mtlfast.data import Batch
from mtlfast.jagged import JaggedSequences
from mtlfast.models import Sizes, available, build

T, D, OUT, B = 3, 4, 5, 8
SPEC = Sizes((9, 30, 7), None, (), (None, 0, 1), (0.3, 0.1, 0.05))
HEADS = ("single_task", "share_bottom", "mmoe", "ple", "aitm", "esmm")
SMALL = {
    "mtl": {"embed_dim": D},
    "sfm": {
        "embed_dim": D,
        "output_dim": OUT,
        "interactions": ["gdcn", {"name": "memonet", "num_codewords": 40}],
    },
    "memonet": {"embed_dim": D, "num_codewords": 40},
    "tfi": {"embed_dim": D, "output_dim": OUT, "interaction": "gdcn", "modules_per_group": 2},
    "dtn": {
        "embed_dim": D,
        "output_dim": OUT,
        "interactions": ["gdcn", {"name": "memonet", "num_codewords": 40}],
    },
}


def make(name, **options):
    torch.manual_seed(0)
    options = {**SMALL[name], "init_std": 0.5, **options}
    return build(name, SPEC, options).double()


def make_ids(batch: int = B):
    generator = torch.Generator().manual_seed(1)
    columns = [torch.randint(0, n, (batch,), generator=generator) for n in SPEC.vocab_sizes]
    return torch.stack(columns, dim=1)


every_model = pytest.mark.parametrize("name", SMALL)


def test_all_are_registered():
    assert {"dtrn", *SMALL} <= set(available())


@pytest.mark.parametrize("head", HEADS)
def test_mtl_is_a_head_on_the_fields(head):
    model, ids = make("mtl", head=head), make_ids()
    fields = torch.stack([model.embedding.table(f)[ids[:, f]] for f in range(3)], dim=1)
    torch.testing.assert_close(model(ids), model.head(fields.flatten(1)))
    assert model(ids).shape == (B, T)


@pytest.mark.parametrize("head", HEADS)
def test_sfm_is_a_head_on_the_interactions(head):
    model, ids = make("sfm", head=head), make_ids()
    fields = model.embedding(ids)
    z = torch.cat([method(fields, ids) for method in model.interactions], dim=1)
    assert z.shape == (B, 2 * OUT)
    torch.testing.assert_close(model(ids), model.head(z))


@pytest.mark.parametrize(
    "method", ["gdcn", "masknet", "fm", {"name": "memonet", "num_codewords": 9}]
)
def test_tfi_is_cgc_over_interactions(method):
    model, ids = make("tfi", interaction=method), make_ids()
    fields = model.embedding(ids)
    outputs = model.interaction(fields, ids)  # two modules per group, the shared group last
    x = fields.flatten(1)
    towers = []
    for t in range(T):
        candidates = torch.stack([outputs[2 * t], outputs[2 * t + 1], outputs[-2], outputs[-1]])
        gate = torch.softmax(x @ model.gate_weight[t].T + model.gate_bias[t], dim=-1)
        towers.append(torch.einsum("be,ebd->bd", gate, candidates))
    torch.testing.assert_close(model(ids), model.towers(torch.stack(towers)))


@every_model
def test_a_batch_with_histories_is_read_without_them(name):
    model, ids = make(name), make_ids()
    sequences = JaggedSequences.from_lengths(
        torch.ones(3, dtype=torch.int64), torch.tensor([[3] + [0] * (B - 1)])
    )
    labels = torch.zeros(B, T)
    batch = Batch(ids, sequences, labels)
    out = model(batch.sparse, batch.sequences, batch.user_index)
    assert torch.equal(out, model(ids))
    without = Batch(ids, None, labels).to("cpu")
    assert without.sequences is None
    assert torch.equal(model(without.sparse, without.sequences, None), out)


@every_model
def test_gradients_reach_every_parameter(name):
    model = make(name)
    labels = torch.rand(B, T, generator=torch.Generator().manual_seed(2)).round()
    model.loss(model(make_ids()), labels).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@every_model
def test_loss_weighs_tasks_and_positive_samples(name):
    model = make(name, task_weights=[1.0, 0.5, 0.0], positive_weights=[1.0, 200.0, 3.0])
    logits, labels = model(make_ids()), torch.zeros(B, T, dtype=torch.float64)
    labels[::2, :2] = 1
    p = logits.sigmoid()
    expected = 0.0
    for task, weight, positive in ((0, 1.0, 1.0), (1, 0.5, 200.0)):
        y = labels[:, task]
        terms = positive * y * p[:, task].log() + (1 - y) * (1 - p[:, task]).log()
        expected = expected - weight * terms.mean()
    torch.testing.assert_close(model.loss(logits, labels).double(), expected)


def test_the_heads_own_loss_is_added():
    model = make("mtl", head={"name": "aitm", "calibrator": 0.5}, prior_bias=False)
    logits, labels = model(make_ids()), torch.zeros(B, T, dtype=torch.float64)
    plain = make("mtl", head="aitm").loss(logits, labels)
    difference = model.loss(logits, labels) - plain
    torch.testing.assert_close(difference, model.head.extra_loss(logits))
    assert difference > 0


@every_model
def test_outputs_start_at_the_rates(name):
    model = make(name, init_std=0.0)
    expected = torch.tensor(SPEC.positive_rates, dtype=torch.float64).expand(B, T)
    with torch.no_grad():
        head = getattr(model, "head", model)
        head.towers.weight.zero_()
    torch.testing.assert_close(model(make_ids()).sigmoid(), expected, rtol=1e-6, atol=0)


@every_model
def test_configs_survive_a_round_trip(name):
    config = make(name).config
    again = type(config).from_dict(config.to_dict())
    assert again == config


@every_model
def test_wrong_ids_are_named(name):
    ids = make_ids()
    ids[3, 1] = 30
    with pytest.raises(ValueError, match=r"sparse: expected ids in \[0, 30\) in field 1"):
        make(name)(ids)
    with pytest.raises(ValueError, match=r"sparse: expected shape \[B, 3\]"):
        make(name)(ids[:, :2])


@pytest.mark.parametrize("name", ["mtl", "dtn", "tfi"])
def test_tasks_may_learn_from_the_positives_of_the_task_before(name):
    model, ids = make(name, train_after_parent=True, task_weights=[1.0, 2.0, 3.0]), make_ids()
    labels = torch.tensor(
        [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]
    ).double()
    logits = model(ids).detach().requires_grad_()
    loss = model.loss(logits, labels)
    expected = torch.zeros(())
    for t, weight in enumerate((1.0, 2.0, 3.0)):
        rows = range(B) if t == 0 else [i for i in range(B) if labels[i, t - 1] == 1]
        terms = []
        for i in rows:
            p = torch.sigmoid(logits[i, t])
            terms.append(-torch.log(p if labels[i, t] else 1 - p))
        expected = expected + weight * sum(terms) / len(terms)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.equal(grad != 0, torch.cat((torch.ones(B, 1), labels[:, :2]), dim=1) != 0)
    # The start is at the rates of the samples that count: 0.3, 0.1 / 0.3, 0.05 / 0.1.
    towers = model.head.towers if name == "mtl" else model.towers
    rates = torch.tensor([0.3, 1 / 3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(towers.bias.sigmoid(), rates, rtol=1e-6, atol=1e-6)
    # Nobody came so far: no loss and no NaN.
    nobody = model.loss(logits, torch.zeros(B, T).double())
    torch.testing.assert_close(nobody, torch.nn.functional.softplus(logits[:, 0]).mean())


@pytest.mark.parametrize("head", ["esmm", "small_heads"])
def test_heads_of_all_samples_refuse_to_learn_from_some(head):
    with pytest.raises(ValueError, match="train_after_parent: expected False with the head"):
        make("mtl", head=head, train_after_parent=True)
