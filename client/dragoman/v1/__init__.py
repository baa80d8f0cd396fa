"""Generated from `protos/dragoman/v1/`."""
