"""How exact the metrics are: measured against independent implementations, and written down."""

from immiscible_diffusion.precision._extract import SETS, extract, features_in
from immiscible_diffusion.precision.measure import measure_precision
from immiscible_diffusion.precision.page import filled, tables

__all__ = ["SETS", "extract", "features_in", "filled", "measure_precision", "tables"]
