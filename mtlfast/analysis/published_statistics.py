"""What is published of the papers' data sets: sizes, positives, mean lengths, occurrences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PUBLISHED", "PublishedStatistics"]


@dataclass(frozen=True)
class PublishedStatistics:
    """Numbers of one data set; what is not published is missing.

    Attributes:
        origin: who published them, and where.
        samples: of "train", "test" and "all".
        features: the number of fields.
        users, items: distinct ones.
        positives: of each task, over all samples.
        mean_lengths: of each sequence, over all samples.
        occurrences: of each sequence, of the target's category, mean over the positives of each
            task.
    """

    origin: str
    samples: Mapping[str, int] = field(default_factory=dict)
    features: int | None = None
    users: int | None = None
    items: int | None = None
    positives: Mapping[str, int] = field(default_factory=dict)
    mean_lengths: Mapping[str, float] = field(default_factory=dict)
    occurrences: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def positive_rate(self, task: str) -> float | None:
        """The share of a task's positives among all samples."""
        positives, samples = self.positives.get(task), self.samples.get("all")
        return None if positives is None or samples is None else positives / samples


def _per_task(*means: float) -> dict[str, float]:
    return dict(zip(("watch", "click", "entering", "conversion"), means, strict=True))


_TENREC = PublishedStatistics(
    "DTRN (CIKM 2023), Table 3",
    samples={"all": 117_551_246},
    features=16,
    users=993_554,
    items=821_744,
    positives={"click": 28_358_705, "follow": 176_496, "like": 2_227_004, "share": 243_310},
    mean_lengths={"click": 11.62, "follow": 0.12, "like": 0.87, "share": 0.21, "negative": 9.8},
)
_ECOMMERCE = PublishedStatistics(
    "DTRN (CIKM 2023), Tables 1 and 2",
    samples={"all": 376_197_451},
    features=116,
    users=59_677_310,
    items=41_343,
    positives={
        "watch": 218_732_912,
        "click": 5_648_867,
        "entering": 2_747_893,
        "conversion": 45_972,
    },
    mean_lengths={
        "watch": 9.98,
        "non_watch": 7.34,
        "click": 0.65,
        "non_click": 16.96,
        "entering": 22.80,
    },
    occurrences={
        "watch": _per_task(1.24, 1.01, 0.83, 0.69),
        "non_watch": _per_task(0.60, 0.70, 0.61, 0.42),
        "click": _per_task(0.07, 0.13, 0.09, 0.07),
        "non_click": _per_task(1.76, 1.49, 1.30, 1.06),
        "entering": _per_task(1.56, 2.00, 2.57, 1.30),
    },
)

# By the name of the data; the generated sets stand beside those that they are shaped after.
PUBLISHED: Mapping[str, PublishedStatistics] = {
    "tenrec": _TENREC,
    "synthetic:tenrec": _TENREC,
    "synthetic:ecommerce": _ECOMMERCE,
    "aliexpress": PublishedStatistics(
        "DTN (arXiv 2408.11611), which names no country",
        samples={"train": 22_326_719, "test": 9_342_708, "all": 31_669_427},
    ),
    "census": PublishedStatistics(
        "DTN (arXiv 2408.11611) and the publisher's files",
        samples={"train": 199_523, "test": 99_762, "all": 299_285},
        features=40,
    ),
    "aliccp": PublishedStatistics(
        "the publisher's files",
        samples={"train": 42_300_135, "test": 43_016_840, "all": 85_316_975},
    ),
}
