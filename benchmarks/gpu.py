"""Speed on a GPU: the engine beside torch, Hugging Face `generate` and CTranslate2, its steps, and training.

python benchmarks/gpu.py --out .build/gpu [--device cuda] [--shapes base small] [--rows 1 8 64 256 512]

Weights are random: every system decodes the same number of tokens from the same sources, and nobody ends
early. All run in one process, in turns; figures are medians. `--device cpu` tries the script without a
GPU, and says nothing of speed. Writes bench.json and bench.md, where a system that cannot run is named, with
the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from dragoman_export.cuda_check import STEP_HOST_INPUTS, cuda_findings
from dragoman_export.description import records
from dragoman_export.fp16 import fp16_state, halve
from dragoman_export.graphs import state_tensors
from dragoman_export.to_onnx import decode_step_onnx, encoder_onnx
from dragoman_model.config import ModelConfig
from dragoman_model.dataset import Batch
from dragoman_model.task import TranslationTask
from dragoman_model.transformer import Transformer
from dragoman_server.bundle import Bundle
from dragoman_server.engine import DecodingOptions, Engine, Event, Finished, Request
from dragoman_server.engine.onnx_cuda import cuda_device, require_cuda
from dragoman_server.engine.onnx_device_runner import DeviceRunner
from dragoman_server.engine.onnx_sessions import Device, LoadedModel, load_ungated
from dragoman_server.languages import LanguageTokens
from dragoman_server.manifest import Dimensions, Graphs, Limits, Manifest, Tokenizers
from dragoman_server.special_ids import BOS_ID, EOS_ID, PAD_ID, SpecialIds
from training_speed import LABEL_SMOOTHING, TorchTransformer, sentence_batches

SHAPES = {
    "base": {"d_model": 512, "num_heads": 8, "d_ff": 2048, "encoder_layers": 6, "decoder_layers": 6},
    "small": {"d_model": 256, "num_heads": 4, "d_ff": 1024, "encoder_layers": 6, "decoder_layers": 6},
    "tiny": {"d_model": 64, "num_heads": 2, "d_ff": 128, "encoder_layers": 1, "decoder_layers": 1},
}
VOCABULARIES = {"base": 32_000, "small": 8_000, "tiny": 5_000}
SOURCE_TOKENS, TARGET_TOKENS, MAX_POSITIONS = 24, 32, 256
BEAM = 4
NEVER_ENDS = -1e4
"""Added to the score of the end symbol: every system decodes TARGET_TOKENS tokens."""

Translate = Callable[[Tensor, int], int]
"""Of sources `[sentences, SOURCE_TOKENS]` and a beam size; returns the tokens decoded."""


@dataclass(frozen=True)
class Case:
    """A network with random weights, on the device."""

    shape: str
    config: ModelConfig
    model: Transformer
    """In float32, on the host."""
    device: Device

    @classmethod
    def of(cls, shape: str, device: Device) -> Case:
        """The network of a shape; its biases are random too, as the exporter takes equal ones for one."""
        torch.manual_seed(0)
        size = VOCABULARIES[shape]
        sizes = {"source_vocabulary_size": size, "target_vocabulary_size": size}
        config = ModelConfig(**SHAPES[shape], **sizes, max_positions=MAX_POSITIONS)
        model = Transformer(config).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, std=0.02)
        return cls(shape, config, model, device)

    def sources(self, count: int) -> Tensor:
        """Random sentences, each with its end symbol."""
        generator = torch.Generator().manual_seed(count)
        ids = torch.randint(
            4, self.config.source_vocabulary_size, (count, SOURCE_TOKENS), generator=generator
        )
        ids[:, -1] = EOS_ID
        return ids

    def loaded(self, folder: Path) -> LoadedModel:
        """Its float16 graphs, loaded on the device."""
        encoder = onnx.load_model_from_string(encoder_onnx(self.model))
        never = (PAD_ID, BOS_ID, EOS_ID)  # the end symbol as well
        step = onnx.load_model_from_string(decode_step_onnx(self.model, never, block=0))
        halve(encoder)
        halve(step)
        assert not cuda_findings(encoder) + cuda_findings(step, STEP_HOST_INPUTS)
        files = {
            "encoder.onnx": encoder.SerializeToString(),
            "decode_step.onnx": step.SerializeToString(),
            "none.spm": b"-",
        }
        size = VOCABULARIES[self.shape]
        shape = SHAPES[self.shape]
        dimensions = Dimensions(
            **shape,
            source_vocabulary_size=size,
            target_vocabulary_size=size,
            head_dim=self.config.head_dim,
            encoder_num_heads=shape["num_heads"],
            encoder_d_ff=shape["d_ff"],
        )
        manifest = Manifest(
            name=self.shape,
            version="1",
            architecture="transformer",
            source_languages=("en",),
            target_languages=("de",),
            dimensions=dimensions,
            special_ids=SpecialIds(),
            language_tokens=LanguageTokens(),
            limits=Limits(MAX_POSITIONS, MAX_POSITIONS),
            tokenizers=Tokenizers("none.spm", "none.spm"),
            precisions={
                "fp16": Graphs("encoder.onnx", "decode_step.onnx", fp16_state(state_tensors(self.model)))
            },
            gates={},
            provenance="random",
            licence="none",
            created_by={},
            files=records(files),
        )
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / "bundle.json").write_bytes(manifest.to_json())
        return load_ungated(Bundle.open(folder), "fp16", 1, self.device)


def synchronise(device: Device) -> None:
    """Wait for what was launched."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: Device, rounds: int) -> list[float]:
    """The duration of each of `rounds` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(rounds):
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return times


@dataclass(frozen=True)
class Ceiling:
    """What the card does at best, measured."""

    bytes_per_second: float
    """Read and written, in a copy."""
    operations_per_second: float
    """Of a large product of float16 matrices."""

    @classmethod
    def measured(cls, device: Device) -> Ceiling:
        """By a copy of 1 GiB and a product of 8192 x 8192 matrices; smaller on the CPU."""
        count, size = (2**28, 8192) if device == "cuda" else (2**22, 512)
        block = torch.zeros(count, device=device)
        other = torch.empty_like(block)
        copy = min(seconds_of(lambda: other.copy_(block), device, 10))
        matrix = torch.randn(size, size, device=device).to(torch.bfloat16)
        product = min(seconds_of(lambda: matrix @ matrix, device, 10))
        return cls(2 * block.nbytes / copy, 2 * size**3 / product)

    def step_seconds(self, case: Case, rows: int, target_tokens: int) -> float:
        """The least time of a decode step: to read its bytes, or compute its products, the longer of both."""
        size = case.config
        layer = 6 * size.d_model**2 + 2 * size.d_model * size.d_ff
        weights = size.decoder_layers * layer + size.d_model * size.target_vocabulary_size
        state = 2 * size.decoder_layers * size.d_model * (target_tokens + SOURCE_TOKENS)
        read = 2 * (weights + rows * state) / self.bytes_per_second
        return max(read, rows * 2 * (weights + state) / self.operations_per_second)


def step_figures(case: Case, loaded: LoadedModel, rows: int, ceiling: Ceiling, rounds: int) -> dict[str, Any]:
    """Time of a step of `rows` rows, half way through a sentence: captured, not captured, and at best."""
    runner = DeviceRunner(loaded, rows, top_ks=(1,))
    sources = case.sources(rows).tolist()
    position = TARGET_TOKENS // 2
    tokens, lengths = np.full(rows, 5), np.full(rows, position)
    encode = seconds_of(
        lambda: runner.encode(sources, [[row] for row in range(rows)]), case.device, max(3, rounds // 10)
    )
    captured = seconds_of(lambda: runner.step(tokens, lengths, 1), case.device, rounds)
    launched = seconds_of(lambda: runner.step(tokens, lengths, 2), case.device, rounds)
    least = ceiling.step_seconds(case, rows, position)
    return {
        "shape": case.shape,
        "rows": rows,
        "encode_ms": 1e3 * statistics.median(encode),
        "step_ms": 1e3 * statistics.median(captured),
        "step_p99_ms": 1e3 * float(np.percentile(captured, 99)),
        "step_without_graphs_ms": 1e3 * statistics.median(launched),
        "floor_ms": 1e3 * least,
        "times_floor": statistics.median(captured) / least,
    }


@contextlib.contextmanager
def engine_system(case: Case, loaded: LoadedModel, rows: int) -> Iterator[Translate]:
    """Dragoman's engine, without its service."""
    runner = DeviceRunner(loaded, rows, top_ks=(1, 2 * BEAM))
    with Engine([runner], max_queue=100_000, bos_id=BOS_ID, eos_id=EOS_ID) as engine:

        def translate(sources: Tensor, beam_size: int) -> int:
            finished = queue.SimpleQueue[Event]()
            options = DecodingOptions(beam_size=beam_size, max_output_tokens=TARGET_TOKENS)
            for source in sources.tolist():
                engine.submit(Request(tuple(source), options, finished.put))
            tokens = 0
            for _ in range(len(sources)):
                event = finished.get(timeout=600)
                assert isinstance(event, Finished), event
                tokens += len(event.hypotheses[0].tokens)
            return tokens

        yield translate


