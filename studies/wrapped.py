"""Markdown whose lines break at 120 characters."""

import re
import textwrap

__all__ = ["WIDTH", "wrapped"]

WIDTH = 120
_ITEM = re.compile(r"^(\s*)([-*]|\d+\.) ")
_FIXED = re.compile(r"^\s*(\||#|<|!\[|$)")
"""Beginnings of lines that are no running text: tables, headings, comments, pictures, empty lines."""
_CODE = re.compile(r"`[^`]{1,90}`")
_GLUE = "\0"
"""Stands for a space in code, which is not broken."""


def wrapped(text: str) -> str:
    r"""Return Markdown with every paragraph and list item that has a line over 120 characters broken anew.

    Tables, headings, code, comments, and paragraphs whose lines are all short enough stay as they are.

    >>> print(wrapped("- " + "word " * 30).count("\n"))
    1
    """
    lines: list[str] = []
    block: list[str] = []
    in_code = False
    for line in [*text.splitlines(), ""]:
        fence = line.lstrip().startswith("```")
        if in_code or fence or _FIXED.match(line) or line.startswith("    ") or _ITEM.match(line):
            lines += _broken(block)
            block = []
        if not (in_code or fence) and (_ITEM.match(line) or not (_FIXED.match(line) or line.startswith("    "))):
            block.append(line)
        else:
            lines.append(line)
        in_code ^= fence
    return "\n".join(lines[:-1]) + ("\n" if text.endswith("\n") else "")


def _broken(block: list[str]) -> list[str]:
    """Return the lines of one paragraph or list item, broken anew if one is too long."""
    if all(len(line) <= WIDTH for line in block):
        return block
    item = _ITEM.match(block[0])
    indent = " " * (len(item[0]) if item else len(block[0]) - len(block[0].lstrip()))
    first = item[0] if item else indent
    words = " ".join(line.strip() for line in block).removeprefix(first.strip()).strip()
    whole = _CODE.sub(lambda code: code[0].replace(" ", _GLUE), words)
    lines = textwrap.wrap(
        whole, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(_GLUE, " ") for line in lines]
