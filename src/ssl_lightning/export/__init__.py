"""Networks for other runtimes: ONNX, torch.export, OpenVINO, all run and compared first."""

from ssl_lightning.export.exporting import ExportResult, export_model
from ssl_lightning.export.formats import FORMATS, Format

__all__ = ["FORMATS", "ExportResult", "Format", "export_model"]
