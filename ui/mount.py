"""The page on the server's own port."""

from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from ui.chat import PageSettings, build_page

HERE = Path(__file__).parent
CSS = HERE / "page.css"
SCRIPT = HERE / "page.js"
ICON = HERE / "assets" / "icon.png"
SANS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]


def mount_page(app: FastAPI, settings: PageSettings) -> FastAPI:
    """Mount the page at `/`, after every route of the API: what is declared first wins."""
    return gr.mount_gradio_app(
        app,
        build_page(settings),
        path="/",
        footer_links=["settings"],
        run_history=False,  # Gradio would keep every run in the browser
        allowed_paths=[],
        favicon_path=str(ICON),
        show_error=settings.show_error,
        max_file_size="1mb",  # nothing here uploads
        ssr_mode=False,  # Spaces turn it on by an environment variable; it starts a Node server
        enable_monitoring=False,
        pwa=True,
        mcp_server=False,
        theme=theme(),
        css_paths=[CSS],
        head=f"<script>{SCRIPT.read_text()}</script>",
    )


def theme() -> gr.themes.Base:
    """Fonts of the system: none is fetched, and the page looks at home."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="zinc", font=SANS, font_mono=MONO).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",  # the default is too pale to read on white
        block_shadow="none",
        block_shadow_dark="none",
    )
