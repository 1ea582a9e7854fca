"""What clients get over each dialect, tried with the official one: `python -m tests.conformance`.

The command prints the table that the README holds. Each line is asked for over real sockets, with
the simulated Qwen behind the gateway, and its outcome checked. What comes out right is `native` if
the upstream was asked for it, by whatever name, and `emulated` if the gateway did it; `refused` is
a 400 that names the field, `ignored` a field named in `x-qwen-asgi-ignored`. A line that comes out
wrong fails the command.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
from openai import OpenAI
from pydantic import BaseModel

from qwen_asgi import Gateway, Settings, anonymous
from qwen_asgi.testing import SimulatedQwen, serve
from tests.conftest import DIALECTS, MODEL

ARGUMENTS = {"city": "Paris"}
PIXEL = base64.b64encode(
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15"
    b"\xc4\x89\x00\x00\x00\rIDATx\x9cc\xf8\xcf\xc0\xf0\x1f\x00\x05\x00\x01\xff\x89\x99=\x1d\x00\x00"
    b"\x00\x00IEND\xaeB`\x82"
).decode()
HISTORY: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "My word is maple."},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "Which is it?"},
]


class get_weather(BaseModel):
    """Tells the weather of a city."""

    city: str


class City(BaseModel):
    name: str
    people: int


TOOL: Any = openai.pydantic_function_tool(get_weather)


@dataclass
class Use:
    """One client of one gateway over one dialect."""

    dialect: str
    client: OpenAI
    qwen: SimulatedQwen

    @property
    def is_web(self) -> bool:
        return self.dialect.startswith("qwen-web")

    @property
    def upstream_got(self) -> dict[str, Any]:
        """The body of the last chat that came to the upstream."""
        return next(dict(r.body) for r in reversed(self.qwen.requests) if r.is_chat)

    def ask(self, content: Any = "Hello", **fields: Any) -> Any:
        messages = [{"role": "user", "content": content}]
        given = {"model": MODEL, "messages": messages, **fields}
        return self.client.chat.completions.create(**given)

    def stream(self, content: Any = "Hello", **fields: Any) -> list[Any]:
        return list(self.ask(content, stream=True, **fields))

    def how(self, *names: str) -> str:
        """Return `native` if the upstream was asked with a field of one of these names."""
        text = json.dumps(self.upstream_got)
        return "native" if any(f'"{name}"' in text for name in names) else "emulated"

    def calls(self, *cities: str) -> None:
        """Let the model call the tool, once for each, in the way of its dialect."""
        arguments = [json.dumps({"city": city}) for city in cities]
        self.qwen.tool_calls = [("get_weather", given) for given in arguments]
        texts = [
            f'<tool_call>{{"name": "get_weather", "arguments": {a}}}</tool_call>' for a in arguments
        ]
        self.qwen.reply = "\n".join(texts) if self.is_web else "It is warm."


Feature = Callable[[Use], str]
FEATURES: dict[str, Feature] = {}


def feature(name: str) -> Callable[[Feature], Feature]:
    def add(tried: Feature) -> Feature:
        FEATURES[name] = tried
        return tried

    return add


@feature("an answer in one piece")
def _(use: Use) -> str:
    use.qwen.reply = "Four, 四."
    assert use.ask().choices[0].message.content == "Four, 四."
    return "emulated" if use.upstream_got.get("stream") else "native"


@feature("a stream")
def _(use: Use) -> str:
    use.qwen.reply, use.qwen.pieces = "Four, 四.", 2
    deltas = [chunk.choices[0].delta.content or "" for chunk in use.stream()]
    assert "".join(deltas) == "Four, 四."
    assert len(deltas) > 4
    return use.how("stream")


@feature("usage, `stream_options.include_usage`")
def _(use: Use) -> str:
    assert use.ask().usage.total_tokens > 0
    last = use.stream(stream_options={"include_usage": True})[-1]
    assert last.choices == []
    assert last.usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in use.stream())
    return "native"


@feature("a conversation with a system turn")
def _(use: Use) -> str:
    use.qwen.reply = lambda body: "maple" if "maple" in json.dumps(body) else "?"
    assert use.ask(messages=HISTORY).choices[0].message.content == "maple"
    assert "Be brief." in json.dumps(use.upstream_got)
    return "native" if len(use.upstream_got["messages"]) == len(HISTORY) else "emulated"


@feature("`developer` turns")
def _(use: Use) -> str:
    turns = [{"role": "developer", "content": "Be brief."}, HISTORY[-1]]
    assert use.ask(messages=turns).choices[0].message.content
    assert "Be brief." in json.dumps(use.upstream_got)
    assert "developer" not in json.dumps(use.upstream_got)
    return "emulated"


@feature("thinking, `reasoning_effort`, told in `reasoning_content`")
def _(use: Use) -> str:
    use.qwen.thinking, use.qwen.reply = "Two and two.", "Four."
    chunks = use.stream(reasoning_effort="low")
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks if chunk.choices]
    thought = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    # Generation 2 tells its thinking in summaries, with a heading.
    assert "Two and two." in thought
    assert "".join(delta.get("content") or "" for delta in deltas) == "Four."
    return use.how("thinking_enabled", "enable_thinking", "reasoning_effort")


@feature("no thinking, `enable_thinking: false`")
def _(use: Use) -> str:
    deltas = [c.choices[0].delta for c in use.stream(extra_body={"enable_thinking": False})]
    assert not any("reasoning_content" in delta.model_dump() for delta in deltas)
    return use.how("thinking_enabled", "enable_thinking")


@feature("`thinking_budget`")
def _(use: Use) -> str:
    use.stream(extra_body={"enable_thinking": True, "thinking_budget": 99})
    assert "99" in json.dumps(use.upstream_got)
    return use.how("thinking_budget")


@feature("tools, a call")
def _(use: Use) -> str:
    use.calls("Paris")
    [choice] = use.ask("Weather?", tools=[TOOL]).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert json.loads(call.function.arguments) == ARGUMENTS
    return use.how("tools")


@feature("tools, arguments that stream")
def _(use: Use) -> str:
    use.calls("Paris")
    use.qwen.pieces = 3
    chunks = use.stream("Weather?", tools=[TOOL])
    pieces = [p for c in chunks for p in (c.choices[0].delta.tool_calls or ())]
    assert json.loads("".join(p.function.arguments or "" for p in pieces)) == ARGUMENTS
    assert len(pieces) > 2
    return use.how("tools")


@feature("tools, several calls at once")
def _(use: Use) -> str:
    use.calls("Paris", "Rome")
    calls = use.ask("Weather?", tools=[TOOL]).choices[0].message.tool_calls
    assert [json.loads(c.function.arguments)["city"] for c in calls] == ["Paris", "Rome"]
    assert len({call.id for call in calls}) == 2
    return use.how("tools")


@feature("`tool_choice`: required, or a tool's name")
def _(use: Use) -> str:
    use.calls("Paris")
    for choice in "required", {"type": "function", "function": {"name": "get_weather"}}:
        answer = use.ask("Weather?", tools=[TOOL], tool_choice=choice).choices[0]
        assert answer.finish_reason == "tool_calls"
    return use.how("tool_choice")


@feature("`tool_choice`: none")
def _(use: Use) -> str:
    use.calls("Paris")
    use.qwen.reply = "It is warm."
    answer = use.ask("Weather?", tools=[TOOL], tool_choice="none").choices[0].message
    assert (answer.content, answer.tool_calls) == ("It is warm.", None)
    return use.how("tool_choice")


@feature("results of tools")
def _(use: Use) -> str:
    use.calls("Paris")
    message = use.ask("Weather?", tools=[TOOL]).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21 degrees"}
    use.qwen.reply = lambda body: "warm" if "21 degrees" in json.dumps(body) else "?"
    use.qwen.tool_calls = []
    turns = [HISTORY[-1], message.model_dump(exclude_none=True), result]
    assert use.ask(messages=turns, tools=[TOOL]).choices[0].message.content == "warm"
    return use.how("tool_call_id")


@feature("the older `functions`")
def _(use: Use) -> str:
    use.calls("Paris")
    [choice] = use.ask("Weather?", functions=[TOOL["function"]]).choices
    assert choice.finish_reason == "function_call"
    assert json.loads(choice.message.function_call.arguments) == ARGUMENTS
    return "emulated"


@feature("`response_format`: json_object")
def _(use: Use) -> str:
    use.qwen.reply = '```json\n{"a": 1}\n```' if use.is_web else '{"a": 1}'
    answer = use.ask(response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"a": 1}
    return use.how("response_format")


@feature("`response_format`: json_schema, the client's `parse`")
def _(use: Use) -> str:
    use.qwen.reply = '{"name": "Paris", "people": 2}'
    parse = use.client.chat.completions.parse
    answer = parse(model=MODEL, messages=[HISTORY[-1]], response_format=City)
    assert answer.choices[0].message.parsed == City(name="Paris", people=2)
    return use.how("response_format")


@feature("`stop`")
def _(use: Use) -> str:
    use.qwen.reply, use.qwen.pieces = "one two END three", 2
    [choice] = use.ask(stop=["END"]).choices
    if use.is_web:
        assert (choice.message.content, choice.finish_reason) == ("one two ", "stop")
    return use.how("stop")


@feature("`max_tokens`, `max_completion_tokens`")
def _(use: Use) -> str:
    use.qwen.reply, use.qwen.pieces = "1234567890", 1
    for name in "max_tokens", "max_completion_tokens":
        [choice] = use.ask(**{name: 5}).choices
        if use.is_web:
            assert (choice.message.content, choice.finish_reason) == ("12345", "length")
        else:
            assert use.upstream_got["max_tokens"] == 5
    return "emulated" if use.is_web else "native"


@feature("several choices, `n`")
def _(use: Use) -> str:
    assert [choice.index for choice in use.ask(n=3).choices] == [0, 1, 2]
    return use.how("n")


def _takes(name: str, value: Any) -> Feature:
    """A field that does no more than reach the upstream."""

    def tried(use: Use) -> str:
        create = use.client.chat.completions.with_raw_response.create
        raw = create(model=MODEL, messages=[HISTORY[-1]], extra_body={name: value})
        assert raw.parse().choices[0].message.content
        if name in raw.headers.get("x-qwen-asgi-ignored", ""):
            return "ignored"
        assert use.upstream_got[name] == value
        return "native"

    return tried


FEATURES["`temperature`"] = _takes("temperature", 0.25)
for _name, _value in (
    ("top_p", 0.5),
    ("seed", 7),
    ("presence_penalty", 0.5),
    ("logit_bias", {"1": 2}),
    ("logprobs", True),
    ("user", "u"),
    ("metadata", {"a": "b"}),
):
    FEATURES[f"`{_name}`"] = _takes(_name, _value)


def _part(kind: str, value: Any, marks: str, data: str = "") -> Feature:
    """A part of a message that reaches the upstream; `marks` is what is seen of it there. The web
    chats are given the file that is `data`, in base64, before the message that names it."""

    def tried(use: Use) -> str:
        parts = [{"type": "text", "text": "What is it?"}, {"type": kind, kind: value}]
        assert use.ask(parts).choices[0].message.content
        got = json.dumps(use.upstream_got)
        if use.is_web and data:
            [stored] = use.qwen.storage.stored
            assert stored.data == base64.b64decode(data)
            assert stored.id in got
        else:
            assert marks in got
        return "native"

    return tried


FEATURES["a picture's link"] = _part("image_url", {"url": "https://example.com/a.png"}, "a.png")
FEATURES["a picture inside the request"] = _part(
    "image_url", {"url": f"data:image/png;base64,{PIXEL}"}, PIXEL, PIXEL
)
FEATURES["sound, `input_audio`"] = _part(
    "input_audio", {"data": "AAAA", "format": "wav"}, "AAAA", "AAAA"
)
FEATURES["a file, `file`"] = _part(
    "file",
    {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
    "a.pdf",
    "JVBERg==",
)


@feature("the list of models, `GET /v1/models`")
def _(use: Use) -> str:
    assert MODEL in [model.id for model in use.client.models.list()]
    assert use.client.models.retrieve(MODEL).id == MODEL
    return "native"


@contextmanager
def used(dialect: str) -> Iterator[Use]:
    """Run a simulated upstream, a gateway in front of it, and a client of that."""
    qwen = SimulatedQwen(api_key="k")
    with serve(qwen) as up:
        upstream: Mapping[str, Any] = {"upstream": dialect, "base_url": up + DIALECTS[dialect]}
        gateway = Gateway(
            Settings(**upstream, api_key="k", models=(MODEL,), upload_hosts=(up,)),
            authenticate=anonymous,
        )
        with (
            serve(gateway) as url,
            OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=20) as client,
        ):
            yield Use(dialect, client, qwen)


def outcome(tried: Feature, use: Use) -> str:
    """Return what becomes of a feature. Raises what shows that it comes out wrong."""
    use.qwen.__init__(api_key="k")  # type: ignore[misc]
    try:
        return tried(use)
    except openai.BadRequestError as error:
        if error.code != "unsupported_parameter" or not error.param:
            raise
        return "refused"


def table() -> str:
    """Try everything, and return the table as Markdown."""
    columns = []
    for dialect in DIALECTS:
        with used(dialect) as use:
            columns.append([outcome(tried, use) for tried in FEATURES.values()])
    head = ["what a client asks for", *(f"`{dialect}`" for dialect in DIALECTS)]
    rows = [head, ["---"] * len(head)]
    rows += [[name, *words] for name, *words in zip(FEATURES, *columns, strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(table(), end="")
