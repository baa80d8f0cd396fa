"""Bundle to served model: tokenizers, sessions, one engine, and the proof that it translates."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dragoman_server.bundle import Bundle
from dragoman_server.config import ServerConfig
from dragoman_server.engine import DecodingOptions, Engine
from dragoman_server.engine.faults import with_faults
from dragoman_server.engine.onnx_device_runner import DeviceRunner
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import Device, load_model
from dragoman_server.engine.runner import Extent, Runner
from dragoman_server.engine.slab import Slab
from dragoman_server.engine.split import Split, rows_per_second, splits
from dragoman_server.engine.threads import choose_threads
from dragoman_server.errors import BundleError, DragomanServerError, EngineError
from dragoman_server.manifest import Canary, Manifest
from dragoman_server.metrics import ServerMetrics
from dragoman_server.models import ModelDescription, ServedModel
from dragoman_server.tokenizer import Tokenizer
from dragoman_server.translations import TextHypothesis, TextTranslation
from dragoman_server.translator import Translator

__all__ = ["LoadedModel", "check_canaries", "load", "probe", "warm_up"]

_log = logging.getLogger(__name__)
_WARM_UP_TEXT = "1, 2, 3."
_LEAST_CACHE_BYTES = 64 * 2**20
_AUTO = "auto"
_SUITABLE: dict[Device, tuple[str, ...]] = {"cpu": ("fp32", "int8"), "cuda": ("fp16",)}
"""Precisions to choose from. On CUDA attention in fp32 has no kernel, nor have the products in int8."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A served model and the engine behind it, which must be closed."""

    served: ServedModel
    engine: Engine
    split: Split | None = None
    """How its engine divides the cores, where it knows."""
    canaries: tuple[Canary, ...] = ()
    """Translations that it must find again, of the precision loaded."""


