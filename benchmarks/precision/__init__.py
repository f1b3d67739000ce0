"""How exact the metrics are: measured against independent implementations, and written down."""

from benchmarks.precision._extract import SETS, extract, features_in
from benchmarks.precision.measure import measure_precision
from benchmarks.precision.page import filled, tables

__all__ = ["SETS", "extract", "features_in", "filled", "measure_precision", "tables"]
