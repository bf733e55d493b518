"""Tables and figures from reports. Imports neither torch nor (until it draws) matplotlib."""

from ssl_lightning.report.charts import bar_chart
from ssl_lightning.report.curves import curve_chart
from ssl_lightning.report.engines import engine_chart, engine_table, has_engines
from ssl_lightning.report.fronts import front_chart, networks_chart
from ssl_lightning.report.pictures import filter_grid, filter_picture, filter_pictures
from ssl_lightning.report.precisions import precision_chart, precision_reasons, precision_table
from ssl_lightning.report.printing import print_report
from ssl_lightning.report.run_report import RunReport
from ssl_lightning.report.sensitivity import (
    print_sensitivity,
    sensitivity_chart,
    sensitivity_table,
)
from ssl_lightning.report.sparse import break_even_chart, sparse_table, speedup_chart
from ssl_lightning.report.table import comparison_table, percent, short_count
from ssl_lightning.report.training import training_chart, training_reasons, training_table

__all__ = [
    "RunReport",
    "bar_chart",
    "break_even_chart",
    "comparison_table",
    "curve_chart",
    "engine_chart",
    "engine_table",
    "filter_grid",
    "filter_picture",
    "filter_pictures",
    "front_chart",
    "has_engines",
    "networks_chart",
    "percent",
    "precision_chart",
    "precision_reasons",
    "precision_table",
    "print_report",
    "print_sensitivity",
    "sensitivity_chart",
    "sensitivity_table",
    "short_count",
    "sparse_table",
    "speedup_chart",
    "training_chart",
    "training_reasons",
    "training_table",
]
