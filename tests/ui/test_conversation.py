from ui.conversation import api_messages, settled, text_of
from ui.markdown import shield


def block(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def test_blocks_become_plain_messages_and_the_system_prompt_comes_first() -> None:
    history = [{"role": "user", "content": block("hi")}, {"role": "assistant", "content": block("hello")}]
    assert api_messages(history, "again", " be brief ") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "again"},
    ]


def test_thoughts_and_notices_are_not_sent_back() -> None:
    history = [
        {"role": "user", "content": block("hi")},
        {"role": "assistant", "content": block("hmm"), "metadata": {"title": "Thinking"}},
        {"role": "assistant", "content": block("hello"), "metadata": None},
        {"role": "user", "content": block("lost")},
        {"role": "assistant", "content": block("oops"), "metadata": {"title": "⚠️ The server is busy"}},
    ]
    assert api_messages(history, "again") == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "lost\n\nagain"},
    ]


def test_files_and_strange_entries_are_left_out() -> None:
    assert text_of([{"type": "file", "file": {"path": "/etc/passwd"}}, {"type": "text", "text": "x"}]) == "x"
    assert api_messages([{"role": "tool", "content": "x"}, {"role": "user", "content": None}], "m") == [
        {"role": "user", "content": "m"}
    ]


def test_the_model_reads_its_own_words_not_what_was_shown_of_them() -> None:
    said = 'An image: ![a](http://x/y.png) and <img src="z">.'
    assert api_messages([{"role": "assistant", "content": block(shield(said))}], "m")[0]["content"] == said


def test_a_stopped_answer_leaves_no_spinner() -> None:
    pending = {"role": "assistant", "content": block("hmm"), "metadata": {"title": "Thinking", "status": "pending"}}
    assert settled([pending])[0]["metadata"] == {"title": "Thinking", "status": "done"}
    assert settled([{"role": "user", "content": block("hi")}]) == []
