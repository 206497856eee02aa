"""The AliExpress and Ali-CCP columns of DTN's Table 3 (arXiv 2408.11611), with equal budgets.

What the paper does not give is chosen here: MLPs halve their width from layer to layer, MemoNet
crosses the twelve largest fields, and a budget is what a model has beside its embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mtlfast import models
from mtlfast.data import DatasetSpec
from mtlfast.training.reproduction.variants import Choices, Options, Published, Table, Variant

__all__ = ["TABLES", "dense_parameters"]

_TASKS = ("click", "conversion")
_CODEWORDS = 100_000
_CROSSED = 12
_TOWER = [128, 64]

# Options from a width and the number of fields.
Maker = Callable[[int, int], Options]


def _masknet(width: int, fields: int) -> Options:
    return {"name": "masknet", "block_units": [width], "agg_dim": width}


def _memonet(width: int, fields: int) -> Options:
    crossed = min(_CROSSED, fields)
    return {"name": "memonet", "num_codewords": _CODEWORDS, "largest_fields": crossed}


def _gdcn(width: int, fields: int) -> Options:
    return {"name": "gdcn"}


_METHODS: dict[str, Maker] = {"MaskNet": _masknet, "MemoNet": _memonet, "GDCN": _gdcn}


def _head(name: str, key: str, levels: bool = False) -> Maker:
    def make(width: int, fields: int) -> Options:
        units = [width, max(width // 2, 1)]
        return {"head": {"name": name, key: [units] if levels else units, "tower_units": _TOWER}}

    return make


def _sfm(method: Maker) -> Maker:
    head = {"name": "ple", "expert_units": [[128, 64]], "tower_units": _TOWER}
    return lambda width, fields: {
        "interactions": [method(width, fields)],
        "output_dim": width,
        "head": head,
    }


def _tfi(method: Maker) -> Maker:
    return lambda width, fields: {
        "interaction": method(width, fields),
        "modules_per_group": 1,
        "output_dim": width,
        "tower_units": _TOWER,
    }


def _dtn(width: int, fields: int) -> Options:
    return {
        "interactions": [method(width, fields) for method in _METHODS.values()],
        "output_dim": width,
        "dependencies": "parents",
        "tower_units": _TOWER,
    }


_ROWS: tuple[tuple[str, str, Maker], ...] = (
    ("ShareBottom", "mtl", _head("share_bottom", "bottom_units")),
    ("MMoE", "mtl", _head("mmoe", "expert_units")),
    ("PLE", "mtl", _head("ple", "expert_units", levels=True)),
    *((f"SFM-{name}", "sfm", _sfm(method)) for name, method in _METHODS.items()),
    *((f"TFI-{name}", "tfi", _tfi(method)) for name, method in _METHODS.items()),
    ("DTN", "dtn", _dtn),
)
_PAPER = {
    "aliexpress": {
        "ShareBottom": (0.7173, 0.8111),
        "MMoE": (0.7216, 0.8126),
        "PLE": (0.7211, 0.8144),
        "DTN": (0.7243, 0.8207),
    },
    "aliccp": {
        "ShareBottom": (0.6061, 0.6121),
        "MMoE": (0.6094, 0.6162),
        "PLE": (0.6112, 0.6183),
        "DTN": (0.6153, 0.6231),
    },
}


def dense_parameters(model: str, spec: DatasetSpec, options: Options) -> int:
    """Trained numbers of a model beside the embeddings of the fields; MemoNet's codebooks count."""
    # Tables of a few rows, in the same order of size: MemoNet chooses fields by it.
    order = sorted(range(spec.num_fields), key=lambda f: (spec.vocab_sizes[f], f))
    sizes = [0] * spec.num_fields
    for rank, f in enumerate(order):
        sizes[f] = rank + 2
    state = torch.random.get_rng_state()
    built: Any = models.build(model, replace(spec, vocab_sizes=tuple(sizes)), dict(options))
    torch.random.set_rng_state(state)
    every: int = sum(parameter.numel() for parameter in built.parameters())
    return every - int(built.embedding.weight.numel())


def _widest(
    model: str, spec: DatasetSpec, options: Callable[[int], Options], budget: int
) -> Options:
    """The options of the largest width that fits; of width 4 where none does."""

    def fits(width: int) -> bool:
        return dense_parameters(model, spec, options(width)) <= budget

    low, high = 4, 8
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return options(low)


def _variants(data: str) -> Callable[[DatasetSpec, Choices], list[Variant]]:
    def make(spec: DatasetSpec, choices: Choices) -> list[Variant]:
        def options_of(maker: Maker) -> Callable[[int], Options]:
            fields = spec.num_fields
            return lambda width: {"embed_dim": choices.embed_dim, **maker(width, fields)}

        dtn = options_of(_dtn)(choices.width)
        budget = dense_parameters("dtn", spec, dtn)
        found = []
        for name, model, maker in _ROWS:
            aucs = _PAPER[data].get(name)
            published: Published = {} if aucs is None else {_TASKS: aucs}
            options = dtn if model == "dtn" else _widest(model, spec, options_of(maker), budget)
            found.append(Variant(name, options, model, published=published))
        found.append(Variant("DTN-trim", dtn, "dtn", trimmed_from="DTN"))
        return found

    return make


TABLES = {
    table.name: table
    for table in (
        Table(f"dtn-table3-{data}", _variants(data), base="ShareBottom")
        for data in ("aliexpress", "aliccp")
    )
}
