"""Anyone's ONNX file, made adaptive: read, followed row by row, rewritten and proved."""
