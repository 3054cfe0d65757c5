"""How the answers of OpenAI-shaped routes look, for the OpenAPI document: `schemas_openai` and the routes make them."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import Json

T = TypeVar("T")
CURSORS: list[Json] = [
    {
        "name": "limit",
        "in": "query",
        "description": "Items on a page; above 200 it is lowered to 200.",
        "schema": {"type": "integer", "minimum": 1, "default": 20},
    },
    {"name": "after", "in": "query", "description": "Id of the last item before.", "schema": {"type": "string"}},
]
"""Parameters of the lists that read their query themselves."""


class ListOf(BaseModel, Generic[T]):
    """A page of a list, as OpenAI's pager reads it: `after` of the next one is the id of the last item."""

    object: Literal["list"]
    data: list[T]
    has_more: bool


class FileOut(BaseModel):
    """A dataset as OpenAI's file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    """Unix seconds, as everywhere in these shapes."""
    expires_at: None
    filename: str
    purpose: Literal["fine-tune"]
    status: Literal["processed"]
    status_details: None
    dataset: str
    """Its native id."""
    sha256: str
    rows: int


class DeletedOut(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["file", "model"]
    deleted: Literal[True]


class ServedModelOut(BaseModel):
    """A deployment that answers."""

    id: str
    """What `model` of a request names."""
    object: Literal["model"]
    created: int
    owned_by: str


class ServedModelsOut(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ServedModelOut]


class JobOut(BaseModel):
    """A fine-tuning job: OpenAI's fields, then our own words for where it is."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    error: Json | None
    hyperparameters: Json
    method: Json
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    estimated_finish: int | None
    seed: int
    suffix: str | None
    metadata: dict[str, str]
    integrations: list[Any]
    state: str
    reason: str
    message: str
    kind: Literal["sweep", "run"]
    sweep: str
    """Native id of that."""
    deployment: str | None


class JobEventOut(BaseModel):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: Json


class JobCheckpointOut(BaseModel):
    """A checkpoint that a trial left."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: Json
    sweep: str
    trial: str
    params: Json


class _Asked(BaseModel):
    """What both kinds of completions take. Other fields of OpenAI's are refused by name unless they ask for nothing."""

    model: Annotated[str, Field(min_length=1)]
    """Name of a deployment."""
    stream: bool | None = None
    stream_options: Json | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = None
    """Answers to one prompt; with a seed, answer i is that of seed + i."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """Token id -> what is added to its logit."""
    user: str | None = None
    """Who asks: where a roll-out is sticky, one user is answered by one version."""


class ChatIn(_Asked):
    """OpenAI's chat completion."""

    messages: Annotated[list[Json], Field(min_length=1)]
    """[{role: system, developer, user or assistant; content: text, or a list of parts of type text}]"""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Json | None = None
    """{type: text or json_object}"""


class CompletionIn(_Asked):
    """OpenAI's completion."""

    prompt: str | list[Any]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """0, with echo: the prompt is scored, and nothing generated."""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


def asked(model: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that passes it on unread."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer as OpenAI writes it; with `stream` as server-sent events, the last one [DONE]",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}
