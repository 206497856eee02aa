"""Data sources: batches for multi-task models, with or without ragged histories.

Knows nothing of ops, modules or models; it only makes :class:`Batch` objects.
"""

from mtlfast.data.aliccp_source import AliCCPSource
from mtlfast.data.aliexpress_source import AliExpressSource
from mtlfast.data.batch import Batch
from mtlfast.data.census_source import CensusSource
from mtlfast.data.event_log import EventLog, read_event_log
from mtlfast.data.event_log_source import EventLogConfig, EventLogSource
from mtlfast.data.open_source import SOURCES, open_source
from mtlfast.data.source import BatchStream, DataSource
from mtlfast.data.spec import DatasetSpec
from mtlfast.data.synthetic import SyntheticSource
from mtlfast.data.table_source import TableSource
from mtlfast.data.tenrec_source import TenrecSource
from mtlfast.data.without_tasks import WithoutTasks

__all__ = [
    "SOURCES",
    "AliCCPSource",
    "AliExpressSource",
    "Batch",
    "BatchStream",
    "CensusSource",
    "DataSource",
    "DatasetSpec",
    "EventLog",
    "EventLogConfig",
    "EventLogSource",
    "SyntheticSource",
    "TableSource",
    "TenrecSource",
    "WithoutTasks",
    "open_source",
    "read_event_log",
]
