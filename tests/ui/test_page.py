"""The page in a real browser, on the stand-in server."""

from typing import Any

import pytest

from tests import waiting
from tests.ui.browsing import (
    last_answer,
    message_box,
    open_page,
    send,
    send_button,
    stop,
    stop_button,
    wait_for_answer,
    wait_until_idle,
)
from tests.ui.stand_in import StandIn
from tests.ui.test_markdown import LOADING
from tgi_local.api.exchange import CONTENT_SECURITY_POLICY

LONG = [f"w{n} " for n in range(2000)]


def wait_until(page: Any, condition: Any) -> None:
    """What the page tells meanwhile is heard."""
    waiting.wait_until(lambda: condition() or page.wait_for_timeout(10))


def stop_and_wait_for_the_disconnect(page: Any, stand_in: StandIn) -> None:
    """From the click until the server sees its client gone, in the middle of an answer."""
    seen, finished = len(stand_in.disconnected_at), stand_in.finished
    stop(page)
    wait_until(page, lambda: len(stand_in.disconnected_at) > seen or stand_in.finished > finished)
    assert stand_in.finished == finished, "the answer was not stopped"


def test_a_message_is_answered_and_the_model_is_named(page: Any, stand_in: StandIn) -> None:
    page.locator("#status").get_by_text("stand-in/tiny-chat").wait_for()
    send(page, "Hi there")
    assert wait_for_answer(page, "the stand-in.") == "Hello from the stand-in."
    wait_until_idle(page)
    assert "4 tokens" in page.locator("#figures").inner_text()
    assert stand_in.requests[-1]["messages"] == [{"role": "user", "content": "Hi there"}]
    assert stand_in.headers[-1]["x-page-visitor"] == "the-token 127.0.0.1"

    stand_in.pieces = ["Second."]
    send(page, "And now?")
    wait_for_answer(page, "Second.")
    assert [message["role"] for message in stand_in.requests[-1]["messages"]] == ["user", "assistant", "user"]
    assert stand_in.requests[-1]["messages"][1]["content"] == "Hello from the stand-in."
    assert page.foreign_requests == []


def test_the_answer_streams_and_stop_ends_it(page: Any, stand_in: StandIn) -> None:
    stand_in.pieces, stand_in.delay_s = LONG, 0.02
    send(page, "Talk")
    wait_for_answer(page, "w3")
    assert stand_in.finished == 0
    stop_and_wait_for_the_disconnect(page, stand_in)
    wait_until_idle(page)
    partial = last_answer(page)
    assert partial.startswith("w0 w1") and "w1999" not in partial
    assert stop_button(page).count() == 0
    wait_until(page, lambda: message_box(page).is_enabled())

    stand_in.pieces = ["After."]
    send(page, "Go on")
    wait_for_answer(page, "After.")
    kept = stand_in.requests[-1]["messages"][1]
    assert kept["role"] == "assistant" and kept["content"].startswith("w0 w1")


def test_stop_works_before_the_first_token(page: Any, stand_in: StandIn) -> None:
    stand_in.pieces, stand_in.delay_s = ["", "never"], 60
    send(page, "Talk")
    wait_until(page, lambda: stand_in.requests)
    stop_button(page).wait_for()
    stop_and_wait_for_the_disconnect(page, stand_in)
    wait_until_idle(page)


@pytest.mark.parametrize("way", ["retry", "edit", "example"])
def test_every_way_to_an_answer_can_be_stopped(page: Any, stand_in: StandIn, way: str) -> None:
    if way != "example":
        send(page, "First")
        wait_for_answer(page, "the stand-in.")
        wait_until_idle(page)
    stand_in.pieces, stand_in.delay_s = LONG, 0.02
    if way == "retry":
        page.locator("#chatbot button[title=Retry]").last.click()
    elif way == "edit":
        page.locator("#chatbot button[title=Edit]").last.click()
        page.locator("#chatbot textarea").last.fill("Edited")
        page.locator("#chatbot button[title=Submit]").click()
    else:
        page.get_by_text("Count to 10").click()
    wait_for_answer(page, "w3")
    stop_and_wait_for_the_disconnect(page, stand_in)
    wait_until_idle(page)
    expected = {"retry": "First", "edit": "Edited", "example": "Count to 10"}[way]
    assert stand_in.requests[-1]["messages"] == [{"role": "user", "content": expected}]


