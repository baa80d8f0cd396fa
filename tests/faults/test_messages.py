"""Messages nobody means: damaged on the wire, or of texts nobody types. None is the server's fault."""

from __future__ import annotations

import contextlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import pytest
import sentencepiece
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from dragoman.v1.translation_pb2 import DecodingOptions, TranslateRequest, TranslateStreamRequest
from dragoman_server.bundle import Bundle, find_bundles

from .conftest import MODELS

CALLERS = 16
TEXTS_PER_CALL = 32
LONG = "the cat and the dog and " * 80
SOUND = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
"""What a message may end a call with: neither UNKNOWN, INTERNAL nor UNAVAILABLE, nor a wait without end."""

_OPTIONS = {"beam_size": 2, "n_best": 2, "length_penalty": 0.8, "max_output_tokens": 20}
VALID = {
    "dragoman.v1.TranslateRequest": [
        {"texts": ["The cat sleeps.", "He sings in the garden."], "options": _OPTIONS},
        {"texts": ["The dog sleeps."], "source_language": "en", "target_language": "de"},
    ],
    "dragoman.v1.TranslateStreamRequest": [
        {"text": "I would like to drink some water.", "options": _OPTIONS},
        {"text": "The cat sleeps. He sings.", "source_language": "en", "target_language": "de"},
    ],
    "dragoman.v1.ListModelsRequest": [{}],
    "dragoman.v1.GetModelRequest": [{"name": "en-de"}],
    "grpc.health.v1.HealthCheckRequest": [{"service": "dragoman.v1.TranslationService"}],
    "grpc.health.v1.HealthListRequest": [{}],
    "grpc.reflection.v1alpha.ServerReflectionRequest": [
        {"list_services": "*"},
        {"host": "here", "file_containing_symbol": "dragoman.v1.TranslationService"},
        {"file_by_filename": "dragoman/v1/translation.proto"},
        {
            "file_containing_extension": {
                "containing_type": "dragoman.v1.DecodingOptions",
                "extension_number": 1,
            }
        },
        {"all_extension_numbers_of_type": "dragoman.v1.DecodingOptions"},
    ],
}
"""Messages that are mutated, by the type that a method takes."""


