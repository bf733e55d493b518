"""Networks for other runtimes: ONNX, torch.export, OpenVINO, all run and compared first."""

from ssl_lightning.export.exporting import ExportResult, export_model

__all__ = ["ExportResult", "export_model"]
