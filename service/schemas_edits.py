"""What the API takes and shows of edits of a sweep."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, GetJsonSchemaHandler, RootModel

from service.clock import rfc3339
from service.edits import edit_id
from service.errors import pointer_of
from service.models_edits import SweepEdit
from service.schemas import Json
from sweeps.control import EDITS


class EditBody(RootModel[Json]):
    """The fields of an edit (`sweeps.control`) that its path does not say, taken as they come and validated there."""

    action: ClassVar[str]

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> Json:
        schema = handler(EDITS[cls.action].__pydantic_core_schema__)
        fields = handler.resolve_ref_schema(schema)
        for said in ("action", "trial_id"):  # by the path
            fields["properties"].pop(said, None)
            fields["required"] = [name for name in fields.get("required", ()) if name != said]
        return schema


class PauseBody(EditBody):
    """Nothing."""

    action = "pause"


class ResumeBody(EditBody):
    """Nothing."""

    action = "resume"


class ExtendBody(EditBody):
    """Limits, each the new total."""

    action = "extend"


class SpaceBody(EditBody):
    """Axes that change."""

    action = "space"


class PointBody(EditBody):
    """A point of the space."""

    action = "add_point"


class StopBody(EditBody):
    """Nothing."""

    action = "stop_trial"


class CloneBody(EditBody):
    """What is to be different."""

    action = "clone_trial"


class EditOut(BaseModel):
    """A change that somebody asked for, and what became of it."""

    id: str
    object: Literal["edit"] = "edit"
    sweep: str
    number: int
    """1, 2, ... within the sweep."""
    action: str
    """pause, resume, extend, space, stop_trial, clone_trial, add_point; cancel where it came past the API"""
    edit: Json
    """What was asked."""
    state: str
    """pending, applied or refused"""
    message: str
    """The driver's answer, or why there is none yet."""
    pointer: str | None
    """Of a refused one: JSON pointer into `edit`, to what is wrong."""
    trial: str | None
    """Trial that it is about, or that it made."""
    actor: str
    attempt: int | None
    """Attempt that answered."""
    created_at: str
    answered_at: str | None


def edit_json(row: SweepEdit) -> Json:
    """One edit."""
    return EditOut(
        id=edit_id(row.number),
        sweep=row.sweep_id,
        number=row.number,
        action=row.action,
        edit=row.edit,
        state=row.state,
        message=row.message,
        pointer=pointer_of(row.field.split(".")) if row.field else None,
        trial=row.trial_id,
        actor=row.actor,
        attempt=row.attempt,
        created_at=rfc3339(row.created_at),
        answered_at=rfc3339(row.answered_at) if row.answered_at else None,
    ).model_dump(mode="json")
