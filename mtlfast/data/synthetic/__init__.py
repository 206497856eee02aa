"""Generated data sets in the shapes of DTRN's two data sets."""

from mtlfast.data.synthetic.shapes import ECOMMERCE, TENREC, Shape
from mtlfast.data.synthetic.source import SyntheticSource

__all__ = ["ECOMMERCE", "TENREC", "Shape", "SyntheticSource"]
