"""tgi-local: settings -> model -> engine -> service -> API and page -> uvicorn. Nothing else wires them."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tgi_local import paths
from tgi_local.api.security import SecurityGate, SecurityPolicy
from tgi_local.errors import StartupError
from tgi_local.settings import PROGRAM, Settings, settings_or_exit

logger = logging.getLogger(PROGRAM)


def main(args: Sequence[str] | None = None) -> None:
    """Serve until a signal comes. Exit status 2 for a wrong setting or model, 1 for a dead engine."""
    settings = settings_or_exit(args)
    try:
        status = serve(settings)
    except StartupError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def serve(settings: Settings) -> int:
    """The exit status. Raises StartupError before anything heavy is imported or loaded."""
    from tgi_local import logs
    from tgi_local.api.http_server import HttpServer, bind
    from tgi_local.model import hub

    _keep_private()
    logs.configure(settings.log_level, settings.json_output)
    listener = bind(settings.hostname, settings.port)
    url = settings.local_url(listener.getsockname()[1])
    source = hub.find(settings.model_id, settings.revision, settings.huggingface_hub_cache)

    from tgi_local.api.context import ApiContext
    from tgi_local.api.server import create_app
    from tgi_local.assembly import bring_up
    from tgi_local.metrics import Metrics
    from tgi_local.service import Service

    service = Service(Metrics(), settings.validation_workers)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        loading = asyncio.ensure_future(bring_up(settings, source, service, server.fail))
        yield
        loading.cancel()

    api = ApiContext(service, settings.validation_workers, settings.compute_type)
    app = create_app(api, lifespan, has_page=not settings.disable_ui)
    if not settings.disable_ui:
        from ui.chat import PageSettings
        from ui.mount import mount_page

        mount_page(app, PageSettings(url, settings.api_key, show_error=not settings.is_space))
    server = HttpServer(
        SecurityGate(app, _policy(settings)),
        service,
        drain_s=settings.graceful_termination_timeout,
        behind_proxy=settings.is_space,
    )
    logger.info("listening on %s, loading %s", url, source.model_id)
    server.run(sockets=[listener])
    return server.exit_status


def _policy(settings: Settings) -> SecurityPolicy:
    """Host names guard the keyless loopback case; with a key, or on a Space, any name is served."""
    is_guarded = settings.api_key is None and not settings.is_space
    return SecurityPolicy(
        api_key=settings.api_key,
        allowed_hosts=("localhost", "127.0.0.1", "[::1]") if is_guarded else None,
        allowed_origins=tuple(settings.cors_allow_origin),
        max_body_bytes=settings.payload_limit,
        frame_ancestors="https://huggingface.co" if settings.is_space else "'none'",
    )


def _keep_private() -> None:
    """Nothing leaves this machine, and nothing is written beside the app. Set before Gradio is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(paths.cache_dir() / "gradio"))
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.pop("API_KEY", None)


if __name__ == "__main__":
    main()