def torch_system(case: Case) -> Translate:
    """The reference decoder in torch, float16, greedy."""
    model = Transformer(case.config).eval()
    model.load_state_dict(case.model.state_dict())
    model = model.to(case.device, torch.float16 if case.device == "cuda" else torch.float32)

    @torch.inference_mode()
    def translate(sources: Tensor, beam_size: int) -> int:
        if beam_size > 1:
            raise NotImplementedError("the reference searches one sentence at a time")
        rows = len(sources)
        lengths = torch.full((rows,), SOURCE_TOKENS, device=case.device)
        state = model.start(model.encode(sources.to(case.device), lengths))
        token = torch.full((rows, 1), BOS_ID, device=case.device)
        for _ in range(TARGET_TOKENS):
            logits, state = model.decode(token, state)
            logits[..., EOS_ID] = NEVER_ENDS
            token = logits.argmax(dim=-1)
        return rows * TARGET_TOKENS

    return translate


def transformers_system(case: Case) -> Translate:
    """Hugging Face `generate`, float16."""
    from transformers_peer import convert

    model = convert(SimpleNamespace(config=case.config, model=case.model))
    model = model.to(case.device, torch.float16 if case.device == "cuda" else torch.float32)
    bias = model.final_logits_bias
    bias.clamp_(min=NEVER_ENDS)  # -1e9 is infinite in float16
    bias[0, EOS_ID] = NEVER_ENDS

    @torch.inference_mode()
    def translate(sources: Tensor, beam_size: int) -> int:
        ids = sources.to(case.device)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=beam_size,
            do_sample=False,
            min_new_tokens=TARGET_TOKENS,
            max_new_tokens=TARGET_TOKENS,
        )
        return len(sources) * TARGET_TOKENS

    return translate