def test_closing_the_tab_ends_the_answer(page: Any, stand_in: StandIn) -> None:
    stand_in.pieces, stand_in.delay_s = LONG, 0.02
    send(page, "Talk")
    wait_for_answer(page, "w3")
    page.close()
    waiting.wait_until(lambda: stand_in.disconnected_at or stand_in.finished)
    assert stand_in.finished == 0, "the answer outlived its tab"


def test_the_settings_reach_the_server(page: Any, stand_in: StandIn) -> None:
    page.locator("#model-settings button").first.click()
    page.get_by_label("System prompt").fill("Answer in one word.")
    page.get_by_label("number input for Max tokens").fill("33")
    page.get_by_label("number input for Temperature").fill("0")
    send(page, "Hi")
    wait_for_answer(page, "the stand-in.")
    request = stand_in.requests[-1]
    assert request["messages"][0] == {"role": "system", "content": "Answer in one word."}
    assert (request["max_tokens"], request["temperature"]) == (33, 0)


def test_the_servers_recommended_sampling_is_taken_over(browser: Any, stand_in: StandIn, base_url: str) -> None:
    stand_in.info |= {"generation_defaults": {"temperature": 0.0, "top_p": None}, "max_total_tokens": 128}
    page = open_page(browser, base_url)
    page.locator(".dot.ready").wait_for()
    send(page, "Hi")
    wait_for_answer(page, "the stand-in.")
    # What the server has no opinion of stays as the page has it.
    sent = stand_in.requests[-1]
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0, 0.95, 64)
    page.context.close()


def test_loading_is_shown_and_passes_by_itself(browser: Any, stand_in: StandIn, base_url: str) -> None:
    stand_in.loads("reading weights")
    page = open_page(browser, base_url)
    page.locator("#status").get_by_text("Loading the model: reading weights").wait_for()
    send(page, "Early")
    page.locator("#chatbot").get_by_text("Waiting for the model").wait_for()
    stand_in.health = None
    page.locator("#status").get_by_text("stand-in/tiny-chat").wait_for()
    wait_for_answer(page, "the stand-in.")
    page.context.close()


def test_an_error_becomes_a_notice_and_is_not_sent_back(page: Any, stand_in: StandIn) -> None:
    stand_in.refuse = (429, {"error": {"message": "Model is overloaded"}, "error_type": "overloaded"})
    send(page, "One")
    wait_for_answer(page, "The server is busy")
    wait_until_idle(page)
    stand_in.refuse = None
    send(page, "Two")
    wait_for_answer(page, "the stand-in.")
    assert stand_in.requests[-1]["messages"] == [{"role": "user", "content": "One\n\nTwo"}]


def test_thoughts_are_shown_apart(page: Any, stand_in: StandIn) -> None:
    stand_in.reasoning = ["pondering"]
    send(page, "Think")
    wait_for_answer(page, "the stand-in.")
    page.locator("#chatbot").get_by_text("Thinking").wait_for()


def test_nothing_the_model_writes_makes_the_browser_fetch(page: Any, stand_in: StandIn) -> None:
    hidden = "<div>\n```\n<img src=http://evil.example/a>\n```\n</div>"
    for answered, text in enumerate([*LOADING, hidden], start=1):
        stand_in.pieces = [text, "\n\nTHE END"]
        send(page, "Show me")
        wait_until(page, lambda answered=answered: stand_in.finished == answered)
        wait_until_idle(page)
    page.wait_for_timeout(500)
    assert page.foreign_requests == []
    assert page.locator("#chatbot .bot.message img").count() == 0


