"""Data sources: ragged multi-behavior batches for multi-task models.

Knows nothing of ops, modules or models; it only makes :class:`Batch` objects.
"""

from mtlfast.data.batch import Batch
from mtlfast.data.source import BatchStream, DataSource
from mtlfast.data.spec import DatasetSpec

__all__ = ["Batch", "BatchStream", "DataSource", "DatasetSpec"]
