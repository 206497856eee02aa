"""What the ablations of DTRN (CIKM 2023) compare, as options of the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlfast.data import DatasetSpec
from mtlfast.training.reproduction.variants import Choices, Options, Published, Table, Variant

__all__ = ["TABLES", "default_head"]

_HEADS = {"ShareBottom": "share_bottom", "MMoE": "mmoe", "PLE": "ple", "AITM": "aitm"}
DMT: Options = {"interests": "separate", "refinement": False}
DTRN: Options = {}

# The tasks of the paper's e-commerce log, which is not public.
ECOMMERCE = ("watch", "click", "entering", "conversion")
TENREC = ("click", "follow", "like", "share")


def default_head(spec: DatasetSpec) -> str:
    """AITM where tasks follow each other, MMoE elsewhere, as the paper has it (section 4.4)."""
    return "aitm" if _has_tree(spec) else "mmoe"


def _has_tree(spec: DatasetSpec) -> bool:
    return any(parent is not None for parent in spec.task_parents)


# BST is among the compared models, but has no row.
_TABLE4: Mapping[str, Published] = {
    name: {ECOMMERCE: commerce, TENREC: tenrec}
    for name, commerce, tenrec in (
        ("YouTubeNet", (0.7238, 0.7113, 0.8171, 0.8647), (0.9458, 0.8860, 0.9289, 0.9091)),
        ("DIN", (0.7245, 0.7087, 0.8171, 0.8636), (0.9460, 0.8863, 0.9271, 0.9032)),
        ("DIEN", (0.7257, 0.7110, 0.8173, 0.8650), (0.9466, 0.8820, 0.9308, 0.9074)),
        ("ATRANK", (0.7316, 0.7186, 0.8158, 0.8484), (0.9467, 0.8954, 0.9362, 0.9198)),
        ("DFN", (0.7318, 0.7230, 0.8232, 0.8727), (0.9504, 0.9063, 0.9489, 0.9244)),
        ("DMT (MMoE)", (0.7338, 0.7246, 0.8237, 0.8726), (0.9506, 0.9152, 0.9501, 0.9279)),
        ("PLE", (0.7340, 0.7237, 0.8231, 0.8693), (0.9508, 0.9149, 0.9504, 0.9283)),
        ("AITM", (0.7337, 0.7245, 0.8240, 0.8691), (0.9507, 0.9102, 0.9501, 0.9252)),
        ("M2M", (0.7343, 0.7245, 0.8238, 0.8674), (0.9507, 0.9128, 0.9506, 0.9289)),
        ("SmallHeads", (0.7342, 0.7246, 0.8240, 0.8673), (0.9510, 0.9150, 0.9508, 0.9274)),
        ("DTRN", (0.7346, 0.7271, 0.8283, 0.8828), (0.9516, 0.9201, 0.9519, 0.9331)),
    )
}

# LogLoss of the same rows.
_TABLE4_LOGLOSS: Mapping[str, Published] = {
    name: {ECOMMERCE: commerce, TENREC: tenrec}
    for name, commerce, tenrec in (
        (
            "YouTubeNet",
            (0.606855, 0.077608, 0.043184, 0.001475),
            (0.189366, 0.002852, 0.024425, 0.002369),
        ),
        (
            "DIN",
            (0.606214, 0.077748, 0.043144, 0.001488),
            (0.189854, 0.002897, 0.024079, 0.002375),
        ),
        (
            "DIEN",
            (0.605454, 0.077597, 0.043134, 0.001478),
            (0.188511, 0.002927, 0.023904, 0.002408),
        ),
        (
            "ATRANK",
            (0.600047, 0.077087, 0.043219, 0.001539),
            (0.188962, 0.002879, 0.023156, 0.002412),
        ),
        (
            "DFN",
            (0.600256, 0.076919, 0.042808, 0.001466),
            (0.181401, 0.002768, 0.021467, 0.002301),
        ),
        (
            "DMT (MMoE)",
            (0.598775, 0.076762, 0.042764, 0.001466),
            (0.180974, 0.002724, 0.021243, 0.002280),
        ),
        (
            "PLE",
            (0.598761, 0.076778, 0.042772, 0.001472),
            (0.180515, 0.002684, 0.021063, 0.002262),
        ),
        (
            "AITM",
            (0.598964, 0.076755, 0.042739, 0.001475),
            (0.180837, 0.002711, 0.021218, 0.002305),
        ),
        (
            "M2M",
            (0.598345, 0.076732, 0.042740, 0.001478),
            (0.180715, 0.002645, 0.021042, 0.002247),
        ),
        (
            "SmallHeads",
            (0.598699, 0.076709, 0.042726, 0.001471),
            (0.180377, 0.002660, 0.021304, 0.002252),
        ),
        (
            "DTRN",
            (0.59816, 0.076584, 0.042496, 0.001456),
            (0.179113, 0.002577, 0.020913, 0.002220),
        ),
    )
}


def _table4(spec: DatasetSpec, choices: Choices) -> list[Variant]:
    def encoder(name: str) -> Options:
        return {"encoder": {"name": name}, "head": {"name": "mmoe"}}

    def head(name: str, **options: Any) -> Options:
        return {**DMT, "head": {"name": name, **options}}

    # Tenrec has no funnel; AITM needs an order of its tasks.
    tree = {"parents": [None, 0, 0, 2]} if spec.tasks == TENREC and not _has_tree(spec) else {}
    rows: tuple[tuple[str, str, Options], ...] = (
        ("YouTubeNet", "sequence", encoder("youtubenet")),
        ("DIN", "sequence", encoder("din")),
        ("DIEN", "sequence", encoder("dien")),
        ("BST", "sequence", encoder("bst")),
        ("ATRANK", "sequence", encoder("atrank")),
        ("DFN", "sequence", encoder("dfn")),
        ("DMT (MMoE)", "dtrn", head("mmoe")),
        ("PLE", "dtrn", head("ple")),
        ("AITM", "dtrn", head("aitm", **tree)),
        ("M2M", "dtrn", head("m2m")),
        ("SmallHeads", "dtrn", head("small_heads")),
        ("DTRN", "dtrn", {**DTRN, "head": {"name": choices.head}}),
    )
    return [
        Variant(
            name,
            options,
            model,
            published=_TABLE4.get(name, {}),
            published_logloss=_TABLE4_LOGLOSS.get(name, {}),
        )
        for name, model, options in rows
    ]


def _commerce(*aucs: float | None) -> Published:
    return {ECOMMERCE: aucs}


def _table5(spec: DatasetSpec, choices: Choices) -> list[Variant]:
    head = {"head": {"name": choices.head}}
    return [
        Variant("DMT", {**DMT, **head}, published=_commerce(0.7337, 0.7245, 0.8240, 0.8691)),
        Variant(
            "DMT+TIM",
            {"refinement": False, **head},
            published=_commerce(0.7339, 0.7255, 0.8264, 0.8786),
        ),
        Variant(
            "DMT+TRM",
            {"interests": "separate", **head},
            published=_commerce(0.7339, 0.7257, 0.8266, 0.8724),
        ),
        Variant("DTRN", {**DTRN, **head}, published=_commerce(0.7346, 0.7271, 0.8283, 0.8828)),
    ]


def _table6(spec: DatasetSpec, choices: Choices) -> list[Variant]:
    dmt, *_, dtrn = _table5(spec, choices)
    rows = (
        ("QKV", "qkv", (0.7348, 0.7251, 0.8265, 0.8786)),
        ("FFN-1", "ffn1", (0.7352, 0.7266, 0.8280, 0.8707)),
        ("FFN-2", "ffn2", (0.7348, 0.7251, 0.8271, 0.8715)),
    )
    injected = [
        Variant(name, {**dtrn.options, "injection": kind}, published=_commerce(*aucs))
        for name, kind, aucs in rows
    ]
    return [dmt, *injected, Variant("LN (DTRN)", dtrn.options, published=dtrn.published)]


def _table7(spec: DatasetSpec, choices: Choices) -> list[Variant]:
    aucs = {
        "ShareBottom": ((0.7338, 0.7242, 0.8235, 0.8662), (0.7348, 0.7270, 0.8274, 0.8713)),
        "MMoE": ((0.7338, 0.7246, 0.8237, 0.8726), (0.7348, 0.7267, 0.8270, 0.8751)),
        "PLE": ((0.7340, 0.7237, 0.8231, 0.8692), (0.7348, 0.7268, 0.8273, 0.8743)),
        "AITM": ((0.7337, 0.7245, 0.8240, 0.8691), (0.7346, 0.7271, 0.8283, 0.8828)),
    }
    found = []
    for name, head in _HEADS.items():
        options = {"head": {"name": head}}
        plain, with_dtrn = (_commerce(*values) for values in aucs[name])
        found.append(Variant(name, {**DMT, **options}, published=plain))
        found.append(Variant(f"{name}+DTRN", {**DTRN, **options}, published=with_dtrn))
    return found


def _table8(spec: DatasetSpec, choices: Choices) -> list[Variant]:
    aucs: dict[str, tuple[Published, Published]] = {
        "watch": (_commerce(None, 0.7153, 0.8196, 0.8631), _commerce(None, 0.7170, 0.8221, 0.8780)),
        "click": (_commerce(0.7331, None, 0.8236, 0.8649), _commerce(0.7349, None, 0.8282, 0.8811)),
        "entering": (
            _commerce(0.7327, 0.7239, None, 0.8652),
            _commerce(0.7343, 0.7252, None, 0.8703),
        ),
        "conversion": (
            _commerce(0.7327, 0.7246, 0.8242, None),
            _commerce(0.7343, 0.7270, 0.8284, None),
        ),
    }
    dmt, *_, dtrn = _table5(spec, choices)
    found = [dmt, dtrn]  # with all tasks, to compare with
    for task in spec.tasks if spec.num_tasks > 1 else ():
        for number, variant in enumerate((dmt, dtrn)):
            published = aucs[task][number] if task in aucs else {}
            found.append(
                Variant(
                    f"{variant.name} without {task}",
                    variant.options,
                    removed=task,
                    published=published,
                )
            )
    return found


def _figure4(spec: DatasetSpec, choices: Choices) -> list[Variant]:
    head = {"head": {"name": choices.head}}
    return [
        Variant(f"{name} d={size}", {**options, **head, "embed_dim": size}, size=size)
        for size in choices.sizes
        for name, options in (("DMT", DMT), ("DTRN", DTRN))
    ]


TABLES = {
    table.name: table
    for table in (
        Table("dtrn-table4", _table4),
        Table("dtrn-table5", _table5),
        Table("dtrn-table6", _table6),
        Table("dtrn-table7", _table7),
        Table("dtrn-table8", _table8),
        Table("dtrn-fig4", _figure4),
    )
}
