"""Grammars that clients write as text, in llama.cpp's GBNF or llguidance's Lark, as one rule of a larger grammar."""

import re

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

MAX_LEN = 32 * 1024
_LARK = re.compile(r"(?m)^\s*(%llguidance\b|[?!]?start\s*(\[.*\])?\s*:(?!:=))")


def rule(text: str, limits: LLParserLimits) -> str:
    """The right side of a rule. Raises ValueError for what is neither, with the place."""
    if len(text) > MAX_LEN:
        raise ValueError(f"a grammar may have at most {MAX_LEN} characters")
    lark = text if _LARK.search(text) else _from_gbnf(text)
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(lark), limits=limits)
    if is_wrong:
        raise ValueError(messages[0])
    return f"%lark {{\n{lark}\n}}"


def _from_gbnf(text: str) -> str:
    """As llama.cpp's, and with alternatives on lines of their own, as xgrammar takes them."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("|") and lines and "#" not in lines[-1]:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.rstrip())
    try:
        return gbnf_to_lark("\n".join(lines) + "\n")
    except GbnfToLarkError as error:
        raise ValueError(f"the grammar is neither GBNF nor Lark: {error}") from None
    except RecursionError:
        raise ValueError("the grammar is nested too deeply") from None
    except Exception as error:  # the converter raises bare ones for rules that are missing or have one name
        raise ValueError(f"the grammar is neither GBNF nor Lark: {error}") from None
