"""Small files in the raw format of Ali-CCP."""

from __future__ import annotations

from pathlib import Path

Feature = tuple[str, int, float]

USER = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
HISTORY = ("109_14", "110_14", "127_14", "150_14")
ITEM = ("205", "206", "207", "216")
CROSS = ("508", "509", "702", "853")


def key(user: int) -> str:
    return f"{user:08x}{'ab' * 4}"


def common(user: int) -> list[Feature]:
    """The features of a user; the histories of user 0 are empty."""
    features = [(field, 1000 * i + user % (3 + i), 1.0) for i, field in enumerate(USER, 1)]
    for i, field in enumerate(HISTORY, 1):
        features += [(field, 50_000 * i + j, 0.5 * (j + 1)) for j in range(user % 4)]
    return features


def own(i: int) -> list[Feature]:
    """The features of the i-th impression; two of field 210, and 853 only now and then."""
    features = [(field, 900_000 + 1000 * j + i % (4 + j), 1.0) for j, field in enumerate(ITEM)]
    features += [("210", 7000 + i % 3, 1.0), ("210", 8000 + i % 2, 1.0), ("301", 1 + i % 3, 1.0)]
    features += [(field, 40_000 + j, 0.25 * (1 + i % 2)) for j, field in enumerate(CROSS[:3])]
    return features + ([("853", 60_000, 2.5)] if i % 5 == 0 else [])


def feature_list(features: list[Feature]) -> str:
    return "\x01".join(f"{field}\x02{feature}\x03{value}" for field, feature, value in features)


def skeleton_row(i: int, user: int, click: int | None = None, purchase: int | None = None) -> str:
    click = int(i % 4 == 0) if click is None else click
    purchase = int(i % 8 == 0) if purchase is None else purchase
    features = own(i)
    return f"{i},{click},{purchase},{key(user)},{len(features)},{feature_list(features)}"


def common_row(user: int) -> str:
    features = common(user)
    return f"{key(user)},{len(features)},{feature_list(features)}"


def write_raw(folder: Path, rows: int = 60, users: int = 12) -> None:
    """Four files: ``rows`` impressions in training, half in test, all users in both."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, first, count in (("train", 0, rows), ("test", 1000, rows // 2)):
        skeleton = [skeleton_row(first + i, i % users) for i in range(count)]
        shared = [common_row(user) for user in reversed(range(users))]
        (folder / f"sample_skeleton_{part}.csv").write_text("\n".join(skeleton) + "\n")
        (folder / f"common_features_{part}.csv").write_text("\n".join(shared) + "\n")
