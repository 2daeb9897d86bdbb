"""Redaction of a case: what each type finds, what stays, and the properties that training and serving rely on."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtempl.errors import UserError
from jaxtempl.text.cases import Message
from jaxtempl.text.redaction.findings import PLACEHOLDER
from jaxtempl.text.redaction.policy import CHECKED, Policy, policy_from, read_policy
from jaxtempl.text.redaction.redact import Redactor

REDACTOR = Redactor(Policy())
VALUES = {  # published examples of each type
    "EMAIL": "anna.schmidt+1@mail.example.co.uk",
    "URL": "https://example.com/a?b=1",
    "IP": "2001:db8::8a2e:370:7334",
    "IBAN": "DE89 3704 0044 0532 0130 00",
    "CARD": "4111-1111-1111-1111",
    "SSN": "536-22-1234",
    "NINO": "AB 12 34 56 C",
    "TAX_ID": "86 095 742 719",
    "PENSION_NUMBER": "15 070649 C 103",
    "PHONE": "+49 (0)30 901820",
    "NAME": "Priya Patel",
    "ADDRESS": "221 Baker Street, Flat 2",
}
UNCHECKED = {  # one digit or group off, or another meaning
    "order 4111-1111-1111-1112 came",
    "GB82 WEST 1234 5698 7654 33",
    "000-12-3456",
    "86095742718",
    "15 070649 C 104",
    "on 2024-05-12 at 10:30:45, version 1.2.3",
    "12.05.2024 1234",
    "999.1.1.1",
    "I'm Sorry, Will it ship in May? Thanks",
}


def redact(*texts: str, policy: Policy | None = None, known: dict[str, list[str]] | None = None) -> list[str]:
    redactor = Redactor(policy) if policy else REDACTOR
    return [m.text for m in redactor.messages([Message("customer", text) for text in texts], known or {})]


@pytest.mark.parametrize("type_", VALUES)
@pytest.mark.parametrize("frame", ["{}", "please note {}, thanks", "({})", "it was {}. next", "\n{}\n"])
def test_a_value_of_each_type_becomes_its_placeholder(type_: str, frame: str) -> None:
    assert redact(frame.format(VALUES[type_])) == [frame.format(f"<{type_}>")]


def test_a_number_of_the_national_health_service_needs_its_cue() -> None:
    assert redact("my NHS number is 943 476 5919") == ["my NHS number is <NHS_NUMBER>"]
    assert redact("943476 5919 items") == ["<PHONE> items"]


@pytest.mark.parametrize("text", sorted(UNCHECKED))
def test_what_fails_a_check_stays(text: str) -> None:
    assert redact(text) == [text]


@pytest.mark.parametrize(
    "text",
    ["212-555-0123", "(212)555-0123x45", "2125550123", "001-212-555-0123", "0044 20 7946 0958", "020 7946 0958"],
)
def test_national_telephone_numbers_are_found_with_their_extension(text: str) -> None:
    assert redact(f"call {text} 5 times") == ["call <PHONE> 5 times"]


def test_a_number_next_to_others_is_found() -> None:
    assert redact("card 4111 1111 1111 1111 123 12/27") == ["card <CARD> 123 12/27"]
    assert redact("DE89370400440532013000 and more") == ["<IBAN> and more"]


def test_lists_find_names_that_no_cue_announces() -> None:
    """Cues alone found none of these in a trial, as their author did not think of them."""
    unseen = ("please ship it to {} instead", "{} never answered me", "the parcel was for {}", "ask {} about it")
    for frame in unseen:
        assert redact(frame.format("Jürgen Müller")) == [frame.format("<NAME>")]
        assert redact(frame.format("Zorblax")) == [frame.format("Zorblax")]


def test_cues_find_names_on_no_list() -> None:
    assert redact("my name is zorblax quux and") == ["my name is <NAME> and"]
    assert redact("My name is Mark. I am May.", "mark it, Mark") == [
        "My name is <NAME>. I am <NAME>.",
        "mark it, <NAME>",
    ]
    assert redact("Hi Zorblax, how are you?", "Dear Customer") == ["Hi <NAME>, how are you?", "Dear Customer"]


def test_a_name_includes_its_titles_initials_and_degrees() -> None:
    for name in (
        "Dr. Colin F. Simpson",
        "Univ.Prof. Wilfriede Holzapfel",
        "Frau Sabine Müller B.Sc.",
        "Frank Hall Jr.",
    ):
        assert redact(f"my name is {name}, ok", f"I wrote to {name} today") == [
            "my name is <NAME>, ok",
            "I wrote to <NAME> today",
        ]
    assert redact("ok, thanks I knew it. Thanks Again", "Prof told Miss nothing") == [
        "ok, thanks I knew it. Thanks Again",
        "Prof told Miss nothing",
    ]


def test_a_name_learnt_in_one_message_is_redacted_through_its_case() -> None:
    texts = redact("quux here", "Hi Zorblax Quux, welcome", "ZORBLAX is angry, zorblax's wife too", "zorblaxed")
    assert texts == ["<NAME> here", "Hi <NAME>, welcome", "<NAME> is angry, <NAME> wife too", "zorblaxed"]
    assert redact("it may rain", "this is Mr. May", "May came") == ["it may rain", "this is <NAME>", "<NAME> came"]


def test_known_values_are_found_in_any_form() -> None:
    known = {"NAME": ["Will Young"], "PHONE": ["12125550199"], "ACCOUNT": ["AB-12 34"], "CITY": ["x"]}
    texts = ("I am WILL  YOUNG", "+1 (212) 555-0199", "no. ab1234.", "x 21 2125550199 y", "it will work, Young")
    expected = ["I am <NAME>", "<PHONE>", "no. <ACCOUNT>.", "x 21 <PHONE> y", "it will work, <NAME>"]
    assert redact(*texts, known=known) == expected


def test_numbered_placeholders_distinguish_the_values_of_a_case() -> None:
    texts = ("a@x.org or b@x.org", "A@x.org")
    assert redact(*texts, policy=Policy(numbered=True)) == ["<EMAIL_1> or <EMAIL_2>", "<EMAIL_1>"]


def test_patterns_kept_values_and_types_are_those_of_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("types: [EMAIL]\npatterns: {ORDER: 'ORD-\\d+'}\nkeep: [help@shop.example]\n")
    policy = read_policy(str(path))
    texts = ("ORD-12 of a@x.org, 4111 1111 1111 1111", "write to help@shop.example")
    assert redact(*texts, policy=policy) == ["<ORDER> of <EMAIL>, 4111 1111 1111 1111", texts[1]]
    assert policy.digest != Policy().digest == read_policy("default").digest


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("types: [FACE]", "types has FACE; EMAIL, .* are allowed"),
        ("regions: [XX]", "regions has XX; US, GB, DE are allowed"),
        ("patterns: {ORDER: '('}", "pattern of ORDER is not a regular expression"),
        ("patterns: {EMAIL: 'x'}", "the type 'EMAIL'; capitals"),
        ("colour: red", "unknown field `colour`.*docs/redaction.md"),
        ("format: 99", "has format 99"),
    ],
)
def test_a_policy_that_cannot_be_applied_is_an_error(content: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=fault):
        read_policy(str(path))


def test_a_manifest_of_a_newer_release_is_an_error() -> None:
    with pytest.raises(UserError, match=r"bundle.json: this release cannot apply .* has format 2"):
        policy_from({"format": 2}, Path("bundle.json"))


def test_the_default_policy_equals_the_golden_file() -> None:
    """Manifests hold policies: change the file only on purpose, with a note in CHANGELOG."""
    golden = Path(__file__).parent / "golden" / "redaction_policy.json"
    assert json.dumps(msgspec.to_builtins(Policy()), indent=1) == golden.read_text().rstrip()
    assert policy_from(json.loads(golden.read_text()), golden) == Policy()


def test_counts_name_types_and_no_value() -> None:
    redactor = Redactor(Policy())
    redactor.messages([Message("customer", "a@x.org, b@x.org and 536-22-1234")], {})
    assert redactor.counts == {"EMAIL": 2, "SSN": 1}


PIECES = st.sampled_from(["hi ", "my name is ", "Anna ", " may", "Dr. ", "<NAME>", "\n", ". ", "-", "+", "(", "x", "7"])
TEXT = st.lists(PIECES | st.sampled_from([*VALUES.values(), *UNCHECKED]) | st.text(max_size=4), max_size=8).map("".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, max_size=3))
def test_redaction_is_idempotent_and_leaves_the_rest(texts: list[str]) -> None:
    """A server may receive what was redacted before, and training reads redacted text."""
    once = redact(*texts)
    assert redact(*once) == once
    for before, after in zip(texts, once, strict=True):
        rest = PLACEHOLDER.split(after)
        position = 0
        for part in rest:
            position = before.index(part, position) + len(part)


def test_checked_types_take_linear_time_on_hostile_text() -> None:
    """A quadratic scan of these would take seconds."""
    for text in ("A-" * 1_000, "1 " * 300, "a." * 1_000, "hi " * 1_000, "<NAME>" * 1_000, "DE12" * 1_000):
        REDACTOR.text(text)


def test_every_checked_type_has_a_value_here() -> None:
    assert set(CHECKED) - {"NHS_NUMBER"} <= set(VALUES)
