"""What the routes need, kept on the app's state."""

from dataclasses import dataclass

from starlette.requests import Request

from tgi_local import __version__
from tgi_local.service import Service


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The service and the few settings that shape answers."""

    service: Service
    validation_workers: int
    compute_type: str | None
    chat_first: bool = False  # how /invocations takes a body that fits several dialects

    @property
    def shown_compute_type(self) -> str:
        info = self.service.info
        return self.compute_type or (info.compute_type if info is not None else "cpu")

    @property
    def fingerprint(self) -> str:
        return f"{__version__}-native"


def context(request: Request) -> ApiContext:
    found: ApiContext = request.app.state.api
    return found
