#!/bin/sh
# Regenerates client/dragoman/v1/ from protos/. The oldest supported generator makes stubs that every newer
# runtime accepts (grpcio and protobuf refuse stubs newer than themselves), so it gets an environment of its own.
set -eu

cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT

python3 -m venv "$environment"
"$environment/bin/pip" install --quiet "grpcio-tools==1.80.0"
"$environment/bin/python" -m grpc_tools.protoc -I protos \
  --python_out=client --pyi_out=client --grpc_python_out=client \
  protos/dragoman/v1/*.proto
