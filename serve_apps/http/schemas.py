"""The bodies of the protocol paths as types, for the OpenAPI document. The fast lane itself does not use them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ChatCompletion",
    "ChatCompletionRequest",
    "Completion",
    "CompletionRequest",
    "EmbeddingList",
    "EmbeddingRequest",
    "InferenceRequest",
    "InferenceResponse",
    "ModelList",
    "ModelMetadata",
    "ModelReady",
    "OpenAIError",
    "Problem",
    "ProtocolError",
    "RepositoryEntry",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class _Closed(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class InputTensor(_Open):
    name: str
    shape: list[int] = Field(min_length=1, description="the first dimension is the number of items")
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
        "BYTES", "JSON",
    ]  # fmt: skip
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = Field(default=None, description="row-major, flat or nested; absent with binary_data_size")


class RequestedOutput(_Open):
    name: str
    parameters: dict[str, Any] | None = None


class InferenceRequest(_Open):
    id: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="priority (1 is the most urgent), timeout (microseconds), and the model's own"
    )
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[RequestedOutput] | None = None


class OutputTensor(_Closed):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferenceResponse(_Closed):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class MetadataTensor(_Closed):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None


class ModelMetadata(_Closed):
    name: str
    versions: list[str]
    platform: str
    inputs: list[MetadataTensor]
    outputs: list[MetadataTensor]


class ServerMetadata(_Closed):
    name: str
    version: str
    extensions: list[str]


class ServerLive(_Closed):
    live: bool


class ServerReady(_Closed):
    ready: bool


class ModelReady(_Closed):
    name: str
    ready: bool


class RepositoryEntry(_Closed):
    name: str
    version: str
    state: str
    reason: str


class ProtocolError(_Closed):
    error: str
    code: str


class OpenAIErrorBody(_Closed):
    message: str
    type: str
    param: str | None
    code: str
    details: dict[str, Any] | None = None


class OpenAIError(_Closed):
    error: OpenAIErrorBody


class Problem(_Closed):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    code: str
    retryable: bool
    details: dict[str, Any] | None = None
    retry_after_s: float | None = None


class ModelCard(_Closed):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Closed):
    object: Literal["list"]
    data: list[ModelCard]


class ChatMessage(_Open):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Generation(_Open):
    model: str
    n: int | None = Field(default=None, ge=1, le=128)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None


class ChatCompletionRequest(_Generation):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class CompletionRequest(_Generation):
    prompt: str | list[str]


class Usage(_Closed):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(_Closed):
    role: Literal["assistant"]
    content: str
    refusal: str | None = None


class ChatChoice(_Closed):
    index: int
    message: AssistantMessage
    finish_reason: str
    logprobs: None = None


class ChatCompletion(_Closed):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(_Closed):
    index: int
    text: str
    finish_reason: str
    logprobs: None = None


class Completion(_Closed):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class EmbeddingRequest(_Open):
    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class Embedding(_Closed):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Closed):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(_Closed):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
