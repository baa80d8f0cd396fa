"""Turns a checkpoint into a bundle: graphs, tokenizers, manifest and model card, proved against torch."""
