"""The graphs of every precision, made of the float32 ones, and what they are called."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import onnx
from torch import Tensor, nn

from dragoman_export.activation_peaks import by_bias, input_peaks, state_peaks
from dragoman_export.calibration import Sources
from dragoman_export.cuda_check import STEP_HOST_INPUTS, cuda_findings
from dragoman_export.description import graph_files
from dragoman_export.fp16 import fp16_state, halve
from dragoman_export.graphs import DecodeStepGraph, EncoderGraph, state_tensors
from dragoman_export.int8 import quantise
from dragoman_export.int8_state import cache_scales, int8_state, round_memories, take_integers
from dragoman_export.options import ExportError, ExportOptions, Precision
from dragoman_export.smoothing import smoothed
from dragoman_export.to_onnx import decode_step_onnx, encoder_onnx
from dragoman_export.torch_reference import TorchReference
from dragoman_model.checkpoint import Checkpoint
from dragoman_server.manifest import Graphs

__all__ = ["FloatGraphs", "Scales", "graphs_of", "scales_to_try", "translations"]

Scales = Literal["none", "row-wise", "static"]
"""How activations become integers."""

_LOGGER = logging.getLogger(__name__)


def scales_to_try(precision: Precision, options: ExportOptions) -> tuple[Scales, ...]:
    """The activation scales worth trying."""
    if precision != "int8":
        return ("none",)
    if options.int8_scales != "auto":
        return (options.int8_scales,)
    return ("row-wise",) if options.calibration is None else ("row-wise", "static")


@dataclasses.dataclass(frozen=True, slots=True)
class FloatGraphs:
    """What every precision is made of."""

    reference: TorchReference
    encoder: bytes
    decode_step: bytes

    @classmethod
    def of(cls, reference: TorchReference) -> FloatGraphs:
        """Those of the checkpoint that `reference` has."""
        checkpoint = reference.checkpoint
        _LOGGER.info("exporting the encoder")
        encoder = encoder_onnx(checkpoint.model)
        _LOGGER.info("exporting the decode step")
        return cls(reference, encoder, decode_step_onnx(checkpoint.model, checkpoint.special.never))

    @property
    def checkpoint(self) -> Checkpoint:
        """Whose graphs they are."""
        return self.reference.checkpoint

    @property
    def both(self) -> tuple[bytes, bytes]:
        """Encoder and decode step."""
        return self.encoder, self.decode_step

    def smoothed(self, sources: Sequence[Sequence[int]]) -> FloatGraphs:
        """Those of a model that says the same, and whose activations suit static scales better.

        Args:
            sources: Which show how large activations become.
        """
        checkpoint = self.checkpoint
        peaks = input_peaks(checkpoint.model, translations(self.reference, sources), checkpoint.special)
        model = smoothed(checkpoint.model, peaks)
        return FloatGraphs.of(TorchReference(dataclasses.replace(checkpoint, model=model)))

    def quantised(
        self, inputs: Mapping[nn.Linear, Tensor], state: Mapping[str, Tensor]
    ) -> tuple[bytes, bytes]:
        """Both as integers, given how large activations become.

        Args:
            inputs: The largest inputs, `input_peaks`, of those layers that are to have static scales.
            state: The largest keys and values, `state_peaks`.
        """
        model, never = self.checkpoint.model, self.checkpoint.special.never
        encoder, decode_step = map(onnx.load_model_from_string, (self.encoder, self.decode_step))
        quantise(encoder, by_bias(EncoderGraph(model), inputs))
        quantise(decode_step, by_bias(DecodeStepGraph(model, never), inputs))
        scales = {name: cache_scales(peaks.numpy()) for name, peaks in state.items()}
        round_memories(encoder, scales)
        take_integers(decode_step, scales)
        return _serialised(encoder), _serialised(decode_step)

    def halved(self) -> tuple[bytes, bytes]:
        """Both in float16, for CUDA.

        Raises:
            ExportError: they would not run there, as far as their structure tells.
        """
        checkpoint = self.checkpoint
        # The search in blocks counts them, which CUDA would do on the device, for what is needed beside it.
        whole = decode_step_onnx(checkpoint.model, checkpoint.special.never, block=0)
        encoder, decode_step = map(onnx.load_model_from_string, (self.encoder, whole))
        halve(encoder)
        halve(decode_step)
        findings = [*cuda_findings(encoder), *cuda_findings(decode_step, STEP_HOST_INPUTS)]
        if findings:
            raise ExportError(f"the fp16 graphs would not run on CUDA: {'; '.join(findings[:3])}")
        return _serialised(encoder), _serialised(decode_step)


def _serialised(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def graphs_of(
    floats: FloatGraphs, precision: Precision, sources: Sources, scales: Scales
) -> tuple[Graphs, dict[str, bytes]]:
    """What a precision's graphs are called, and their content by name."""
    checkpoint, state = floats.checkpoint, state_tensors(floats.checkpoint.model)
    if precision == "fp32":
        names, encoder, decode_step = graph_files(precision, state), floats.encoder, floats.decode_step
    elif precision == "fp16":
        names = graph_files(precision, fp16_state(state))
        encoder, decode_step = floats.halved()
    else:
        _LOGGER.info("rounding to int8, with %s scales", scales)
        names = graph_files(precision, int8_state(state), scales)
        model, special = checkpoint.model, checkpoint.special
        pairs = translations(floats.reference, sources.scales)
        inputs = input_peaks(model, pairs, special) if scales == "static" else {}
        encoder, decode_step = floats.quantised(inputs, state_peaks(model, pairs, special))
    return names, {names.encoder: encoder, names.decode_step: decode_step}


def translations(
    reference: TorchReference, sources: Sequence[Sequence[int]]
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """The sources, and what torch makes of them."""
    # The last output is never fed: nothing follows an end-of-sentence.
    return [(source, reference.greedy(source)[:-1]) for source in sources]
