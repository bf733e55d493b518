"""Networks for other runtimes: ONNX, torch.export, OpenVINO, all run and compared first."""

from ssl_lightning.export.exporting import ExportResult, export_model
from ssl_lightning.export.int8 import Int8Result, export_int8
from ssl_lightning.export.precisions import compare_precisions

__all__ = ["ExportResult", "Int8Result", "compare_precisions", "export_int8", "export_model"]
