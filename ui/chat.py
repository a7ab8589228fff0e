"""The chat page, built once; everything it knows about the model it asks the server."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.events import Dependency

from ui.client import ApiClient
from ui.conversation import settled
from ui.status import status_html
from ui.turn import Turns

EXAMPLES = (
    "What is deep learning?",
    "Are tomatoes vegetables?",
    "Count to 10",
    "How do I call this app from Python?",
)
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
PLACEHOLDER = "Message"
# Our own HTML, escaped where it is made. Not gr.HTML: that evaluates strings as JavaScript, which a good CSP forbids.
RAW: dict[str, Any] = {"sanitize_html": False, "latex_delimiters": []}
HIDDEN: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class PageSettings:
    base_url: str
    api_key: str | None
    page_token: str = ""  # with it the API believes whom a turn is for
    show_error: bool = True  # the text of unforeseen errors; off where strangers visit
    title: str = "tgi-local"
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    max_tokens_limit: int = 4096
    loading_patience_s: float = 600.0  # how long a message waits for a model that is still loading
    poll_s: float = 1.0  # how often the page asks how far the loading is


@dataclass(frozen=True)
class Controls:
    system_prompt: gr.Textbox
    temperature: gr.Slider
    top_p: gr.Slider
    max_tokens: gr.Slider

    def all(self) -> list[gr.components.Component]:
        return [self.system_prompt, self.temperature, self.top_p, self.max_tokens]


def build_page(settings: PageSettings) -> gr.Blocks:
    api = ApiClient(settings.base_url, settings.api_key, settings.page_token)
    with gr.Blocks(title=settings.title, fill_height=True, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        with gr.Row(elem_id="top-line"):
            gr.Markdown(f"<h1>{escape(settings.title)}</h1>", elem_id="title", **RAW)
            status = gr.Markdown("", elem_id="status", **RAW)
        with gr.Accordion("Model settings", open=False, elem_id="model-settings") as drawer:
            controls = _controls(settings)
        drawer.unrender()  # ChatInterface wants its inputs made before it, and they belong below it
        figures = gr.Markdown("", elem_id="figures", render=False, **RAW)
        chat = _chat_interface(Turns(api, settings.loading_patience_s), controls, figures)
        figures.render()
        drawer.render()
        _stop_everything(page, chat)
        _watch_server(page, api, settings, status, controls)
    # The engine queues and batches; a limit here would only make people wait for each other.
    page.queue(default_concurrency_limit=None, max_size=None)
    return page


def _controls(settings: PageSettings) -> Controls:
    limit = settings.max_tokens_limit
    return Controls(
        gr.Textbox("", label="System prompt", lines=2, max_lines=8, placeholder="You are a helpful assistant."),
        gr.Slider(
            0, 2, settings.temperature, step=0.05, label="Temperature", info="0 always takes the likeliest token."
        ),
        gr.Slider(
            0.05, 1, settings.top_p, step=0.05, label="Top p", info="1 draws from all tokens, less from the likelier."
        ),
        gr.Slider(1, limit, settings.max_tokens, step=1, label="Max tokens", info="The longest an answer may get."),
    )


def _chat_interface(turns: Turns, controls: Controls, figures: gr.Markdown) -> gr.ChatInterface:
    chatbot = gr.Chatbot(
        label="Conversation",
        show_label=False,
        elem_id="chatbot",
        scale=1,
        height="auto",
        min_height=160,
        layout="bubble",
        buttons=["copy", "copy_all"],
        latex_delimiters=LATEX,
        sanitize_html=True,
        allow_tags=True,  # Gradio's word for: show tags that are not HTML as text (`vector<int>`), drop none
        feedback_options=None,
        placeholder="<center>\n\n## Ask away\nThe answer is computed on the machine that serves this page.\n\n</center>",
        render=False,
    )
    return gr.ChatInterface(
        turns.respond,
        chatbot=chatbot,
        textbox=gr.Textbox(
            label="Message",
            placeholder=PLACEHOLDER,
            elem_id="message",
            autofocus=True,
            max_lines=12,
            scale=7,
            submit_btn=True,
            stop_btn=True,
            render=False,
        ),
        additional_inputs=controls.all(),
        additional_outputs=[figures],
        examples=[[example] for example in EXAMPLES],
        cache_examples=False,
        editable=True,
        flagging_mode="never",
        save_history=False,
        analytics_enabled=False,
        concurrency_limit=None,
        show_progress="hidden",
        api_name="chat",
        api_description="Chat with the model. Programs should rather use the HTTP API at /v1/chat/completions.",
    )


def _stop_everything(page: gr.Blocks, chat: gr.ChatInterface) -> None:
    """Gradio's Stop leaves out the answer to an edited message; this one ends every running answer of the page."""

    def busy() -> gr.Textbox:
        return gr.Textbox(submit_btn=False, stop_btn=True)

    def idle() -> gr.Textbox:
        return gr.Textbox(submit_btn=True, stop_btn=False, interactive=True, placeholder=PLACEHOLDER)

    def stopped(history: list[dict[str, Any]]) -> tuple[gr.Textbox, Any]:
        return idle(), settled(history) or gr.skip()

    answers = {index: fn for index, fn in page.fns.items() if fn.name == "_submit_fn"}
    if not answers:
        raise RuntimeError("gradio's ChatInterface changed: its answering events were not found")
    for index, fn in answers.items():
        Dependency(chat.chatbot, fn.get_config(), index, fn.fn).then(idle, None, chat.textbox, **HIDDEN)
    chat.chatbot.edit(busy, None, chat.textbox, **HIDDEN)
    configs = [fn.get_config() for fn in answers.values()]
    chat.textbox.stop(stopped, chat.chatbot, [chat.textbox, chat.chatbot], cancels=configs, **HIDDEN)


def _watch_server(
    page: gr.Blocks, api: ApiClient, settings: PageSettings, status: gr.Markdown, controls: Controls
) -> None:
    """Ask how the model is until it is ready, then take over its recommended sampling and stop asking."""
    timer = gr.Timer(settings.poll_s)

    async def look() -> tuple[Any, ...]:
        health = await api.health()
        if not health.is_ready:
            return status_html(health, {}), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        info = await api.info()
        return (status_html(health, info), gr.Timer(active=False), *_recommended(info, settings))

    outputs = [status, timer, controls.temperature, controls.top_p, controls.max_tokens]
    page.load(look, None, outputs, **HIDDEN)
    timer.tick(look, None, outputs, **HIDDEN)


def _recommended(info: dict[str, Any], settings: PageSettings) -> tuple[Any, Any, Any]:
    # The server says null where the checkpoint recommends nothing; a slider would take that for its minimum.
    defaults = {name: value for name, value in (info.get("generation_defaults") or {}).items() if value is not None}
    limit = info.get("max_total_tokens") or settings.max_tokens_limit
    return (
        gr.Slider(value=defaults.get("temperature", settings.temperature)),
        gr.Slider(value=defaults.get("top_p", settings.top_p)),
        gr.Slider(maximum=limit, value=min(settings.max_tokens, max(1, limit // 2))),
    )
