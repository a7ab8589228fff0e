import httpx2
import pytest
from huggingface_hub.errors import GenerationError, HfHubHTTPError, OverloadedError, UnknownError

from ui.notices import MAX_MESSAGE, message_of, notice_for


def refusal(status: int, body: object) -> HfHubHTTPError:
    request = httpx2.Request("POST", "http://127.0.0.1/v1/chat/completions")
    return HfHubHTTPError("refused", response=httpx2.Response(status, json=body, request=request))


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (refusal(400, {"error": {"message": "This model's maximum context length is 128"}}), "Too long for this model"),
        (refusal(422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 99"}), "Too long for this model"),
        (refusal(413, {"error": "payload"}), "Too long for this model"),
        (refusal(400, {"error": {"message": "unknown field"}}), "The server refused the request"),
        (refusal(401, {"error": {"message": "no"}}), "The key was not accepted"),
        (refusal(429, {"error": {"message": "overloaded"}}), "The server is busy"),
        (refusal(503, {"error": {"message": "draining"}}), "The model is not ready"),
        (refusal(500, {}), "The model failed to answer"),
        (OverloadedError("overloaded"), "The server is busy"),
        (GenerationError("out of memory"), "The model failed to answer"),
        (httpx2.ConnectError("refused"), "The server cannot be reached"),
        (httpx2.ReadError("reset"), "The connection broke"),
    ],
)
def test_every_failure_has_a_title_and_a_fix(error: Exception, title: str) -> None:
    notice = notice_for(error)
    assert notice.title == title
    assert notice.text


def test_the_servers_own_words_are_kept_and_bounded() -> None:
    assert message_of(refusal(400, {"error": {"message": "top_p is too high"}})) == "top_p is too high"
    assert message_of(UnknownError({"message": "mid-stream", "type": "server_error"})) == "mid-stream"
    assert len(message_of(refusal(400, {"error": "x" * 10_000}))) == MAX_MESSAGE
    assert message_of(refusal(400, ["not", "an", "object"])) == ""


def test_what_had_arrived_is_said_to_be_kept() -> None:
    assert "kept" in notice_for(httpx2.RemoteProtocolError("closed"), mid_answer=True).text
