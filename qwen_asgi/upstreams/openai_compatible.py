"""Any OpenAI-compatible server that serves Qwen: vLLM, SGLang, llama.cpp, Ollama, TGI, LM Studio.

What the client sent goes on as it is, unknown fields too, but for what these servers read otherwise
than OpenAI does. Source: OpenAI's published API description, and sections 2 to 4 of the wire notes
on Model Studio, whose facts about streams and errors other servers share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from qwen_asgi.chat import ChatRequest, Message, ModelInfo
from qwen_asgi.errors import UpstreamError
from qwen_asgi.transports import UpstreamRequest, UpstreamResponse
from qwen_asgi.upstreams import _openai_errors
from qwen_asgi.upstreams._documents import count_in, listed_models, read_document
from qwen_asgi.upstreams._fields import refuse
from qwen_asgi.upstreams._thinking import wants_thinking
from qwen_asgi.upstreams._words import Secrets
from qwen_asgi.upstreams.field_policy import column
from qwen_asgi.upstreams.openai_compatible_decoder import OpenAIDecoder

HEADERS = {
    "accept": "*/*",
    # A compressed stream comes late and in lumps (quirk Q-40).
    "accept-encoding": "identity",
    "content-type": "application/json",
}


class OpenAICompatible:
    """The dialect `openai`. `base_url` is what the OpenAI client takes: up to and with `/v1`."""

    name = "openai"

    def __init__(
        self,
        base_url: str,
        api_key: str = "",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._base_url = base_url
        self._chat_url = f"{base_url}/chat/completions"
        self._secrets = Secrets(api_key, headers)
        credential = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._headers = {**HEADERS, **credential, **(headers or {})}

    def encode(self, request: ChatRequest) -> UpstreamRequest:
        refuse(request.options, column(self.name).refused, self.name)
        return UpstreamRequest(
            method="POST",
            url=self._chat_url,
            headers=self._headers,
            body=to_json(self._body(request), inf_nan_mode="null"),
        )

    def decoder(self, request: ChatRequest, response: UpstreamResponse) -> OpenAIDecoder:
        return OpenAIDecoder(secrets=self._secrets)

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return _openai_errors.refusal(status, headers, body, secrets=self._secrets)

    def encode_models(self) -> UpstreamRequest:
        return UpstreamRequest(method="GET", url=f"{self._base_url}/models", headers=self._headers)

    def decode_models(self, body: bytes) -> list[ModelInfo]:
        """Read what OpenAI lists, with the length of context as vLLM and others tell it."""
        document = read_document(body)
        error = _openai_errors.failure(document, secrets=self._secrets)
        if error is not None:
            raise error
        return [
            replace(
                self.describe(entry["id"]),
                context=count_in(entry, "max_model_len", "context_length", "context_window"),
            )
            for entry in listed_models(document)
        ]

    def describe(self, model: str) -> ModelInfo:
        return ModelInfo(model)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        options = dict(request.options)
        thinks = wants_thinking(options)
        if thinks is not None:
            # So the chat templates of Qwen's models are told, at vLLM, SGLang and llama.cpp.
            given = options.get("chat_template_kwargs")
            known = given if isinstance(given, Mapping) else {}
            options["chat_template_kwargs"] = {"enable_thinking": thinks, **known}
            options.pop("enable_thinking", None)
        return self._document(request, options)

    def _document(self, request: ChatRequest, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body in OpenAI's form, with these options in the place of the request's."""
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [_message(message) for message in request.messages],
            **options,
            "stream": request.stream,
        }
        if request.stream:
            # What was counted is logged, whether or not the client asks for it.
            body["stream_options"] = {"include_usage": True}
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        return body


def _message(message: Message) -> dict[str, Any]:
    content: Any = message.content
    if not isinstance(content, str):
        # Models and servers without pictures refuse a list, even of text alone (DS-46, Q-82).
        is_text = all(part.kind == "text" for part in content)
        content = message.text if is_text else [part.data for part in content]
    return {"role": message.role, "content": content, **message.extra}
