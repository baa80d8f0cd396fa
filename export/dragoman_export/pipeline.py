"""The service's way from text to text, on an engine of the exporter's."""

from __future__ import annotations

from dragoman_model.checkpoint import Checkpoint
from dragoman_server.in_flight import SegmentEngine
from dragoman_server.translator import Translator

__all__ = ["text_pipeline"]


def text_pipeline(checkpoint: Checkpoint, engine: SegmentEngine, max_segments: int) -> Translator:
    """Splits, encodes, translates, decodes and joins as the service does with the checkpoint's bundle."""
    return Translator(
        engine,
        checkpoint.source_tokenizer,
        checkpoint.target_tokenizer,
        eos_id=checkpoint.special.eos,
        max_source_tokens=checkpoint.config.max_positions,
        max_segments=max_segments,
        languages=checkpoint.languages,
    )
