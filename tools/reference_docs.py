"""Write docs/reference/ from the settings, the table of routes and the metrics; --check says whether it is current."""

import argparse
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pydantic.fields import FieldInfo  # noqa: E402

from tgi_local.api.openapi import document  # noqa: E402
from tgi_local.api.operations import OPERATIONS, Operation  # noqa: E402
from tgi_local.bench.options import build_parser  # noqa: E402
from tgi_local.metrics import Metrics  # noqa: E402
from tgi_local.settings import Settings  # noqa: E402
from tgi_local.tgi_flags import NO_EFFECT, NOT_SUPPORTED, TgiFlags  # noqa: E402

FOLDER: Final = ROOT / "docs" / "reference"
NOTE: Final = "<!-- Written by tools/reference_docs.py; `make docs` writes it again. -->"
SCHEMA: Final = Settings.model_json_schema()
SHORT_FLAGS: Final[dict[str, str]] = dict(Settings.model_config["cli_shortcuts"] or {})  # type: ignore[arg-type]
KINDS: Final = {
    "boolean": "switch",
    "integer": "number",
    "number": "number",
    "array": "text, several",
    "string": "text",
}


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a page is out of date")
    check = parser.parse_args(args).check
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
            print(path.relative_to(ROOT))
    return 1 if check and stale else 0


def pages() -> dict[Path, str]:
    texts = {"flags": flags_page(), "bench": bench_page(), "routes": routes_page(), "metrics": metrics_page()}
    return {FOLDER / f"{name}.md": f"{NOTE}\n\n{text.rstrip()}\n" for name, text in texts.items()}


def flags_page() -> str:
    fields = Settings.model_fields
    own = [name for name in fields if name not in TgiFlags.model_fields]
    platforms = [name for name in TgiFlags.model_fields if name.startswith(("aip_", "hf_", "sagemaker_", "sm_"))]
    return "\n\n".join(
        [
            "# Flags and variables",
            "Every flag has an environment variable of the same name in capitals (`--max-total-tokens`, "
            "`MAX_TOTAL_TOKENS`). The command line wins. `tgi-local print-schema` prints the OpenAPI document and ends; "
            "`tgi-local bench` [measures a server](bench.md).",
            table(["Flag", "Variable", "Value", "Default", "Meaning"], [flag_row(name, fields[name]) for name in own]),
            "## Variables of cloud platforms",
            table(["Variable", "Meaning"], [[code(name.upper()), described(fields[name])] for name in platforms]),
            "## TGI's flags that change nothing here",
            "Accepted, so that a command line or a container's variables need no change; the log has a line for each.",
            table(
                ["Flag", "Meaning in TGI", "Why it changes nothing"],
                [[code(flag(name)), described(fields[name]), NO_EFFECT[name]] for name in NO_EFFECT],
            ),
            "## TGI's flags that are refused",
            "With exit status 2 and a line that says why.",
            table(
                ["Flag", "Meaning in TGI", "Why it is refused"],
                [[code(flag(name)), described(fields[name]), NOT_SUPPORTED[name]] for name in NOT_SUPPORTED],
            ),
        ]
    )


def bench_page() -> str:
    actions = [action for action in build_parser()._actions if action.dest != "help"]
    rows = [
        [
            code(action.option_strings[0] if action.option_strings else action.dest),
            ", ".join(code(str(choice)) for choice in action.choices) if action.choices else action.metavar or "",
            action.help or "",
        ]
        for action in actions
    ]
    return "\n\n".join(
        [
            "# Measuring a server",
            "`tgi-local bench` (`make bench ARGS=...`) loads any server of OpenAI's `/v1/completions` or "
            "`/v1/chat/completions` and prints one line per level.",
            table(["Argument", "Value", "Meaning"], [[str(cell) for cell in row] for row in rows]),
            "## What the figures mean",
            BENCH_FIGURES,
        ]
    )


