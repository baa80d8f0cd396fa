"""CPU training speed of a preset against `torch.nn.Transformer` of the same shape, in the same loop.

Both train on the same batches with the same optimiser, precision, dropout and label smoothing, in turns
within one process; the figure is the ratio of the medians of target tokens per second.

    python benchmarks/training_speed.py [--preset small] [--vocabulary 8000] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragoman_model.config import ModelConfig, preset_config
from dragoman_model.dataset import Batch, make_batch
from dragoman_model.memory import keep_freed_memory
from dragoman_model.task import TranslationTask
from dragoman_model.transformer import Transformer, sinusoids

LABEL_SMOOTHING = 0.1


class TorchTransformer(nn.Module):
    """The same network made of torch's own parts, as its documentation shows them used."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.target_vocabulary_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.register_buffer("positions", sinusoids(config.max_positions, config.d_model))
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = nn.Transformer(
            config.d_model,
            config.num_heads,
            config.encoder_layers,
            config.decoder_layers,
            config.d_ff,
            config.dropout,
            batch_first=True,
        )
        self.transformer.encoder.norm = self.transformer.decoder.norm = None  # post-norm layers end in one

    def embed(self, ids: Tensor) -> Tensor:
        scaled = self.embedding(ids) * math.sqrt(self.config.d_model)
        return self.dropout(scaled + self.positions[: ids.size(1)])

    def forward(self, batch: Batch) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(batch.target_in.size(1)).isinf()
        causal = causal.to(batch.target_in.device)
        hidden = self.transformer(
            self.embed(batch.source),
            self.embed(batch.target_in),
            tgt_mask=causal,
            src_key_padding_mask=batch.source == 0,
            memory_key_padding_mask=batch.source == 0,
            tgt_is_causal=True,
        )
        logits = F.linear(hidden, self.embedding.weight)
        return F.cross_entropy(
            logits.flatten(0, 1),
            batch.target_out.flatten(),
            ignore_index=0,
            label_smoothing=LABEL_SMOOTHING if self.training else 0.0,
        )


def sentence_batches(vocabulary: int, count: int, batch_tokens: int) -> list[Batch]:
    """Batches of similar lengths between 8 and 32 tokens, as a corpus of captions has them."""
    generator = np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        return generator.integers(4, vocabulary, length).tolist()

    batches = []
    for _ in range(count):
        longest = int(generator.integers(10, 33))
        rows = batch_tokens // longest
        batches.append(
            make_batch(
                [(ids(longest - 1), ids(int(generator.integers(longest - 3, longest)))) for _ in range(rows)]
            )
        )
    return batches


def trainer(
    parameters: list[nn.Parameter], loss: Callable[[Batch], Tensor], precise: bool
) -> Callable[[Batch], None]:
    """One step of the loop that both networks go through."""
    optimizer = torch.optim.Adam(parameters, lr=1e-4, betas=(0.9, 0.98), eps=1e-9, foreach=True)

    def step(batch: Batch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--batches", type=int, default=4, help="batches per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fp32", action="store_true", help="without bf16")
    parser.add_argument(
        "--plain-malloc", action="store_true", help="without the allocator settings of training"
    )
    options = parser.parse_args()
    if not options.plain_malloc:
        keep_freed_memory()
    torch.manual_seed(0)
    sizes = {"source_vocabulary_size": options.vocabulary, "target_vocabulary_size": options.vocabulary}
    plain = preset_config(options.preset, **sizes)
    # torch.nn.Transformer has one rate for all its dropouts.
    rates = {"attention_dropout": plain.dropout, "activation_dropout": plain.dropout}
    config = preset_config(options.preset, **sizes, **rates)
    ours = TranslationTask(Transformer(config), 1.0, 4000, LABEL_SMOOTHING).train()
    theirs = TorchTransformer(config).train()
    steps = {
        "dragoman": trainer(list(ours.parameters()), lambda b: ours.losses(b)[0], options.fp32),
        "torch.nn.Transformer": trainer(list(theirs.parameters()), theirs, options.fp32),
    }
    batches = sentence_batches(options.vocabulary, options.batches, options.batch_tokens)
    tokens = sum(int((batch.target_out != 0).sum()) for batch in batches)
    rates_seen: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(options.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for batch in batches:
                step(batch)
            if round_number:  # the first warms up
                rates_seen[name].append(tokens / (time.perf_counter() - started))
    medians = {name: statistics.median(rates) for name, rates in rates_seen.items()}
    report = {
        "preset": options.preset,
        "parameters": {
            "dragoman": ours.model.num_parameters,
            "torch.nn.Transformer": sum(p.numel() for p in theirs.parameters()),
        },
        "threads": torch.get_num_threads(),
        "precision": "fp32" if options.fp32 else "bf16",
        "target_tokens_per_second": {name: round(rate) for name, rate in medians.items()},
        "ratio": round(medians["dragoman"] / medians["torch.nn.Transformer"], 2),
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
