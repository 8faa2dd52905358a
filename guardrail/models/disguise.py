"""See through letters in disguise: a text -> the text as a reader would read it, where that is another one.

Four disguises are undone: letters of other scripts that look like Latin ones, inside a word of Latin letters; Unicode's
styled forms of letters (fullwidth, mathematical: NFKC); digits and signs for letters inside a word (``b4nk``); and
letters set apart (``b a n k``). The result is judged beside the text itself, never in its place: a reading that was not
meant can make a verdict riskier and never safer.

Source of the look-alikes: Unicode Technical Standard 39, confusables, the letters of Cyrillic and Greek.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["undisguised"]

_LOOK_ALIKES = str.maketrans(
    "авеԁгһіјкӏмнорԛѕтуѵԝхзАВЕЅІЈКМНОРСТУХсαβεηικνορτυχωγΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "abedrhijklmhopqstyvwx3ABESIJKMHOPCTYXcabenikvoptuxwyABEZHIKMNOPTYX",
)
_LATIN = re.compile(r"[A-Za-z]")
_OTHER_LETTER = re.compile(r"[\u0370-\u052f]")
_WORD = re.compile(r"\S+")

_SIGNS = str.maketrans("0134578@$!|", "oieastbasil")
# A sign counts inside a word, or before two letters and more: not in "mp3", "covid19", "2nd", "a+", "hello!".
# All repeats are bounded, so that no text takes more than time linear in it.
_SIGNED = re.compile(
    r"(?<![\w.:/@#-])(?=[^\W\d_]{0,30}[0134578@$!|]{1,3}[^\W\d_])(?:[^\W\d_]|[0134578@$!|]){3,30}(?![\w@/]|\.\w)"
)
_COUNTED = re.compile(r"\d+(?:st|nd|rd|th|s|x|k|m|g|b|kg|km|cm|mm|ml|mg|am|pm|gb|mb|kb|ms|hz|px)", re.IGNORECASE)

_APART = re.compile(r"(?<![^\W\d_])[^\W\d_](?:([ .\-_*])[^\W\d_](?:\1[^\W\d_]){2,})(?![^\W\d_])")


def undisguised(text: str) -> str | None:
    """Returns the text without disguises, or None where it has none."""
    plain = text
    if not text.isascii():
        plain = "".join(unicodedata.normalize("NFKC", c) if ord(c) > 0x2000 and c.isalpha() else c for c in plain)
        plain = _WORD.sub(_without_look_alikes, plain)
    plain = _SIGNED.sub(_without_signs, plain)
    plain = _APART.sub(lambda found: found[0].replace(found[1], ""), plain)
    return None if plain == text else plain


def _without_look_alikes(found: re.Match[str]) -> str:
    word = found[0]
    if not (_LATIN.search(word) and _OTHER_LETTER.search(word)):
        return word
    return word.translate(_LOOK_ALIKES)


def _without_signs(found: re.Match[str]) -> str:
    word = found[0]
    return word if _COUNTED.fullmatch(word) else word.translate(_SIGNS)
