"""Hypothesis strategies for valid and nearly valid values of a JSON schema, and the faults that jsonschema finds."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft202012Validator, FormatChecker, ValidationError

ODD = "odd-zq7"  # part of every wrong string, so that an echo of it is detected
ODDITIES: list[Any] = [
    None, True, -1, 0, 0.5, 101, 2**63, -(10**30), "", ODD, f"{ODD}\0", f"😀{ODD}\r\n", ODD * 100, [], [[ODD]], {},
    {ODD: {ODD: [None]}},
]  # fmt: skip
TOLD = {"title", "description", "default"}
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
FORMATS = FormatChecker(())


@FORMATS.checks("date-time", ValueError)
def _aware(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


class Values:
    """Strategies for the schemas of a document.

    Args:
        document: OpenAPI document that `$ref` points into.
        known: Property names and a fixed value for each, one of the two alternatives that are drawn.
    """

    def __init__(self, document: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        self._document, self._known = document, known

    def of(self, schema: Mapping[str, Any]) -> SearchStrategy[Any]:
        """Return a strategy for the values that `schema` allows; an unsupported keyword is an error."""
        rest = {name: value for name, value in schema.items() if name not in TOLD}
        if reference := rest.pop("$ref", None):
            return self.of(self._document["components"]["schemas"][reference.rpartition("/")[2]])
        if choices := rest.pop("anyOf", None):
            return st.one_of([self.of(choice) for choice in choices])
        if values := rest.pop("enum", None):
            return st.sampled_from(values)
        made: SearchStrategy[Any] = getattr(self, f"_{rest.pop('type')}")(rest)
        assert not rest, f"no strategy supports {rest} of {schema}"
        return made

    def _null(self, rest: dict[str, Any]) -> SearchStrategy[None]:
        return st.none()

    def _boolean(self, rest: dict[str, Any]) -> SearchStrategy[bool]:
        return st.booleans()

    def _integer(self, rest: dict[str, Any]) -> SearchStrategy[int]:
        return st.integers(rest.pop("minimum", None), rest.pop("maximum", None))

    def _number(self, rest: dict[str, Any]) -> SearchStrategy[float]:
        return st.floats(rest.pop("minimum", None), rest.pop("maximum", None), allow_nan=False, allow_infinity=False)

    def _string(self, rest: dict[str, Any]) -> SearchStrategy[str]:
        if rest.pop("format", None) == "date-time":
            return st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=ZONES).map(datetime.isoformat)
        least, most = rest.pop("minLength", 0), rest.pop("maxLength", 10_000)
        text = st.from_regex(pattern) if (pattern := rest.pop("pattern", None)) else st.text()
        return text.filter(lambda value: least <= len(value) <= most)

    def _array(self, rest: dict[str, Any]) -> SearchStrategy[Any]:
        items, least, most = rest.pop("items"), rest.pop("minItems", 0), rest.pop("maxItems", 5)
        if first := rest.pop("prefixItems", None):
            return st.tuples(*map(self.of, first)).map(list)
        return st.lists(self.of(items), min_size=least, max_size=most)

    def _object(self, rest: dict[str, Any]) -> SearchStrategy[dict[str, Any]]:
        if "properties" not in rest:  # a dictionary
            names, values = self._string(dict(rest.pop("propertyNames"))), self.of(rest.pop("additionalProperties"))
            return st.dictionaries(names, values, max_size=3)
        properties, required = rest.pop("properties"), rest.pop("required")
        made = {name: self._property(name, schema) for name, schema in properties.items()}
        optional = {name: made.pop(name) for name in properties if name not in required}
        return st.fixed_dictionaries(made, optional=optional)

    def _property(self, name: str, schema: Mapping[str, Any]) -> SearchStrategy[Any]:
        return st.just(self._known[name]) | self.of(schema) if name in self._known else self.of(schema)


@st.composite
def spoilt(draw: st.DrawFn, values: SearchStrategy[Any]) -> Any:
    """Draw one of `values` and delete or replace one part of it, which often makes it invalid."""
    root = [copy.deepcopy(draw(values))]
    holder, key = draw(st.sampled_from(list(_places(root))[1:] or [(root, 0)]))
    if isinstance(holder, dict) and draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw(st.sampled_from(ODDITIES))
    return root[0]


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    pairs = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
    for key, value in pairs:
        yield holder, key
        yield from _places(value)


def faults(schema: Mapping[str, Any], document: Mapping[str, Any], value: Any) -> set[str]:
    """Return the paths of the faults in `value`, such as `messages[0].role`; empty if it is valid."""
    whole = {**schema, "components": document["components"]}
    found = Draft202012Validator(whole, format_checker=FORMATS).iter_errors(value)
    return {path for error in found for path in _paths(error)}


def _paths(error: ValidationError) -> Iterator[str]:
    place = list(error.absolute_path)
    if error.validator == "required":
        wanted: Any = error.validator_value
        given: Any = error.instance
        yield from (_told([*place, name]) for name in wanted if name not in given)
    else:
        yield _told(place)
    for inner in error.context or ():
        yield from _paths(inner)


def _told(place: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
