"""tgi-local: settings -> model -> engine -> service -> API and page -> uvicorn. Nothing else wires them."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tgi_local import commands, paths
from tgi_local.api.security import SecurityGate, policy_for
from tgi_local.errors import StartupError
from tgi_local.settings import PROGRAM, Settings, settings_or_exit

logger = logging.getLogger(PROGRAM)


def main(args: Sequence[str] | None = None) -> None:
    """Serve until a signal comes, or run the sub-command that comes first. Exit status 2 for a wrong setting or model."""
    args = sys.argv[1:] if args is None else list(args)
    try:
        status = commands.run(args)
        if status is None:
            status = serve(settings_or_exit(args))
    except StartupError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def serve(settings: Settings) -> int:
    """The exit status. Raises StartupError before anything heavy is imported or loaded."""
    from tgi_local import logs, runtime_info
    from tgi_local.api.http_server import HttpServer, bind
    from tgi_local.model import hub

    _set_environment()
    logs.configure(settings.log_level, settings.json_output)
    runtime_info.log_start(settings)
    listener = bind(settings.hostname, settings.port)
    url = settings.local_url(listener.getsockname()[1])
    source = hub.find(settings.model_id, settings.revision, settings.huggingface_hub_cache)

    from tgi_local.api.context import ApiContext
    from tgi_local.api.server import create_app
    from tgi_local.assembly import bring_up
    from tgi_local.garbage import collect_between_requests
    from tgi_local.metrics import Metrics
    from tgi_local.service import Service

    service = Service(Metrics(), settings.validation_workers)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        loading = asyncio.ensure_future(bring_up(settings, source, service, server.fail))
        collecting = asyncio.ensure_future(collect_between_requests(lambda: service.is_idle))
        yield
        loading.cancel()
        collecting.cancel()

    api = ApiContext.of(service, settings)
    app = create_app(api, lifespan, has_page=not settings.disable_ui, aliases=settings.route_aliases)
    if not settings.disable_ui:
        from ui.chat import PageSettings
        from ui.mount import mount_page

        mount_page(app, PageSettings(url, settings.api_key, api.callers.page_token, not settings.is_space))
    server = HttpServer(
        SecurityGate(app, policy_for(settings)),
        service,
        drain_s=settings.graceful_termination_timeout,
        behind_proxy=settings.is_space,
    )
    logger.info("listening on %s, loading %s", url, source.model_id)
    if settings.desktop:
        from ui import desktop

        window = desktop.find_window()
        if window is not None:
            return server.run_beside(listener, lambda: window(url, PROGRAM))
        desktop.open_browser(url)
    server.run(sockets=[listener])
    return server.exit_status


def _set_environment() -> None:
    """What libraries read while they are imported. Nothing leaves this machine, nothing is written beside the app."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(paths.cache_dir() / "gradio"))
    # Spinning OpenMP threads fall from 12 to 670 ms a step when other programs use the cores (benchmarks/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.pop("API_KEY", None)


if __name__ == "__main__":
    main()
