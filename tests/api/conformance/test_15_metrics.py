"""What TGI's published Grafana dashboard asks Prometheus for has data here after some traffic."""

import re

import pytest

from tests.api.conformance.raw import get, open_request, post
from tests.serving import Server

# Every selector of the dashboard's panels, without the label that Kubernetes adds.
SELECTORS = """
tgi_request_count tgi_request_success tgi_request_failure{err="validation"}
tgi_request_duration_bucket tgi_request_queue_duration_bucket tgi_request_mean_time_per_token_duration_bucket
tgi_request_input_length_bucket tgi_request_generated_tokens_bucket tgi_request_generated_tokens_sum
tgi_request_generated_tokens_count tgi_queue_size tgi_batch_current_size tgi_batch_current_max_tokens
tgi_batch_concat{reason="chunking"} tgi_batch_concat_duration_bucket{method="decode"}
tgi_batch_inference_duration_bucket{method="prefill"} tgi_batch_inference_duration_bucket{method="decode"}
tgi_batch_forward_duration_bucket{method="decode"} tgi_batch_decode_duration_bucket{method="decode"}
tgi_batch_filter_duration_bucket{method="decode"}
""".split()
# Of the dashboard too, but a summary in TGI, so that its panel is empty there; there is no speculation here at all.
EMPTY_IN_TGI = "tgi_request_skipped_tokens_bucket"
OTHERS = """
tgi_request_validation_duration_bucket tgi_request_inference_duration_bucket tgi_request_max_new_tokens_bucket
tgi_batch_next_size_bucket tgi_batch_inference_count{method="prefill"} tgi_batch_inference_success{method="decode"}
""".split()


@pytest.fixture(scope="module")
def samples(_tiny_server: Server) -> list[str]:
    """After a request, one that another joins, and one that is refused."""
    post(_tiny_server, "/generate", {"inputs": "x", "parameters": {"max_new_tokens": 2}})
    post(_tiny_server, "/generate", {"inputs": "x", "parameters": {"top_p": 1.0}})
    long = {"inputs": "x", "parameters": {"max_new_tokens": 3000}}
    running = open_request(_tiny_server, "POST", "/generate_stream", long)
    assert running.recv(1)
    post(_tiny_server, "/generate", {"inputs": "y", "parameters": {"max_new_tokens": 1}})
    running.close()
    _tiny_server.wait_idle()
    answer = get(_tiny_server, "/metrics")
    assert answer.header("content-type") == "text/plain; charset=utf-8"
    return [line for line in answer.body.decode().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("selector", SELECTORS + OTHERS)
def test_a_panel_has_data(samples: list[str], selector: str) -> None:
    name, _, labels = selector.partition("{")
    found = [line for line in samples if re.match(rf"{name}[{{ ]", line) and labels.removesuffix("}") in line]
    assert found, selector
    if name.endswith("_bucket"):
        assert any('le="+Inf"' in line and not line.endswith(" 0.0") for line in found)
    elif name.startswith("tgi_request") or name == "tgi_batch_concat":
        assert not found[0].endswith(" 0.0")


def test_the_panel_that_is_empty(samples: list[str]) -> None:
    assert not [line for line in samples if line.startswith(EMPTY_IN_TGI)]


def test_the_summary(samples: list[str]) -> None:
    """No token is ever speculated, and each one generated says so."""
    lines = dict(line.rsplit(" ", 1) for line in samples if line.startswith("tgi_request_skipped_tokens"))
    quantiles = [
        f'tgi_request_skipped_tokens{{quantile="{q}"}}' for q in ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")
    ]
    assert [lines.pop(quantile) for quantile in quantiles] == ["0.0"] * 7
    assert float(lines.pop("tgi_request_skipped_tokens_count")) >= 2
    assert lines == {"tgi_request_skipped_tokens_sum": "0.0"}


HI = [{"role": "user", "content": "hi"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]


@pytest.mark.parametrize(
    ("path", "body", "received", "failed"),
    [
        ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 1}}, 1, 0),
        ("/tokenize", {"inputs": "x"}, 0, 0),
        ("/chat_tokenize", {"messages": HI}, 1, 0),
        ("/chat_tokenize", {"messages": IMAGE}, 1, 1),
        ("/v1/chat/completions", {"messages": HI, "use_beam_search": True}, 1, 1),
        ("/v1/completions", {"prompt": "x", "mirostat": 2}, 1, 1),
        ("/vertex", {"instances": []}, 1, 1),
        ("/generate", {"inputs": 5}, 0, 0),
        ("/v1/chat/completions", {"messages": HI, "response_format": {"type": "regex"}}, 0, 0),
        ("/generate", b"{", 0, 0),
    ],
)
def test_what_counts_as_a_request(tiny_server: Server, path: str, body: object, received: int, failed: int) -> None:
    """As in TGI: what can be read as one, whether or not it is served; `/tokenize` is none."""

    def counts() -> tuple[float, float]:
        return tiny_server.metric("tgi_request_count"), tiny_server.metric("tgi_request_failure", err="validation")

    before = counts()
    answer = post(tiny_server, path, body)
    assert (answer.status >= 400) is (bool(failed) or (not received and path != "/tokenize"))
    assert tuple(now - then for now, then in zip(counts(), before, strict=True)) == (received, failed)
