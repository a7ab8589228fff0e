"""What the routes need, kept on the app's state."""

from dataclasses import dataclass, field
from typing import Self

from starlette.requests import Request

from tgi_local.api.callers import Callers
from tgi_local.api.response_store import ResponseStore
from tgi_local.protocol.tgi import TGI_VERSION
from tgi_local.service import Service
from tgi_local.settings import Settings
from tgi_local.types import Caller


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The service, the few settings that shape answers, and the responses that later requests may refer to."""

    service: Service
    validation_workers: int
    compute_type: str | None
    chat_first: bool = False  # how /invocations takes a body that fits several dialects
    isolates_callers: bool = False  # strangers share the server
    callers: Callers = field(default_factory=Callers)
    responses: ResponseStore = field(default_factory=ResponseStore)

    @classmethod
    def of(cls, service: Service, settings: Settings) -> Self:
        return cls(service, settings.validation_workers, settings.compute_type, settings.chat_first, settings.is_space)

    @property
    def shown_compute_type(self) -> str:
        info = self.service.info
        return self.compute_type or (info.compute_type if info is not None else "cpu")

    @property
    def fingerprint(self) -> str:
        """TGI's form, with the version that /info names."""
        return f"{TGI_VERSION}-native"


def context(request: Request) -> ApiContext:
    found: ApiContext = request.app.state.api
    return found


def caller_of(request: Request) -> Caller:
    api = context(request)
    return api.callers.identify(request.scope, isolates=api.isolates_callers)
