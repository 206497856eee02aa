"""Small files in the format of Census-Income."""

from __future__ import annotations

from mtlfast.data.census import COLUMNS, NUMERIC


def person(i: int, **changes: str) -> dict[str, str]:
    """One row with some variety; every column of names has two values."""
    row = {name: f"{name}-{i % 2}" for name in COLUMNS}
    row.update({name: str(i % 5) for name in NUMERIC})
    row["instance_weight"] = f"{1000 + i}.25"
    row["year"] = "94"
    row["marital_stat"] = "Never married" if i % 3 == 0 else "Divorced"
    row["income_50k"] = "50000+." if i % 4 == 0 else "- 50000."
    return {**row, **changes}


def text(rows: list[dict[str, str]]) -> str:
    return "".join(" " + ", ".join(row[name] for name in COLUMNS) + "\n" for row in rows)
