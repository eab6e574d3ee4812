"""From torch to ONNX with the statistics under control: `export_onnx` writes the file and proves it."""

from augserve.export.exporter import export_onnx, verify_onnx
from augserve.export.foreign.convert import convert_onnx
from augserve.export.parity import ParityReport
from augserve.runtime import open_session

__all__ = ["ParityReport", "convert_onnx", "export_onnx", "open_session", "verify_onnx"]
