"""The webhook that a submission asks for: as JSON, or as the text of it in a form or in Upload-Metadata."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from headway.api.uploads.multipart_upload import invalid
from headway.shared.errors import InvalidRequest
from headway.shared.settings import Settings
from headway.shared.tasks.models import FieldError, Webhook
from headway.shared.webhooks.address import ENDS, URL_CHARACTERS, clean_url, webhook_to


class AskedWebhook(BaseModel):
    """Who is told of the task's end, by Standard Webhooks."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[
        str,
        AfterValidator(clean_url),
        WithJsonSchema({"type": "string", "format": "uri", "maxLength": URL_CHARACTERS}),
    ]
    events: Annotated[
        list[Literal["completed", "failed", "cancelled"]],
        Field(min_length=1, max_length=10, description="Of which ends; of all, where it is not said"),
    ] = list(ENDS)


def webhook_of(asked: AskedWebhook | str | None, settings: Settings) -> Webhook | None:
    """`asked` is a form's text, or what a JSON body had. Raises InvalidRequest."""
    if asked is None or asked == "":
        return None
    if isinstance(asked, str):
        asked = _read(asked)
    if not settings.webhook_secret:
        raise invalid("webhook", "this server sends none: HEADWAY_WEBHOOK_SECRET, which signs them, is not set")
    return webhook_to(asked.url, asked.events)


def _read(text: str) -> AskedWebhook:
    try:
        return AskedWebhook.model_validate_json(text)
    except ValidationError as error:
        fields = [FieldError(field=_where(found["loc"]), message=found["msg"]) for found in error.errors()]
    raise InvalidRequest("; ".join(f"{field.field}: {field.message}" for field in fields[:5]), fields)


def _where(place: tuple[Any, ...]) -> str:
    return ".".join(map(str, ("webhook", *place)))
