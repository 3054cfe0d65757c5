"""What the API takes and shows of feedback."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from service.clock import Moment, rfc3339
from service.models_feedback import Feedback
from service.schemas import NAME, Json

_MOST_TEXT = 1 << 20
Text = Annotated[str, Field(min_length=1, max_length=_MOST_TEXT)]


class MessageIn(BaseModel):
    """One message of the talk that was answered."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Text


class AnswerIn(BaseModel):
    """One answer, as it was read."""

    model_config = ConfigDict(extra="forbid")

    completion: Annotated[str, Field(pattern=r"^(chatcmpl|cmpl)-[0-9a-zA-Z_-]{1,80}$")]
    """`id` of the completion."""
    model: Annotated[str, Field(min_length=1, max_length=63)]
    """The deployment that was asked."""
    content: Text
    fingerprint: Annotated[str, Field(max_length=127)] | None = None
    """`system_fingerprint` of the completion: the version that answered."""


class FeedbackIn(BaseModel):
    """A thumb for one answer, or a preference between two answers to the same messages.

    The service keeps neither prompts nor answers; what is judged is sent with the judgement, and kept from then on.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"oneOf": [{"required": ["rating"]}, {"required": ["rejected"]}]},
    )

    messages: Annotated[list[MessageIn], Field(min_length=1, max_length=200)]
    """The talk up to the answer; the last one is the user's."""
    answer: AnswerIn
    """The answer that is judged; beside `rejected`, the better one."""
    rating: Literal["up", "down"] | None = None
    rejected: AnswerIn | None = None
    """The answer that is worse than `answer`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.rating is None) == (self.rejected is None):
            raise PydanticCustomError("feedback", "send one of rating (up or down) and rejected (the worse answer)")
        if self.messages[-1].role != "user":
            raise PydanticCustomError("feedback", "the last message must be the user's: the answer stands in `answer`")
        if self.rejected is not None and self.rejected.content == self.answer.content:
            raise PydanticCustomError("feedback", "both answers are the same text: there is nothing to prefer")
        return self


class FeedbackDatasetIn(BaseModel):
    """Which feedback becomes a dataset."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """Of the dataset."""
    model: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Of this deployment alone; of a preference, the better answer counts."""
    since: Moment | None = None
    """What was sent from then on."""


class JudgedOut(BaseModel):
    """One answer, and who gave it."""

    completion: str
    content: str
    model: str
    deployment: str
    """Id of the deployment that had the name when the feedback came."""
    revision: int
    """Of the deployment then."""
    model_version: int | None
    """Of the registry's model that it follows, where it follows one."""
    fingerprint: str | None
    """As the answer said it; tells versions apart while two of them answer."""


class FeedbackOut(BaseModel):
    """One judgement."""

    id: str
    object: Literal["feedback"] = "feedback"
    created_at: str
    created_by: str
    """Id of the key."""
    messages: list[Json]
    answer: JudgedOut
    rating: Literal["up", "down"] | None
    rejected: JudgedOut | None


def feedback_json(row: Feedback) -> Json:
    """One judgement as the API shows it."""
    shown: dict[str, Any] = {
        "id": row.id,
        "created_at": rfc3339(row.created_at),
        "created_by": row.created_by,
        "messages": row.messages,
        "answer": row.answer,
        "rating": row.rating,
        "rejected": row.rejected,
    }
    return FeedbackOut(**shown).model_dump(mode="json")
