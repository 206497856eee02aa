"""Multi-valued fields: pooled embeddings against a loop, gradients, whole models."""

from __future__ import annotations

import pytest
import torch

from mtlfast import models
from mtlfast.bags import FieldBags
from mtlfast.data import Batch
from mtlfast.jagged import JaggedSequences
from mtlfast.models import Sizes
from mtlfast.nn import FieldEmbedding

VOCABULARY = (7, 11, 5, 13)
MULTI = (1, 3)


def make_bags(batch: int, seed: int = 0, weighted: bool = True) -> FieldBags:
    """Up to four ids of fields 1 and 3; 0 (unknown) and empty lists among them."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (2, batch), generator=rng)
    lengths[:, 0] = 0
    ids = [
        torch.randint(0, VOCABULARY[f], (int(n),), generator=rng)
        for f, row in zip(MULTI, lengths, strict=True)
        for n in row
    ]
    values = torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64)
    weights = torch.rand(len(values), generator=rng) if weighted else None
    return FieldBags(JaggedSequences.from_lengths(values, lengths), weights)


def expected(embedding, sparse, bags):
    """One id at a time."""
    rows = []
    for i, ids in enumerate(sparse.tolist()):
        fields = [embedding.table(f)[k] for f, k in enumerate(ids)]
        for g, f in enumerate(MULTI):
            start, stop = bags.ids.offsets[g * len(sparse) + i : g * len(sparse) + i + 2].tolist()
            fields[f] = torch.zeros(embedding.embed_dim, dtype=embedding.weight.dtype)
            for n in range(start, stop):
                weight = 1.0 if bags.weights is None else float(bags.weights[n])
                fields[f] = fields[f] + weight * embedding.table(f)[int(bags.ids.values[n])]
        rows.append(torch.stack(fields))
    return torch.stack(rows)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("sparse_grad", [True, False])
def test_pooled_embeddings_and_gradients(weighted, sparse_grad):
    torch.manual_seed(0)
    embedding = FieldEmbedding(VOCABULARY, 6, multi_valued=MULTI, sparse_grad=sparse_grad).double()
    sparse = torch.stack([torch.randint(0, size, (9,)) for size in VOCABULARY], dim=1)
    bags = make_bags(9, weighted=weighted)
    found, wanted = embedding(sparse, bags), expected(embedding, sparse, bags)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * upstream).sum(), embedding.weight)
    (by_hand,) = torch.autograd.grad((wanted * upstream).sum(), embedding.weight)
    gradient = gradient.to_dense() if sparse_grad else gradient
    starts = torch.tensor([0, *VOCABULARY[:-1]]).cumsum(0)
    by_hand[starts] = 0.0  # unknown ids are never trained
    torch.testing.assert_close(gradient, by_hand, rtol=1e-12, atol=1e-12)


def test_lists_of_one_id_are_single_valued_fields():
    torch.manual_seed(1)
    embedding = FieldEmbedding(VOCABULARY, 4, multi_valued=MULTI)
    plain = FieldEmbedding(VOCABULARY, 4)
    plain.load_state_dict(embedding.state_dict())
    sparse = torch.stack([torch.randint(0, size, (5,)) for size in VOCABULARY], dim=1)
    ids = sparse[:, MULTI].t().flatten()
    bags = FieldBags(JaggedSequences.from_lengths(ids, torch.ones(2, 5, dtype=torch.int64)))
    assert torch.equal(embedding(sparse, bags), plain(sparse))
    # What `sparse` says of a multi-valued field does not count.
    other = sparse.clone()
    other[:, MULTI] = 1
    assert torch.equal(embedding(other, bags), plain(sparse))


@pytest.mark.parametrize("batch", [0, 1])
def test_no_ids_at_all(batch):
    embedding = FieldEmbedding(VOCABULARY, 4, multi_valued=MULTI)
    nothing = torch.empty(0, dtype=torch.int64)
    bags = FieldBags(
        JaggedSequences.from_lengths(nothing, torch.zeros(2, batch, dtype=torch.int64))
    )
    out = embedding(torch.ones(batch, 4, dtype=torch.int64), bags)
    assert out.shape == (batch, 4, 4)
    assert not out[:, MULTI].any()
    out.sum().backward()


@pytest.mark.parametrize(
    ("options", "bags", "message"),
    [
        ({"multi_valued": MULTI}, None, "bags: expected those of the 2 multi-valued fields"),
        ({}, make_bags(3), "bags: expected those of the 0 multi-valued fields"),
        ({"multi_valued": MULTI}, make_bags(4), "bags: expected ids .N. of 2 fields and 3 rows"),
        ({"multi_valued": (0, 2)}, make_bags(3), r"bags: expected ids in \[0, "),
        ({"multi_valued": (2, 1)}, None, "multi_valued: expected ascending fields"),
        ({"multi_valued": (4,)}, None, "multi_valued: expected ascending fields"),
    ],
)
def test_mistakes_are_explained(options, bags, message):
    with pytest.raises(ValueError, match=message):
        FieldEmbedding(VOCABULARY, 4, **options)(torch.ones(3, 4, dtype=torch.int64), bags)


@pytest.mark.parametrize("name", ["mtl", "sfm", "tfi", "dtn", "memonet"])
def test_every_model_on_fields_reads_them(name):
    torch.manual_seed(0)
    sizes = Sizes(VOCABULARY, None, (), (None, 0), multi_valued=MULTI)
    fim = {"name": "memonet", "num_codewords": 50}
    options = {
        "sfm": {"interactions": ["masknet", fim], "output_dim": 8},
        "tfi": {"output_dim": 8},
        "dtn": {"interactions": ["gdcn", fim], "output_dim": 8},
        "memonet": {"num_codewords": 50},
    }
    model = models.build(name, sizes, {"embed_dim": 4, "init_std": 1.0, **options.get(name, {})})
    sparse = torch.stack([torch.randint(1, size, (6,)) for size in VOCABULARY], dim=1)
    batch = Batch(sparse, None, torch.zeros(6, 2), bags=make_bags(6))
    logits = model(*batch.inputs())
    assert not torch.equal(
        logits, model(*Batch(sparse, None, batch.labels, bags=make_bags(6, 1)).inputs())
    )
    model.loss(logits, batch.labels).backward()
    first = sum(VOCABULARY[:3])
    used = torch.zeros(VOCABULARY[3], dtype=torch.bool)
    used[bags_of(batch.bags, 1)] = True
    used[0] = False
    gradient = model.embedding.weight.grad[first:].abs().sum(dim=1)
    assert torch.equal(gradient > 0, used)


def bags_of(bags, g):
    return bags.ids.behavior(g).values


def test_compiled_is_eager():
    embedding = FieldEmbedding(VOCABULARY, 4, multi_valued=MULTI)
    compiled = torch.compile(embedding, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 5):
        sparse, bags = torch.ones(batch, 4, dtype=torch.int64), make_bags(batch)
        torch.testing.assert_close(compiled(sparse, bags), embedding(sparse, bags))
