"""Serves translation bundles over gRPC on ONNX Runtime, with continuous batching; never imports torch."""

import os

# Since version 1.29 ONNX Runtime reports its use to its makers, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
