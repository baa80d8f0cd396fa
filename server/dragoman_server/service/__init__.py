"""The gRPC edge: the only part of the server that knows grpc and generated messages."""
