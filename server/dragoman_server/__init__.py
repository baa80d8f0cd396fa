"""Serves translation bundles over gRPC on ONNX Runtime, with continuous batching; never imports torch."""
