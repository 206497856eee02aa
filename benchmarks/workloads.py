"""Which workload measures which stem."""

from __future__ import annotations

from .cases import Case
from .workload import Workload


def make_workload(case: Case, *, sets: int | None = None) -> Workload:
    """The workload of a case with its inputs made.

    Args:
        sets: input sets to rotate through; as many as the caches ask for when None.
    """
    # Imported here: each stem needs only its own ops and models.
    if case.stem == "conditional_interest":
        from .interest import InterestWorkload

        return InterestWorkload(case, sets=sets)
    if case.stem == "conditional_layer_norm":
        from .layer_norm import LayerNormWorkload

        return LayerNormWorkload(case, sets=sets)
    if case.stem == "dtrn_training":
        from .dtrn_training import TrainingWorkload

        return TrainingWorkload(case, sets=sets)
    if case.stem == "multi_hash_lookup":
        from .multi_hash import MultiHashWorkload

        return MultiHashWorkload(case, sets=sets)
    if case.stem == "gated_cross":
        from .gated_cross import GatedCrossWorkload

        return GatedCrossWorkload(case, sets=sets)
    if case.stem == "dtn_training":
        from .dtn_training import DTNTrainingWorkload

        return DTNTrainingWorkload(case, sets=sets)
    raise ValueError(f"stem: expected one of the stems in cases.py, found {case.stem!r}")
