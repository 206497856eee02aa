"""Data sources by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtlfast.data.aliccp_source import AliCCPSource
from mtlfast.data.aliexpress_source import AliExpressSource
from mtlfast.data.census_source import CensusSource
from mtlfast.data.event_log import read_event_log
from mtlfast.data.event_log_source import EventLogConfig, EventLogSource
from mtlfast.data.progress import MakeProgress, no_progress
from mtlfast.data.source import DataSource
from mtlfast.data.synthetic import ECOMMERCE, TENREC, Shape, SyntheticSource
from mtlfast.data.tenrec_source import TenrecSource
from mtlfast.data.without_tasks import WithoutTasks

__all__ = ["SOURCES", "open_source"]

_DESKDROP_CUT = 1_483_228_800  # 2017-01-01 00:00 UTC
_DATA_FOLDER = "MTLFAST_DATA"
_NOT_OPTIONS = ("path", "progress")

# What `open_source` understands, with a line of help each.
SOURCES = {
    "synthetic:tenrec": "generated, shaped like Tenrec QK-Video-1M: 4 tasks, 5 behaviors, 5 fields",
    "synthetic:ecommerce": "generated, shaped like an e-commerce log: 4 tasks in a funnel, "
    "5 behaviors",
    "tenrec:PATH": "ctr_data_1M.csv or QK-video.csv of Tenrec, or their folder; 4 tasks, 5 "
    "behaviors, 5 fields; without PATH $MTLFAST_DATA/tenrec",
    "deskdrop:PATH": "parquet event log (file or folder); without PATH $MTLFAST_DATA/deskdrop",
    "census:PATH": "folder with the files of Census-Income (KDD), raw or parquet; 2 tasks, 39 "
    "fields; without PATH $MTLFAST_DATA/census-income-kdd",
    "aliexpress:PATH": "folder with the files of one country of AliExpress' search log, raw or "
    "processed; 2 tasks, 79 fields; without PATH $MTLFAST_DATA/aliexpress",
    "aliccp:PATH": "folder with the files of Ali-CCP, raw or processed; 2 tasks, 18 to 31 fields; "
    "without PATH $MTLFAST_DATA/aliccp",
}

# Published files, each with its class and the name of its folder below $MTLFAST_DATA.
_TABLES: dict[str, tuple[Callable[..., DataSource], str]] = {
    "census": (CensusSource, "census-income-kdd"),
    "aliexpress": (AliExpressSource, "aliexpress"),
    "aliccp": (AliCCPSource, "aliccp"),
    "tenrec": (TenrecSource, "tenrec"),
}


def open_source(name: str, *, progress: MakeProgress = no_progress, **options: Any) -> DataSource:
    """Open a data set.

    Args:
        name: one of :data:`SOURCES`.
        progress: shows how far work of more than seconds is.
        options: for the synthetic ones see ``SyntheticSource``; for event logs those of
            ``EventLogConfig``, ``seed``, and ``on_error`` of ``read_event_log``; for others see
            ``CensusSource``, ``AliExpressSource``, ``AliCCPSource``, ``TenrecSource``. With each of
            them ``without_tasks``, names of tasks to leave out, see ``WithoutTasks``.

    Raises:
        ValueError: for an unknown name or option (saying which exist), or for bad data.
    """
    left_out = options.pop("without_tasks", ())
    if left_out:
        source = open_source(name, progress=progress, **options)
        return WithoutTasks(source, [left_out] if isinstance(left_out, str) else left_out)
    kind, _, rest = name.partition(":")
    if name == TENREC.name:
        return _synthetic(TENREC, options)
    if name == ECOMMERCE.name:
        return _synthetic(ECOMMERCE, options)
    if kind == "deskdrop":
        return _deskdrop(rest, options)
    if kind in _TABLES:
        target, folder = _TABLES[kind]
        known_options = _keywords(target)
        _check_options(options, [name for name in known_options if name not in _NOT_OPTIONS])
        if "progress" in known_options:
            options["progress"] = progress
        return target(_folder(rest, kind, folder), **options)
    known = "".join(f"\n  {source:20} {text}" for source, text in SOURCES.items())
    raise ValueError(f"data source: expected one of{known}\nfound {name!r}")


def _synthetic(shape: Shape, options: dict[str, Any]) -> DataSource:
    _check_options(options, _keywords(SyntheticSource))
    return SyntheticSource(shape, **options)


def _deskdrop(path: str, options: dict[str, Any]) -> DataSource:
    config_keywords = _keywords(EventLogConfig)
    _check_options(options, [*config_keywords, "seed", "on_error"])
    given = {k: v for k, v in options.items() if k in config_keywords}
    # Lists come from YAML.
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    config = EventLogConfig(**{"cut": _DESKDROP_CUT, **given})
    log = read_event_log(
        _folder(path, "deskdrop", "deskdrop"),
        len(config.behaviors),
        context_columns=config.context_columns,
        on_error=options.get("on_error", "raise"),
    )
    return EventLogSource(log, config, seed=options.get("seed", 0), name="deskdrop")


def _folder(path: str, kind: str, name: str) -> Path:
    if path:
        return Path(path).expanduser()
    root = os.environ.get(_DATA_FOLDER)
    if not root:
        raise ValueError(
            f"data source: expected {kind}:PATH, or {kind} with the environment variable "
            f"{_DATA_FOLDER} naming a folder that holds {name}/, found neither"
        )
    return Path(root) / name


def _keywords(target: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(target).parameters
    return [name for name in parameters if name != "shape"]


def _check_options(options: dict[str, Any], known: list[str]) -> None:
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"options: expected some of {known}, found {unknown}")
