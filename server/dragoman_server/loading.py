"""Bundle to served model: tokenizers, sessions, one engine."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from dragoman_server.bundle import Bundle
from dragoman_server.config import ServerConfig
from dragoman_server.engine import DecodingOptions, Engine
from dragoman_server.engine.onnx_runner import OnnxRunner, load_model
from dragoman_server.engine.runner import Extent
from dragoman_server.engine.split import Split, rows_per_second, splits
from dragoman_server.engine.threads import choose_threads
from dragoman_server.errors import BundleError, EngineError
from dragoman_server.metrics import ServerMetrics
from dragoman_server.models import ModelDescription, ServedModel
from dragoman_server.tokenizer import Tokenizer
from dragoman_server.translator import Translator

__all__ = ["LoadedModel", "load", "warm_up"]

_log = logging.getLogger(__name__)
_WARM_UP_TEXT = "1, 2, 3."


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A served model and the engine behind it, which must be closed."""

    served: ServedModel
    engine: Engine


def load(path: Path, config: ServerConfig, metrics: ServerMetrics) -> LoadedModel:
    """Load the bundle at `path` and start its engine.

    Raises:
        BundleError: the bundle is not one to be served; the message names the file.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    source = _tokenizer(bundle, manifest.tokenizers.source, manifest.dimensions.source_vocabulary_size)
    target = _tokenizer(bundle, manifest.tokenizers.target, manifest.dimensions.target_vocabulary_size)
    engine = Engine(
        _runners(bundle, config),
        max_queue=config.max_queue,
        bos_id=manifest.special_ids.bos,
        eos_id=manifest.special_ids.eos,
        observer=metrics.engine(manifest.name),
    )
    metrics.watch(manifest.name, engine.stats)
    translator = Translator(
        engine,
        source,
        target,
        eos_id=manifest.special_ids.eos,
        max_source_tokens=manifest.limits.max_source_tokens,
        max_segments=config.max_queue,
        languages=manifest.language_tokens,
    )
    return LoadedModel(ServedModel(_description(bundle, config), translator), engine)


async def warm_up(model: ServedModel, max_beam_size: int) -> None:
    """Translate once with the largest beam, so that the first call finds everything in place.

    Raises:
        BundleError: the network fails.
    """
    description = model.description
    options = DecodingOptions(beam_size=max_beam_size)
    try:
        await model.translator.translate([_WARM_UP_TEXT], description.first_direction, options, deadline=None)
    except EngineError as error:
        raise BundleError(f"model {description.name} does not translate: {error}") from error


def _runners(bundle: Bundle, config: ServerConfig) -> list[OnnxRunner]:
    """One for each worker, in the fastest division of the cores, or in the one asked for."""

    def divided(split: Split) -> list[OnnxRunner]:
        sessions = load_model(bundle, config.precision, split.threads)
        runners = [
            OnnxRunner(sessions, config.max_rows, config.cache_memory_mib * 2**20)
            for _ in range(split.workers)
        ]
        _require_room(bundle, runners[0], config)
        return runners

    candidates = splits(choose_threads(), config.workers, config.threads)
    if len(candidates) == 1:
        return divided(candidates[0])
    # One after the other: two sets of weights at once would be the process's peak of memory.
    speeds = {split: rows_per_second(divided(split)) for split in candidates}
    found = ", ".join(f"{split}: {speed:,.0f}" for split, speed in speeds.items())
    _log.info("workers x threads, rows per second: %s", found)
    return divided(max(speeds, key=speeds.__getitem__))


def _require_room(bundle: Bundle, runner: OnnxRunner, config: ServerConfig) -> None:
    limits = runner.limits
    if not runner.fits(Extent(1, limits.max_target_tokens, limits.max_source_tokens)):
        raise ValueError(
            f"--cache-memory-mib {config.cache_memory_mib} does not hold the longest sentence that "
            f"{bundle.path} takes, of {limits.max_source_tokens} tokens; give it more"
        )


def _tokenizer(bundle: Bundle, file: str, vocabulary_size: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer(bundle.read(file), bundle.manifest.special_ids)
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(f"{bundle.path}: {file}: {error}") from error
    if tokenizer.vocabulary_size > vocabulary_size:
        raise BundleError(
            f"{bundle.path}: {file} has {tokenizer.vocabulary_size} pieces, the network {vocabulary_size}"
        )
    return tokenizer


def _description(bundle: Bundle, config: ServerConfig) -> ModelDescription:
    manifest = bundle.manifest
    return ModelDescription(
        name=manifest.name,
        version=manifest.version,
        source_languages=manifest.source_languages,
        target_languages=manifest.target_languages,
        architecture=manifest.architecture,
        dimensions=dataclasses.asdict(manifest.dimensions),
        precision=config.precision,
        device=config.device,
        max_source_tokens=manifest.limits.max_source_tokens,
        max_output_tokens=manifest.limits.max_target_tokens,
        max_queue=config.max_queue,
        manifest_sha256=bundle.manifest_sha256,
        provenance=manifest.provenance,
        licence=manifest.licence,
    )
