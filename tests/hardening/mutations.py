"""Recorded answers and requests, mutated: no error may come of them but the project's own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen_asgi.apis.openai_chat import OpenAIChat
from qwen_asgi.errors import InvalidRequest, UpstreamError
from qwen_asgi.upstreams import Decoder
from qwen_asgi.upstreams.openai_compatible_decoder import OpenAIDecoder
from qwen_asgi.upstreams.qwen_web_v1_decoder import QwenWebV1Decoder
from qwen_asgi.upstreams.qwen_web_v2_decoder import QwenWebV2Decoder
from tests.conftest import ask
from tests.hardening.trial import Trial

SAMPLES = Path(__file__).parents[1] / "data" / "wire"

DECODERS: dict[str, tuple[str, Callable[[], Decoder]]] = {
    "web1": ("web1-*.sse", lambda: QwenWebV1Decoder(incremental=True)),
    "web1 whole": ("web1-*.sse", lambda: QwenWebV1Decoder(incremental=False)),
    "web2": ("web2-*.sse", QwenWebV2Decoder),
    "openai": ("ds-*.sse", OpenAIDecoder),
}
WORDS = (
    *(b"\n\n", b"\r\n", b"data: ", b"[DONE]", b"{", b"}", b"[", b"]", b'"', b"\\", b":", b","),
    *(b"null", b"-1", b"1e999", b"\xef\xbb\xbf", b"\xff", b"\x00", b"\\ud800", b"event: error\n"),
    *(b'"phase": "answer"', b'"status": "finished"', b'"response_index": "1"', b"<think>"),
    *(b'"tool_calls": [{}]', b'"finish_reason": "stop"', b'"usage": {}', b'"error": {"code": 1}'),
)


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
        seeds = [path.read_bytes() for path in sorted(SAMPLES.rglob(pattern))]
        assert seeds, pattern
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
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    turns = [
        {"role": "system", "content": "b"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "c"},
    ]
    seeds = [
        json.dumps(ask()).encode(),
        json.dumps(ask(messages=turns, tools=[tool], n=2, stop=["x"])).encode(),
        json.dumps(ask(functions=[{"name": "f"}], function_call={"name": "f"})).encode(),
        json.dumps(ask(stream=True, stream_options={"include_usage": True}, seed=1)).encode(),
    ]
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