BENCH_FIGURES: Final = """\
* Every request is streamed and greedy, and has a prompt of its own: random words of one token each, found by the server's own
  count of prompt tokens, or token ids with `--token-ids`. A chat template's tokens count as part of the prompt. Each run draws
  new prompts, so that none is in a prefix cache already; what `--shared-prefix-tokens` shares is, after a warm-up request.
* **Throughput** is all tokens of complete answers over the time from the first request to the last answer, the run's
  beginning and end included; tokens are those of the server's `usage`.
* **TTFT** runs from when a request was due to the first event with text, thoughts or a tool call. In an open loop (`--rate`)
  a request is due when it arrives, whether or not a connection is ready.
* **Inter-token** figures are the gaps between such events of one request, of all requests together. An event may hold several
  tokens, or a token show no text yet: `tokens_per_event` says how many there were, and a note under the table says so from 1.1
  on. `time_per_token_ms` in the JSON is one figure per request, (last event - first event) / (tokens - 1), and does not depend
  on how a server packs its events.
* Requests that failed are counted under `errors`, by kind, and nowhere else.
* **client CPU** is the load generator's own share of one core: what it takes from a server on the same machine.
* Exit status: 0, or 1 when a measured request failed, or 2 with one line for wrong arguments and for a server that is not
  there, refuses the key or refuses the first request."""


def flag_row(name: str, field: FieldInfo) -> list[str]:
    short = SHORT_FLAGS.get(name.replace("_", "-"))
    names = code(flag(name)) + (f", `-{short}`" if short else "")
    default = field.default if isinstance(field.default, str | int | float) else ""
    shown = code(str(default).lower() if isinstance(default, bool) else str(default)) if default != "" else ""
    return [names, "" if name == "env" else code(name.upper()), value_of(name), shown, described(field)]


def value_of(name: str) -> str:
    """What a flag takes: its choices, or the kind of its value."""
    schema = SCHEMA["properties"][name]
    for choice in (schema, *schema.get("anyOf", [])):
        if "enum" in choice:
            return ", ".join(code(value) for value in choice["enum"])
    return next(KINDS[choice["type"]] for choice in (schema, *schema.get("anyOf", [])) if choice.get("type") in KINDS)


def routes_page() -> str:
    groups = dict.fromkeys(operation.group for operation in OPERATIONS)
    parts = [
        "# Routes",
        "The same as an OpenAPI 3.0.3 document: `GET /api-doc/openapi.json` or `tgi-local print-schema`; "
        "to read and to try: `/docs`. With an API key set every route needs it, but for those marked *open*. "
        "GET routes answer HEAD, too.",
    ]
    found = document()["paths"]
    for group in groups:
        rows = [route_row(operation, found) for operation in OPERATIONS if operation.group == group]
        parts += [f"## {group}", table(["Method", "Path", "Does", "Body", "Answer", "Statuses"], rows)]
    return "\n\n".join(parts)


def route_row(operation: Operation, paths: dict[str, Any]) -> list[str]:
    responses = paths[operation.path][operation.method]["responses"]
    answer = operation.answer if isinstance(operation.answer, str) else getattr(operation.answer, "__name__", "")
    answers = [code(answer)] if answer else []
    if operation.event is not None:
        event = operation.event
        answers.append("stream of typed events" if isinstance(event, str) else f"stream of {code(event.__name__)}")
    summary = operation.summary + (" (*open*)" if operation.is_public else "")
    body = code(operation.body.__name__) if operation.body else ""
    return [operation.method.upper(), code(operation.path), summary, body, " or ".join(answers), ", ".join(responses)]


def metrics_page() -> str:
    rows = [
        [code(metric.name), metric.kind, ", ".join(code(label) for label in metric.labels), metric.text]
        for metric in Metrics().describe()
    ]
    return "\n\n".join(
        [
            "# Metrics",
            "`GET /metrics`, in Prometheus's text format and under TGI's names, so that dashboards made for TGI work. "
            "Buckets of durations go from 0.15 ms to 146 s in steps of 1.5, those of lengths in a hundred equal steps "
            "up to the model's limits. A step computes prompts and next tokens mixed; one with any prompt in it counts "
            "as `prefill`.",
            table(["Name", "Kind", "Labels", "Meaning"], rows),
        ]
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def code(text: str) -> str:
    return f"`{text}`"


def described(field: FieldInfo) -> str:
    return field.description or ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