def load(path: Path, config: ServerConfig, metrics: ServerMetrics) -> LoadedModel:
    """Load the bundle at `path` and start its engine; takes seconds, and threads of its own.

    Raises:
        BundleError: the bundle is not one to be served, or not within these bounds; the message says why.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    source = _tokenizer(bundle, manifest.tokenizers.source, manifest.dimensions.source_vocabulary_size)
    target = _tokenizer(bundle, manifest.tokenizers.target, manifest.dimensions.target_vocabulary_size)
    precision = _precision(manifest, config)
    split, runners = _runners(bundle, precision, config)
    engine = Engine(
        [with_faults(runner) for runner in runners],
        max_queue=config.max_queue,
        bos_id=manifest.special_ids.bos,
        eos_id=manifest.special_ids.eos,
        stall_seconds=config.stall_seconds,
        loop_tokens=config.loop_tokens,
        observer=metrics.engine(manifest.name),
    )
    translator = Translator(
        engine,
        source,
        target,
        eos_id=manifest.special_ids.eos,
        max_source_tokens=manifest.limits.max_source_tokens,
        max_segments=config.max_queue,
        max_call_tokens=config.max_call_tokens,
        observe=metrics.observe_text(manifest.name),
        languages=manifest.language_tokens,
    )
    canaries = manifest.gates[precision].canaries
    served = ServedModel(_description(bundle, precision, config), translator)
    return LoadedModel(served, engine, split, canaries)


async def warm_up(model: LoadedModel, config: ServerConfig) -> None:
    """Translate greedily and with the largest beam, on every worker: the first call finds all in place.

    Raises:
        BundleError: the network fails.
    """
    # Workers fill up evenly: with as many texts as workers there is one for each.
    texts = [_WARM_UP_TEXT] * min(model.engine.workers, config.max_queue)
    for beam_size in sorted({1, config.max_beam_size}):
        await _translate(model, texts, DecodingOptions(beam_size=beam_size))


async def check_canaries(model: LoadedModel) -> None:
    """Compare translations with those that the manifest has, made when the bundle was.

    Raises:
        BundleError: one is another, and not as good; or the network fails.
    """
    for number, canary in enumerate(model.canaries, start=1):
        where = f"canary {number} of {len(model.canaries)}"
        if canary.beam_size > model.engine.limits.max_rows:
            _log.warning("%s needs %d slots: not compared", where, canary.beam_size)
            continue
        options = DecodingOptions(beam_size=canary.beam_size, length_penalty=canary.length_penalty)
        best = (await _translate(model, [canary.text], options))[0].hypotheses[0]
        if not _is_as_good(best, canary):
            raise BundleError(
                f"{where} is translated otherwise than when the bundle was made: scores differ by "
                f"{abs(best.score - canary.score):.2g}, tolerance {canary.tolerance:g}; export the "
                "checkpoint again"
            )


async def probe(model: LoadedModel, seconds: float) -> bool | None:
    """Whether the network still translates: its first canary, or, where it has none, the text of the warm-up.

    Args:
        model: Among whose other requests this one waits its turn.
        seconds: That it may take.

    Returns:
        `None`: it did not come to the network in time, which says nothing of it.
    """
    fitting = (one for one in model.canaries if one.beam_size <= model.engine.limits.max_rows)
    canary = next(fitting, None)
    if canary is None:
        text, options = _WARM_UP_TEXT, DecodingOptions(beam_size=1)
    else:
        text = canary.text
        options = DecodingOptions(beam_size=canary.beam_size, length_penalty=canary.length_penalty)
    try:
        [translation] = await model.served.translator.translate(
            *([text], model.served.description.first_direction, options, time.monotonic() + seconds),
            may_loop=True,
        )
    except EngineError:
        return False
    except DragomanServerError:
        return None
    return canary is None or _is_as_good(translation.hypotheses[0], canary)


def _is_as_good(found: TextHypothesis, canary: Canary) -> bool:
    # Not `>`, which is false of NaN.
    return found.text == canary.translation or abs(found.score - canary.score) <= canary.tolerance


async def _translate(
    model: LoadedModel, texts: Sequence[str], options: DecodingOptions
) -> list[TextTranslation]:
    description = model.served.description
    direction = description.first_direction
    try:
        translator = model.served.translator
        # Canaries were made without cutting loops, which networks that say nothing sensible end in.
        return await translator.translate(texts, direction, options, deadline=None, may_loop=True)
    except DragomanServerError as error:
        raise BundleError(f"model {description.name} does not translate: {error}") from error


def _precision(manifest: Manifest, config: ServerConfig) -> str:
    """The one asked for, or the first of those that suit the device which the bundle has."""
    suitable = _SUITABLE[config.device]
    if config.precision == _AUTO:
        found = next((one for one in suitable if one in manifest.precisions), suitable[0])
    else:
        found = config.precision
    if config.device == "cuda" and (found not in suitable or found not in manifest.precisions):
        wanted, known = " or ".join(suitable), ", ".join(sorted(manifest.precisions))
        raise BundleError(
            f"--device cuda runs {wanted} alone; {manifest.name} has {known}, --precision says "
            f"{config.precision}; `dragoman export --precision {suitable[0]}` makes it"
        )
    return found


def _runners(bundle: Bundle, precision: str, config: ServerConfig) -> tuple[Split, Sequence[Runner]]:
    """One for each worker, and the division of the cores: the fastest, or the one asked for."""
    if config.device == "cuda":
        return Split(1, 1), [_device_runner(bundle, precision, config)]
    return _cpu_runners(bundle, precision, config)


def _device_runner(bundle: Bundle, precision: str, config: ServerConfig) -> DeviceRunner:
    sessions = load_model(bundle, precision, device=config.device)
    budget = config.cache_memory_mib * 2**20 or math.inf
    try:
        return DeviceRunner(sessions, config.max_rows, budget, top_ks=(1, 2 * config.max_beam_size))
    except ValueError as error:
        raise BundleError(
            f"--cache-memory-mib {config.cache_memory_mib} is too little for {bundle.path}: {error}; give it "
            "more, or fewer --max-rows"
        ) from error


def _cpu_runners(bundle: Bundle, precision: str, config: ServerConfig) -> tuple[Split, list[OnnxRunner]]:

    def divided(split: Split) -> list[OnnxRunner]:
        sessions = load_model(bundle, precision, split.threads)
        budget = config.cache_memory_mib * 2**20 or _cache_bytes(bundle.manifest, precision, config)
        runners = [OnnxRunner(sessions, config.max_rows, budget) for _ in range(split.workers)]
        _require_room(bundle, runners[0], config)
        return runners

    candidates = splits(choose_threads(), config.workers, config.threads)
    if len(candidates) == 1:
        return candidates[0], divided(candidates[0])
    # One after the other: two sets of weights at once would be the process's peak of memory.
    speeds = {split: rows_per_second(divided(split)) for split in candidates}
    found = ", ".join(f"{split}: {speed:,.0f}" for split, speed in speeds.items())
    _log.info("workers x threads, rows per second: %s", found)
    fastest = max(speeds, key=speeds.__getitem__)
    return fastest, divided(fastest)


def _cache_bytes(manifest: Manifest, precision: str, config: ServerConfig) -> int:
    """Memory for the keys and values of one worker, where nobody says how much.

    More than the weights take makes few rows more in the long run, and none faster.
    """
    graphs, limits = manifest.precisions[precision], manifest.limits
    weights = sum(manifest.files[name].bytes for name in (graphs.encoder, graphs.decode_step))
    largest = Extent(config.max_beam_size, limits.max_target_tokens, limits.max_source_tokens)
    return max(_LEAST_CACHE_BYTES, weights, Slab(graphs.state, largest).bytes(largest))


def _require_room(bundle: Bundle, runner: OnnxRunner, config: ServerConfig) -> None:
    limits = runner.limits
    if not runner.fits(Extent(1, limits.max_target_tokens, limits.max_source_tokens)):
        raise BundleError(
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


def _description(bundle: Bundle, precision: str, config: ServerConfig) -> ModelDescription:
    manifest = bundle.manifest
    return ModelDescription(
        name=manifest.name,
        version=manifest.version,
        source_languages=manifest.source_languages,
        target_languages=manifest.target_languages,
        architecture=manifest.architecture,
        dimensions=dataclasses.asdict(manifest.dimensions),
        precision=precision,
        device=config.device,
        max_source_tokens=manifest.limits.max_source_tokens,
        max_output_tokens=manifest.limits.max_target_tokens,
        max_queue=config.max_queue,
        manifest_sha256=bundle.manifest_sha256,
        provenance=manifest.provenance,
        licence=manifest.licence,
    )