@dataclass(frozen=True)
class Method:
    """A method of any service on the port."""

    descriptor: MethodDescriptor
    valid: list[bytes]

    def status(self, channel: grpc.Channel, message: bytes) -> str:
        """What a call with these bytes ends with."""
        path = f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"
        try:
            if self.descriptor.client_streaming:
                for _ in channel.stream_stream(path)(iter([message]), timeout=60):
                    pass
            elif self.descriptor.server_streaming:
                replies = channel.unary_stream(path)(message, timeout=60)
                for _ in replies:
                    if self.descriptor.name == "Watch":  # it ends with the server
                        replies.cancel()
                        return "OK"
            else:
                channel.unary_unary(path)(message, timeout=60)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def methods_of(channel: grpc.Channel) -> list[Method]:
    """Every method that reflection tells of."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    found = []
    for service in database.get_services():
        for method in pool.FindServiceByName(service).methods:
            message = GetMessageClass(method.input_type)
            seeds = VALID[method.input_type.full_name]
            found.append(Method(method, [ParseDict(seed, message()).SerializeToString() for seed in seeds]))
    return found


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    return varint(number << 3 | wire_type) + payload


def of_bytes(number: int, content: bytes) -> bytes:
    return field(number, 2, varint(len(content)) + content)


Mutation = Callable[[random.Random, bytes], bytes]


def flip_bits(rng: random.Random, message: bytes) -> bytes:
    damaged = bytearray(message or b"\0")
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(rng: random.Random, message: bytes) -> bytes:
    return message[: rng.randrange(len(message) + 1)]


def double_a_part(rng: random.Random, message: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(message) + 1) for _ in range(2))
    return message[:end] + message[start:end] * rng.randint(1, 50) + message[end:]


def repeat_all(rng: random.Random, message: bytes) -> bytes:
    return message * rng.randint(2, 100)


def add_unknown_fields(rng: random.Random, message: bytes) -> bytes:
    payloads = {0: varint(rng.getrandbits(64)), 1: bytes(8), 2: varint(5) + b"extra", 5: bytes(4)}
    for _ in range(rng.randint(1, 20)):
        wire_type = rng.choice(list(payloads))
        message += field(rng.randint(100, 2**29 - 1), wire_type, payloads[wire_type])
    return message


def give_wrong_types(rng: random.Random, message: bytes) -> bytes:
    wire_type = rng.choice([0, 1, 2, 3, 4, 5, 6, 7])
    return message + field(rng.randint(0, 8), wire_type, rng.randbytes(rng.randint(0, 16)))


def give_a_huge_varint(rng: random.Random, message: bytes) -> bytes:
    payload = b"\xff" * rng.randint(4, 12) + b"\x01"
    return message + rng.choice(
        [
            field(rng.randint(1, 5), 0, payload),
            field(4, 2, payload),
            of_bytes(5, field(1, 0, payload)),
            payload,
        ]
    )


def set_an_option(rng: random.Random, message: bytes) -> bytes:
    numbers = [0, 1, 2, 3, 7, 8, 9, 255, 2**31 - 1, 2**31, 2**32 - 1]
    options = b"".join(field(number, 0, varint(rng.choice(numbers))) for number in (1, 2, 4))
    return message + of_bytes(5, options + field(3, 5, rng.randbytes(4)))


def give_invalid_utf8(rng: random.Random, message: bytes) -> bytes:
    wrong = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", rng.randbytes(20)]
    return message + of_bytes(rng.randint(1, 7), b"text " + rng.choice(wrong))


def give_a_long_string(rng: random.Random, message: bytes) -> bytes:
    return message + of_bytes(rng.randint(1, 7), b"a" * rng.choice([32_768, 32_769, 200_000, 1_000_000]))


def nest_deeply(rng: random.Random, message: bytes) -> bytes:
    nested = b""
    for _ in range(rng.choice([10, 99, 101, 500])):
        nested = of_bytes(5, nested)
    return message + rng.choice([nested, field(5, 3, b"") * 500])


def be_random(rng: random.Random, message: bytes) -> bytes:
    return rng.randbytes(rng.randint(0, 200))


MUTATIONS: list[Mutation] = [
    *(flip_bits, truncate, double_a_part, repeat_all, add_unknown_fields, give_wrong_types),
    *(give_a_huge_varint, set_an_option, give_invalid_utf8, give_a_long_string, nest_deeply, be_random),
]


def test_mutated_messages_are_the_callers_fault(serving, figures, full) -> None:
    count = 10_000 if full else 300
    with serving() as server, server.channel() as channel, ThreadPoolExecutor(CALLERS) as pool:
        methods = methods_of(channel)
        assert {"Translate", "TranslateStream"} <= {method.descriptor.name for method in methods}
        for method in methods:
            assert {method.status(channel, message) for message in method.valid} == {"OK"}

        def outcome(number: int) -> tuple[str, str, str]:
            rng = random.Random(number)
            method, mutation = methods[number % len(methods)], rng.choice(MUTATIONS)
            message = mutation(rng, rng.choice(method.valid))
            return method.status(channel, message), method.descriptor.name, mutation.__name__

        # The first ones give memory the size that such requests need.
        outcomes = list(pool.map(outcome, range(count // 10)))
        with server.unharmed():
            outcomes += pool.map(outcome, range(count // 10, count))
    unsound = Counter(one for one in outcomes if one[0] not in SOUND)
    codes = Counter(code for code, *_ in outcomes)
    figures(f"{count:,} mutated messages", "codes", str(dict(codes)), "neither UNKNOWN nor INTERNAL")
    assert not unsound
    assert codes["INVALID_ARGUMENT"] > 0


def pieces() -> Iterator[str]:
    """What the vocabulary consists of, control ids included, as somebody would type it."""
    [(path, *_)] = [list(versions.values()) for versions in find_bundles(MODELS).values()]
    bundle = Bundle.open(path)
    model = bundle.read(bundle.manifest.tokenizers.source)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for number in range(processor.get_piece_size()):
        yield processor.id_to_piece(number)


def codepoints(step: int) -> Iterator[str]:
    """Texts of the characters of every plane, the first and last of each included; without surrogates."""
    for plane in range(0, sys.maxunicode + 1, 0x10000):
        numbers = [*range(plane, plane + 0x10000, step), plane + 0xFFFE, plane + 0xFFFF]
        characters = [chr(number) for number in numbers if not 0xD800 <= number <= 0xDFFF]
        for start in range(0, len(characters), 64):
            yield "".join(characters[start : start + 64])


def controls() -> Iterator[str]:
    """Every control character and every one that changes direction or joins, within a text and alone."""
    others = [0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
    for number in [*range(0x20), *range(0x7F, 0xA0), *others]:
        yield chr(number)
        yield f"The cat{chr(number)} sleeps."


ODD = {
    "NUL": ["\0", "\0" * 1000, "The cat\0sleeps."],
    "combining marks": ["a" + "\u0301" * 1000, "\u0301" * 1000, "The cat" + "\u0489" * 1000 + " sleeps."],
    "nothing": ["", " ", "\n", "\r\n\t \u3000"],
}


@pytest.mark.parametrize("kind", ["pieces", "planes", "controls", *ODD])
def test_odd_texts_are_translated(serving, figures, full, kind) -> None:
    kinds: dict[str, Callable[[], list[str]]] = {
        "pieces": lambda: list(pieces()) if full else list(pieces())[:10] + list(pieces())[10::40],
        "planes": lambda: list(codepoints(step=64 if full else 2048)),
        "controls": lambda: list(controls()),
    }
    texts = kinds.get(kind, lambda: ODD.get(kind, []))()
    options = DecodingOptions(beam_size=1)
    with serving() as server, server.stub() as stub, contextlib.ExitStack() as stack:
        # The room for long texts is taken once and kept: what is to be seen is what odd ones take beyond it.
        usual = TranslateRequest(texts=[LONG] * 4, options=options)
        assert stub.Translate(usual, timeout=300).translations
        stack.enter_context(server.unharmed())
        for start in range(0, len(texts), TEXTS_PER_CALL):
            some = texts[start : start + TEXTS_PER_CALL]
            reply = stub.Translate(TranslateRequest(texts=some, options=options), timeout=300)
            assert len(reply.translations) == len(some)
        for text in texts if full else texts[:5]:
            *_, last = stub.TranslateStream(TranslateStreamRequest(text=text, options=options), timeout=300)
            assert last.HasField("final")
    figures(f"odd texts: {kind}", "translated", f"{len(texts):,} of {len(texts):,}", "all")


@pytest.mark.parametrize("character", ["x", "\0", " ", "\u0301", "\U0001f600"])
def test_a_text_of_a_megabyte_is_refused(serving, character) -> None:
    text = character * (1_000_000 // len(character.encode()))
    with serving() as server, server.unharmed(), server.stub() as stub:
        for call in (
            lambda: stub.Translate(TranslateRequest(texts=[text]), timeout=60),
            lambda: list(stub.TranslateStream(TranslateStreamRequest(text=text), timeout=60)),
        ):
            with pytest.raises(grpc.RpcError, match=r"texts?(\[0\])?: \d+ bytes are too many") as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