def ctranslate2_system(case: Case, folder: Path) -> Translate:
    """CTranslate2, float16."""
    import ctranslate2

    from ctranslate2_convert import convert

    convert(SimpleNamespace(config=case.config, model=case.model), folder)
    compute_type = "float16" if case.device == "cuda" else "float32"
    translator = ctranslate2.Translator(str(folder), device=case.device, compute_type=compute_type)

    def translate(sources: Tensor, beam_size: int) -> int:
        tokens = [[*map(str, source[:-1]), "</s>"] for source in sources.tolist()]
        translator.translate_batch(
            tokens,
            beam_size=beam_size,
            max_batch_size=len(tokens),
            min_decoding_length=TARGET_TOKENS,
            max_decoding_length=TARGET_TOKENS,
        )
        return len(sources) * TARGET_TOKENS

    return translate


def throughput(
    case: Case, systems: dict[str, Translate], rows: int, beam_size: int, rounds: int
) -> list[dict[str, Any]]:
    """Tokens a second of every system, in turns, with `rows` hypotheses at once."""
    sources = case.sources(max(1, rows // beam_size))
    seen: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for number in range(rounds + 1):
        for name, translate in systems.items():
            if name in failed:
                continue
            try:
                synchronise(case.device)
                started = time.perf_counter()
                tokens = translate(sources, beam_size)
                synchronise(case.device)
            except Exception as error:
                failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                continue
            if number:  # the first warms up
                seen.setdefault(name, []).append(tokens / (time.perf_counter() - started))
    common = {"shape": case.shape, "rows": rows, "beam": beam_size}
    found = [
        {**common, "system": name, "tokens_per_second": statistics.median(rates)}
        for name, rates in seen.items()
    ]
    return found + [{**common, "system": name, "not_run": reason} for name, reason in failed.items()]


def training(case: Case, ceiling: Ceiling, batch_tokens: int, rounds: int) -> dict[str, Any]:
    """Target tokens a second of training in bfloat16, ours and `torch.nn.Transformer`, in turns."""
    ours = TranslationTask(Transformer(case.config), 1.0, 4000, LABEL_SMOOTHING).train().to(case.device)
    theirs = TorchTransformer(case.config).train().to(case.device)
    batches = [
        Batch(*(part.to(case.device) for part in batch))
        for batch in sentence_batches(case.config.target_vocabulary_size, 4, batch_tokens)
    ]
    tokens = sum(int((batch.target_out != PAD_ID).sum()) for batch in batches)

    def trainer(module: nn.Module, loss: Callable[[Batch], Tensor]) -> Callable[[], None]:
        parameters = list(module.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-4, betas=(0.9, 0.98), eps=1e-9, foreach=True)

        def epoch() -> None:
            for batch in batches:
                with torch.autocast(case.device, torch.bfloat16):
                    value = loss(batch)
                value.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()

        return epoch

    epochs = {
        "Dragoman": trainer(ours, lambda batch: ours.losses(batch)[0]),
        "torch.nn.Transformer": trainer(theirs, theirs),
    }
    seen: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(rounds):
        for name, epoch in epochs.items():
            seen[name].append(tokens / statistics.median(seconds_of(epoch, case.device, 1)))
    rates = {name: statistics.median(found) for name, found in seen.items()}
    # Of forward and backward: 6 operations a weight and token, both sides of the network.
    operations = 6 * ours.model.num_parameters * rates["Dragoman"]
    return {
        "shape": case.shape,
        "target_tokens_per_second": rates,
        "ratio": rates["Dragoman"] / rates["torch.nn.Transformer"],
        "share_of_matrix_rate": operations / ceiling.operations_per_second,
    }


def systems_of(
    case: Case, loaded: LoadedModel, stack: contextlib.ExitStack, rows: int
) -> dict[str, Translate]:
    """Every system that can be set up; those that cannot fail where they are called, with the reason."""

    def or_failing(build: Callable[[], Translate]) -> Translate:
        try:
            return build()
        except Exception as error:
            reason = error

            def fails(sources: Tensor, beam_size: int) -> int:
                raise reason

            return fails

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ctranslate2"
    return {
        "Dragoman": stack.enter_context(engine_system(case, loaded, rows)),
        "torch": or_failing(lambda: torch_system(case)),
        "Transformers": or_failing(lambda: transformers_system(case)),
        "CTranslate2": or_failing(lambda: ctranslate2_system(case, folder)),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines = [f"Device: {report['device']}; {report['versions']}.", ""]
    lines += [
        f"Measured ceiling: {report['ceiling']['bytes_per_second'] / 1e9:,.0f} GB/s, "
        f"{report['ceiling']['operations_per_second'] / 1e12:,.1f} TFLOP/s.",
        "",
        "| shape | rows | step / ms | p99 | without graphs | floor | times floor | encoder / ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['shape']} | {row['rows']} | {row['step_ms']:.3f} | {row['step_p99_ms']:.3f} | "
        f"{row['step_without_graphs_ms']:.3f} | {row['floor_ms']:.3f} | {row['times_floor']:.1f} | "
        f"{row['encode_ms']:.2f} |"
        for row in report["steps"]
    ]
    lines += ["", "| shape | rows | beam | system | tokens/s |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['shape']} | {row['rows']} | {row['beam']} | {row['system']} | "
        + (f"{row['tokens_per_second']:,.0f} |" if "not_run" not in row else f"not run: {row['not_run']} |")
        for row in report["throughput"]
    ]
    lines += [
        "",
        "| training, bfloat16 | Dragoman, tokens/s | torch.nn.Transformer | ratio | of the matrix rate |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['shape']} | {row['target_tokens_per_second']['Dragoman']:,.0f} | "
        f"{row['target_tokens_per_second']['torch.nn.Transformer']:,.0f} | {row['ratio']:.2f} | "
        f"{row['share_of_matrix_rate']:.1%} |"
        for row in report["training"]
    ]
    return "\n".join(lines) + "\n"


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything, shape by shape."""
    import onnxruntime  # not before the server's package, which switches its telemetry off

    ceiling = Ceiling.measured(asked.device)
    name = cuda_device() if asked.device == "cuda" else "the CPU, which says nothing of a GPU's speed"
    report: dict[str, Any] = {
        "device": name,
        "versions": f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}",
        "ceiling": {
            "bytes_per_second": ceiling.bytes_per_second,
            "operations_per_second": ceiling.operations_per_second,
        },
        "steps": [],
        "throughput": [],
        "training": [],
    }
    for shape in asked.shapes:
        case = Case.of(shape, asked.device)
        with tempfile.TemporaryDirectory() as folder:
            loaded = case.loaded(Path(folder))
        for rows in asked.rows:
            report["steps"].append(step_figures(case, loaded, rows, ceiling, asked.rounds * 20))
            print(json.dumps(report["steps"][-1]), flush=True)
            with contextlib.ExitStack() as stack:
                systems = systems_of(case, loaded, stack, max(rows, BEAM))
                for beam_size in (1, BEAM):
                    found = throughput(case, systems, rows, beam_size, asked.rounds)
                    report["throughput"] += found
                    print(json.dumps(found), flush=True)
        report["training"].append(training(case, ceiling, asked.batch_tokens, asked.rounds))
        print(json.dumps(report["training"][-1]), flush=True)
    return report


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["base", "small"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="of training")
    asked = parser.parse_args()
    if asked.device == "cuda":
        try:
            require_cuda()
        except OSError as error:
            parser.error(str(error))
    report = measure(asked)
    tests = asked.out / "tests.json"
    report["tests"] = json.loads(tests.read_text()) if tests.is_file() else []
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    text = markdown(report)
    if report["tests"]:
        text += "\n| test | figure | value |\n|---|---|---|\n"
        text += "".join(f"| {one['case']} | {one['figure']} | {one['value']} |\n" for one in report["tests"])
    (asked.out / "bench.md").write_text(text)


if __name__ == "__main__":
    main()
