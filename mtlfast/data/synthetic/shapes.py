"""Published sizes of the two data sets of DTRN (CIKM 2023), Tables 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ECOMMERCE", "TENREC", "Shape"]


@dataclass(frozen=True)
class Shape:
    """What a generated data set has in common with a published one.

    Attributes:
        behaviors: names of the M behavior sequences.
        likes: for each behavior, whether it shows taste (True) or distaste (False).
        continuation: q of each behavior; a length L has P(L >= k) = q^k up to its maximum, and
            the mean q (1 - q^Lmax) / (1 - q) is the published average.
        max_lengths: Lmax of each behavior.
        tasks, task_parents, positive_rates: as in ``DatasetSpec``; a task is positive only where
            its parent is.
        num_users, num_items: default vocabulary sizes without the row for unknown ids.
        num_fields, max_fields: default and largest number of sparse fields.
    """

    name: str
    behaviors: tuple[str, ...]
    likes: tuple[bool, ...]
    continuation: tuple[float, ...]
    max_lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    task_parents: tuple[int | None, ...]
    positive_rates: tuple[float, ...]
    num_users: int
    num_items: int
    num_fields: int
    max_fields: int


def _rates(samples: int, *positives: int) -> tuple[float, ...]:
    return tuple(count / samples for count in positives)


# The paper trains Tenrec with MMoE and states no funnel, so its tasks are siblings; they are
# correlated through the shared part of their scores.
TENREC = Shape(
    name="synthetic:tenrec",
    behaviors=("click", "follow", "like", "share", "negative"),
    likes=(True, True, True, True, False),
    continuation=(0.922022, 0.107143, 0.465241, 0.173554, 0.908085),
    max_lengths=(50, 10, 20, 10, 50),
    tasks=("click", "follow", "like", "share"),
    task_parents=(None, None, None, None),
    positive_rates=_rates(117_551_246, 28_358_705, 176_496, 2_227_004, 243_310),
    num_users=993_554,
    num_items=821_744,
    num_fields=5,
    max_fields=5,
)

# 59,677,310 users would need a 7.6 GB table at d = 32; one million are the default.
ECOMMERCE = Shape(
    name="synthetic:ecommerce",
    behaviors=("watch", "non_watch", "click", "non_click", "entering"),
    likes=(True, False, True, False, True),
    continuation=(0.909653, 0.880276, 0.393939, 0.947970, 0.958568),
    max_lengths=(50, 50, 50, 50, 100),
    tasks=("watch", "click", "entering", "conversion"),
    task_parents=(None, 0, 0, 2),
    positive_rates=_rates(376_197_451, 218_732_912, 5_648_867, 2_747_893, 45_972),
    num_users=1_000_000,
    num_items=41_343,
    num_fields=6,
    max_fields=116,
)
