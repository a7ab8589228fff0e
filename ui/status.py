"""The line that says which model is speaking, and how far it is."""

from collections.abc import Mapping
from html import escape
from typing import Any

from ui.client import Health

_WORDS = {
    "loading": "Loading the model",
    "failed": "The model could not be loaded",
    "unhealthy": "The model is failing",
    "unreachable": "The server does not answer",
}


def status_html(health: Health, info: Mapping[str, Any]) -> str:
    if not health.is_ready:
        words = _WORDS.get(health.state, "The model is not ready")
        detail = f": {health.detail}" if health.detail else ""
        dot = "wait" if health.state == "loading" else "bad"
        return _line(dot, f"<span>{escape(words + detail)}</span>")
    facts = " · ".join(_facts(info))
    name = escape(str(info.get("model_id") or "model"))
    parts = [f'<strong title="{name}">{name}</strong>']
    if facts:
        parts.append(f'<span class="facts">{escape(facts)}</span>')
    if info.get("is_demo"):
        parts.append(
            '<span class="demo">Demo model: tiny, and right only about what it was taught. '
            "Choose a real one with <code>--model-id</code>.</span>"
        )
    return _line("ready", "".join(parts))


def _facts(info: Mapping[str, Any]) -> list[str]:
    names = {"cuda": "GPU", "cpu": "CPU", "mps": "Apple GPU"}
    device = str(info.get("model_device_type") or "")
    dtype = str(info.get("model_dtype") or "").removeprefix("torch.")
    found = [str(info.get("quantize") or ""), dtype, names.get(device, device)]
    return [fact for fact in found if fact and fact != "None"]


def _line(dot: str, inner: str) -> str:
    return f'<div class="model-line" role="status"><span class="dot {dot}" aria-hidden="true"></span>{inner}</div>'
