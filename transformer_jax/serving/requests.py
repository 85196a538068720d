"""Requests in JSON: which fields they have, their limits, and what is told of a wrong one."""

import dataclasses
import json
import reprlib
from typing import Any, NoReturn

from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.streaming import Line, with_tag
from transformer_jax.decoding.translator import Translator
from transformer_jax.serving.limits import Limits


class Refused(Exception):
    """A request that is not answered: an HTTP status, a sentence why, and when to ask again."""

    def __init__(self, status: int, sentence: str, retry_after: int = 1):
        super().__init__(sentence)
        self.status, self.retry_after = status, retry_after


@dataclasses.dataclass(frozen=True)
class TranslationRequest:
    """Texts to translate, and what to tell of their translations."""

    texts: list[str]
    options: SearchOptions  # resolved; all hypotheses of the beam are searched for
    n_best: int  # of them are told: what is compiled and shared does not depend on it
    prefix: str = ""  # of every translation
    target_language: str = ""
    alignments: bool = False
    attention: bool = False
    hypothesis: int = 0  # whose attention is shown


_OWN = {x.name: x.type for x in dataclasses.fields(TranslationRequest)}
del _OWN["options"], _OWN["n_best"]
_FIXED = {"rows", "max_length"}  # of the server: they are the shapes of its batches
_OPTIONS = {
    x.name: type(x.metadata["range"][0]) if x.metadata["range"] else bool
    for x in dataclasses.fields(SearchOptions)
    if x.name not in _FIXED
}
_NAMES = {dict: "an object", list[str]: "a list of texts", str: "a text", bool: "true or false"}
_NAMES |= {int: "a whole number", float: "a number", list: "a list", type(None): "null"}
_SYNTAX = {  # what Python's parser tells, by its first words
    "Expecting value": "expected a value",
    "Expecting ','": "expected a comma or a closing bracket",
    "Expecting ':'": "expected a colon",
    "Expecting property": "expected a field's name in double quotes",
    "Illegal trailing": "expected no comma before a closing bracket",
    "Unterminated": "expected the closing quote of a text",
    "Invalid control": "expected an escape, such as \\n, for a control character",
    "Invalid \\": "expected an escape of JSON behind the backslash",
    "Extra data": "expected nothing behind the object",
    "Unexpected UTF-8 BOM": "expected no byte order mark",
}


def all_hypotheses(options: SearchOptions) -> SearchOptions:
    """The same search, of which no hypothesis is left out."""
    return dataclasses.replace(options, n_best=options.beam_size)


def parse(
    body: bytes, translator: Translator, defaults: SearchOptions, limits: Limits, single: bool
) -> TranslationRequest:
    """A request's body, checked; Refused where it is none, or has not a `single` text."""
    values = _object(body)
    for name in values:
        if name not in _OWN | _OPTIONS:
            why = ": the server's own holds" if name in _FIXED else ""
            known = f"expected {', '.join([*_OWN, *sorted(_OPTIONS)])}"
            _refuse(f"there is no field {_shown(name)}{why}; {known}")
    own = {name: _typed(name, values[name]) for name in _OWN if name in values}
    _check_texts(own, limits)
    given = {name: _typed(name, values[name]) for name in _OPTIONS if name in values}
    try:
        options = dataclasses.replace(defaults, **given).resolved(translator.config.decoding)
        lines = [Line(number, text) for number, text in enumerate(own["texts"])]
        if language := own.get("target_language"):
            (lines,) = with_tag([lines], language, translator.vocabulary)
    except (TypeError, ValueError) as error:
        _refuse(str(error))
    own["texts"] = [line.source for line in lines]
    n_best, options = options.n_best, all_hypotheses(options)
    request = TranslationRequest(options=options, n_best=n_best, **own)
    if options.beam_size > limits.max_beam_size:
        _refuse(f"beam_size={options.beam_size} is more than this server's {limits.max_beam_size}")
    if (request.attention or single) and len(request.texts) > 1:
        _refuse(f"attention is shown of one text, not of {len(request.texts)}")
    if not 0 <= request.hypothesis < n_best:
        _refuse(f"hypothesis={request.hypothesis} must be in [0, {n_best - 1}]")
    return request


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; 400 where it is none."""

    def no_number(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number of JSON")

    try:
        values = json.loads(body.decode("utf-8"), parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {_told(error)}") from None
    if not isinstance(values, dict):
        raise Refused(400, f"the body is {_shown(values)}; expected a JSON object")
    return values


def _told(error: Exception) -> str:
    """What was expected of JSON, and where."""
    if isinstance(error, json.JSONDecodeError):
        words = [told for start, told in _SYNTAX.items() if error.msg.startswith(start)]
        return f"{(words or ['expected JSON'])[0]} at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, RecursionError):
        return "its lists and objects are nested too deep"
    return str(error) if "number of JSON" in str(error) else "a number has too many digits"


def _shown(value: Any) -> str:
    """A value in the words of JSON."""
    if isinstance(value, bool | str):
        return reprlib.repr(value) if isinstance(value, str) else str(value).lower()
    return _NAMES[type(value)] if isinstance(value, list | dict | None) else reprlib.repr(value)


def _typed(name: str, value: Any) -> Any:
    """The value; Refused where it is not of the type of its field."""
    kind = _OWN.get(name) or _OPTIONS[name]
    if value is None and name in _OPTIONS and getattr(SearchOptions, name) is None:
        return value
    plain = {list[str]: list, float: int | float}.get(kind, kind)
    if not isinstance(value, plain) or isinstance(value, bool) != (kind is bool):
        _refuse(f"{name} is {_shown(value)}; expected {_NAMES[kind]}")
    return value


def _check_texts(own: dict[str, Any], limits: Limits) -> None:
    texts = own.get("texts", [])
    if not 1 <= len(texts) <= limits.max_texts:
        _refuse(f"there are {len(texts)} texts; expected 1 to {limits.max_texts}")
    named = {f"texts[{index}]": text for index, text in enumerate(texts)}
    named |= {name: own[name] for name in ("prefix", "target_language") if name in own}
    for name, text in named.items():
        if not isinstance(text, str):
            _refuse(f"{name} is {_shown(text)}; expected {_NAMES[str]}")
        if len(text) > limits.max_chars:
            _refuse(f"{name} has {len(text)} characters; at most {limits.max_chars} are read")
        if not {"\n", "\r", "\0"}.isdisjoint(text):
            _refuse(f"{name} has a line end or NUL; expected a sentence a text")
        if any("\ud800" <= character <= "\udfff" for character in text):
            _refuse(f"{name} has half of a surrogate pair, which is no character")


def _refuse(sentence: str) -> NoReturn:
    raise Refused(422, sentence)
