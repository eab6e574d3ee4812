"""The Open Inference Protocol v2: its messages as pure functions of bytes, without HTTP."""