def test_the_page_works_under_its_content_security_policy(browser: Any, stand_in: StandIn, base_url: str) -> None:
    page = browser.new_context().new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)

    def with_policy(route: Any) -> None:
        response = route.fetch()
        route.fulfill(
            response=response, headers={**response.headers, "content-security-policy": CONTENT_SECURITY_POLICY}
        )

    page.route(base_url + "/", with_policy)
    page.goto(base_url + "/")
    page.locator(".dot.ready").wait_for()
    stand_in.pieces = ["Maths $$x^2$$\n\n```python\nprint(1)\n```\n\nDONE"]
    send(page, "Hi")
    wait_for_answer(page, "DONE")
    wait_until_idle(page)
    assert complaints == []
    page.context.close()


def test_the_key_stays_on_the_server(page: Any, base_url: str) -> None:
    for path in ("/", "/config", "/gradio_api/info", "/manifest.json"):
        assert "the-key" not in page.request.get(base_url + path).text()


def test_scripts_in_an_answer_do_not_run(page: Any, stand_in: StandIn) -> None:
    stand_in.pieces = [
        "<script>window.hacked = 1</script>\n\nx <img src=x onerror='window.hacked = 1'> <b onclick='window.hacked = 1'>b</b>",
        "\n\n[link](javascript:window.hacked=1) <iframe srcdoc='<script>parent.hacked=1</script>'></iframe> <foo onx=1>",
        "\n\nDONE",
    ]
    send(page, "Hack")
    wait_for_answer(page, "DONE")
    wait_until_idle(page)
    for link in page.locator("#chatbot .bot.message a").all():
        assert not (link.get_attribute("href") or "").startswith("javascript:")
    assert page.evaluate("window.hacked") is None


def test_code_and_unknown_tags_are_shown_as_written(page: Any, stand_in: StandIn) -> None:
    stand_in.pieces = ["Use vector<int> here:\n\n```html\n<img src='a.png'>\n```\n"]
    send(page, "Code")
    answer = wait_for_answer(page, "here:")
    wait_until_idle(page)
    answer = last_answer(page)
    assert "vector<int>" in answer
    assert "<img src='a.png'>" in answer


def test_the_icons_have_names_and_the_focus_returns(page: Any, stand_in: StandIn) -> None:
    assert send_button(page).get_attribute("aria-label") == "Send message"
    assert page.get_by_label("Message", exact=True).count() == 1
    stand_in.pieces, stand_in.delay_s = LONG, 0.02
    send(page, "Talk")
    wait_until(page, lambda: stop_button(page).get_attribute("aria-label") == "Stop the answer")
    stop(page)
    wait_until_idle(page)
    wait_until(page, lambda: page.evaluate("document.activeElement.tagName") == "TEXTAREA")


def test_stopping_leaves_no_spinner(page: Any, stand_in: StandIn) -> None:
    stand_in.reasoning, stand_in.delay_s = ["hmm "] * 2000, 0.02
    send(page, "Think")
    wait_for_answer(page, "hmm")
    stop(page)
    wait_until_idle(page)
    wait_until(page, lambda: page.locator("#chatbot .loading-spinner").count() == 0)


def test_two_people_do_not_wait_for_each_other(browser: Any, page: Any, stand_in: StandIn, base_url: str) -> None:
    stand_in.pieces, stand_in.delay_s = LONG, 0.02
    send(page, "Talk")
    wait_for_answer(page, "w3")
    other = open_page(browser, base_url)
    send(other, "Me too")
    wait_for_answer(other, "w3")
    assert len(stand_in.requests) == 2 and stand_in.finished == 0
    assert "Me too" not in page.locator("#chatbot").inner_text()
    other.context.close()
