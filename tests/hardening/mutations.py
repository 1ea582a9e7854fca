"""Recorded answers and requests, mutated: no error may come of them but the project's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.errors import InvalidRequest, UpstreamError
from qwen_asgi.upstreams import Decoder
from qwen_asgi.upstreams.openai_compatible_decoder import OpenAIDecoder
from qwen_asgi.upstreams.qwen_web_v1_decoder import QwenWebV1Decoder
from qwen_asgi.upstreams.qwen_web_v2_decoder import QwenWebV2Decoder
from tests.hardening.seeds import WORDS, recorded, requests
from tests.hardening.trial import Trial

DECODERS: dict[str, tuple[str, Callable[[], Decoder]]] = {
    "web1": ("web1-*.sse", lambda: QwenWebV1Decoder(incremental=True)),
    "web1 whole": ("web1-*.sse", lambda: QwenWebV1Decoder(incremental=False)),
    "web2": ("web2-*.sse", QwenWebV2Decoder),
    "openai": ("ds-*.sse", OpenAIDecoder),
}


def mutated(source: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds with some of it removed, doubled, replaced, or of another."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.randint(1, 6)):
        start = source.randrange(len(data) + 1)
        end = min(len(data), start + source.choice((1, 2, 8, 40, 200)))
        match source.randrange(6):
            case 0:
                del data[start:end]
            case 1:
                data[start:start] = data[start:end]
            case 2:
                data[start:end] = source.choice(WORDS)
            case 3:
                data[start:start] = source.choice(WORDS)
            case 4 if start < len(data):
                data[start] = source.randrange(256)
            case _:
                other = source.choice(seeds)
                data[start:] = other[source.randrange(len(other) + 1) :]
    return bytes(data)


def run_decoders(trial: Trial, *, inputs: int) -> None:
    """`inputs` for each decoder."""
    for name, (pattern, make) in DECODERS.items():
        seeds = recorded(pattern)
        source = random.Random(f"{name} {inputs}")
        for _ in range(inputs):
            data = mutated(source, seeds)
            trial.check(_decodes(make(), data, source), f"{name}: {data[:300]!r}")


def _decodes(decoder: Decoder, data: bytes, source: random.Random) -> bool:
    try:
        at = 0
        while at < len(data) and not decoder.complete:
            size = source.choice((1, 7, 64, 4096))
            decoder.feed(data[at : at + size])
            at += size
        decoder.close()
    except UpstreamError:
        decoder.flush()
        return not decoder.complete
    except Exception:
        return False
    return decoder.complete


def run_requests(trial: Trial, *, inputs: int) -> None:
    api = OpenAIChat()
    seeds = requests()
    source = random.Random(inputs)
    for _ in range(inputs):
        data = mutated(source, seeds)
        try:
            api.read(data)
            is_right = True
        except InvalidRequest:
            is_right = True
        except Exception:
            is_right = False
        trial.check(is_right, repr(data[:300]))
