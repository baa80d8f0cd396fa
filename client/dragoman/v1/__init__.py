"""Generated from `protos/dragoman/v1/translation.proto`."""
