"""The whole way in miniature, with the commands a user types: from a corpus to a load test.

python scripts/demo.py [--folder .build/demo] [--minutes 3]
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SENTENCES = [
    "The old cat sees the small dogs.",
    "The dog that the women saw sleeps.",
    "Did my guest sleep yesterday?",
    "The children that see the cat that sleeps laugh.  The man sees them.\n\nThe woman sleeps.",
]
EVERYDAY = ["Where is the nearest station?", "I didn't know that you could sing.", "See you tomorrow!"]
STARTER = Path(__file__).parents[1] / "starter"
CLIENT_WAS_LATE = 4  # exit code of `dragoman loadtest` for a run that says nothing of the server


def say(text: str) -> None:
    """Print a headline."""
    print(f"\n== {text}", flush=True)


def dragoman(*arguments: object, accepted: tuple[int, ...] = (0,)) -> int:
    """Run a command as a user would, showing it; ends the demo if its exit code is not an accepted one."""
    words = ["dragoman", *map(str, arguments)]
    print(f"$ {shlex.join(words)}", flush=True)
    code = subprocess.run(words).returncode
    if code not in accepted:
        sys.exit(f"dragoman {words[1]} ended with exit code {code}")
    return code


@contextlib.contextmanager
def served(models: Path, folder: Path) -> Iterator[str]:
    """A server of `models` in a process of its own; yields its address, stops it with SIGTERM."""
    ready = folder / "address"
    words = ["dragoman", "serve", "--models", str(models), "--port", "0", "--ready-file", str(ready)]
    print(f"$ {shlex.join(words)} &", flush=True)
    process = subprocess.Popen(words)
    try:
        end = time.monotonic() + 60
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > end:
                sys.exit("the server did not become ready")
            time.sleep(0.05)
        yield ready.read_text().strip()
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            sys.exit(f"the server ended with exit code {process.returncode}")
    finally:
        process.kill()


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".build/demo"))
    parser.add_argument("--minutes", type=float, default=3.0, help="time to train for")
    options = parser.parse_args()
    started = time.monotonic()
    folder: Path = options.folder
    shutil.rmtree(folder, ignore_errors=True)
    corpus, checkpoint, models = folder / "corpus", folder / "checkpoint", folder / "models"

    say("A toy grammar makes English-German text")
    dragoman("toy", "--out", corpus, "--pairs", 20000)
    say(f"A small Transformer learns it, for {options.minutes:g} minutes")
    dragoman(
        *("train", "--train", corpus / "train.en", corpus / "train.de"),
        *("--valid", corpus / "valid.en", corpus / "valid.de", "--source", "en", "--target", "de"),
        *("--out", checkpoint, "--preset", "tiny", "--encoder-layers", 2, "--decoder-layers", 2),
        *("--dropout", 0.1, "--vocabulary-size", 1000, "--batch-tokens", 2048),
        *("--learning-rate", 0.7, "--warmup-steps", 300, "--validate-every", 200, "--average", 2),
        *("--max-minutes", options.minutes, "--provenance", "made by a grammar", "--licence", "Apache-2.0"),
    )
    say("The checkpoint becomes a bundle, which must say the same as the checkpoint")
    dragoman("export", checkpoint, "--out", models / "toy-en-de" / "1")
    dragoman("inspect", models / "toy-en-de" / "1")
    say("A server translates with it, over gRPC")
    with served(models, folder) as address:
        for sentence in SENTENCES:
            dragoman("translate", sentence, "--endpoint", address)
        say("How good is that? 1,000 sentences it has never seen")
        dragoman(
            *("evaluate", "--endpoint", address),
            *("--source", corpus / "test.en", "--reference", corpus / "test.de"),
        )
        say("Is it as good while twenty sentences a second come in? Every answer is checked")
        code = dragoman(
            *("loadtest", "--endpoint", address, "--out", folder / "loadtest"),
            *("--corpus", corpus / "test.en", "--reference", corpus / "test.de"),
            *("--rate", 20, "--duration", "8s", "--warm-up", "5s"),
            accepted=(0, CLIENT_WAS_LATE),
        )
        if code == CLIENT_WAS_LATE:
            print("This machine was too busy to time a server; the answers were checked all the same.")
    say("Everyday English: the starter, the model that comes with the package")
    with served(STARTER, folder) as address:
        for sentence in EVERYDAY:
            dragoman("translate", sentence, "--endpoint", address)
    say(f"Done in {time.monotonic() - started:.0f} seconds; the bundle is in {models / 'toy-en-de' / '1'}")


if __name__ == "__main__":
    main()
