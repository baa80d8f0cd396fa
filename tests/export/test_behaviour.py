"""Whole texts that trip translators up are translated as torch does, or it is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dragoman_export.behaviour import behaviour, behaviour_cases
from dragoman_export.torch_reference import TorchReference
from dragoman_model.checkpoint import load_checkpoint
from dragoman_server.bundle import Bundle
from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model
from dragoman_server.engine.runner import FloatArray, IntArray
from dragoman_server.manifest import Outcome

SENTENCE = "the old dog sees a cat."
CASES = {
    "capitals",
    "placeholder",
    "trailing newline",
    "no final stop",
    "empty",
    "one character",
    "1,000 words",
}

Outcomes = Callable[[type[OnnxRunner]], dict[str, Outcome]]


@pytest.fixture
def outcomes(plain: tuple[Path, Bundle]) -> Outcomes:
    checkpoint, bundle = plain

    def outcomes(kind: type[OnnxRunner]) -> dict[str, Outcome]:
        runner = kind(load_model(bundle), 16)
        options = DecodingOptions(beam_size=2)
        return behaviour(TorchReference(load_checkpoint(checkpoint)), runner, SENTENCE, options, tie=1e-4)

    return outcomes


class Mistaken(OnnxRunner):
    """Takes the second best for the best."""

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        log_prob, ids = super().step(tokens, lengths, top_k)
        ids[:, :2] = ids[:, 1::-1]
        return log_prob, ids


class Broken(OnnxRunner):
    """Knows nothing."""

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        log_prob, ids = super().step(tokens, lengths, top_k)
        return np.full_like(log_prob, np.nan), ids


def test_each_text_is_odd_in_its_own_way() -> None:
    cases = behaviour_cases(SENTENCE)
    assert set(cases) == CASES
    assert cases["capitals"] == "THE OLD DOG SEES A CAT."
    assert cases["placeholder"] == "the {name} old dog sees a cat."
    assert cases["trailing newline"] == SENTENCE + "\n"
    assert cases["no final stop"] == SENTENCE[:-1]
    assert (cases["empty"], cases["one character"]) == ("", "t")
    assert len(cases["1,000 words"].split()) == 1000


@pytest.mark.parametrize("sentence", ["", " \n", "word"])
def test_any_sentence_makes_texts(sentence: str) -> None:
    cases = behaviour_cases(sentence)
    assert set(cases) == CASES
    assert len(cases["1,000 words"].split()) == 1000


def test_the_exported_graphs_behave_as_torch_does(outcomes: Outcomes) -> None:
    assert outcomes(OnnxRunner) == dict.fromkeys(CASES, "same")


def test_other_translations_are_noticed_wherever_there_is_something_to_translate(outcomes: Outcomes) -> None:
    assert outcomes(Mistaken) == {**dict.fromkeys(CASES, "other"), "empty": "same"}


def test_failures_are_noticed(outcomes: Outcomes) -> None:
    assert outcomes(Broken) == {**dict.fromkeys(CASES, "failed"), "empty": "same"}
