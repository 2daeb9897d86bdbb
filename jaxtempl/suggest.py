"""A case in, the templates that an advocate most likely wants next out."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxtempl import config, files, text
from jaxtempl.cases import Case, Message, case_from
from jaxtempl.config import SuggestConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.forward import Forward
from jaxtempl.run import Run, resolve

BAR = 20  # characters of a probability of 1
SHOWN = 100  # characters of a template's text in the table


class Suggestion(NamedTuple):
    """One template with its probability among the active ones."""

    template: str
    text: str
    probability: float


class Suggestions(NamedTuple):
    """What is suggested for a context.

    Attributes:
        suggestions: best first.
        tokens: of the window that was read.
        dropped_messages: messages older than the window.
    """

    suggestions: list[Suggestion]
    tokens: int
    dropped_messages: int


def main(argv: Sequence[str]) -> None:
    """`bin/suggest`."""
    asked = config.parse(SuggestConfig, argv)
    if not asked.run:
        raise UsageError("which run? pass --run=RUN, RUN@STEP or RUN@best of a finetune")
    messages = read(asked.case).messages
    run, step = resolve(asked.run)
    found = suggest(run, step, messages, asked.k)
    print(json.dumps(as_json(found, run, step), ensure_ascii=False, indent=1) if asked.json else table(found))


def read(path: Path) -> Case:
    """The case of a JSON file, or of standard input for `-`; it needs no case_id.

    Raises:
        UserError: the file is missing, is not JSON, or is no case.
    """
    piped = str(path) == "-"
    value = _standard_input() if piped else files.read_json(path)
    if isinstance(value, dict):
        value = {"case_id": "case", **value}
    try:
        return case_from(value)
    except UserError as error:
        raise UserError(
            f'{"standard input" if piped else path}: {error}; a case is {{"messages": [{{"role", "text"}}, ...]}}'
        ) from None


def _standard_input() -> Any:
    try:
        return json.load(sys.stdin)
    except ValueError as error:
        raise UserError(f"standard input is not JSON: {error}; pass one case") from None


def suggest(run: Run, step: int, messages: Sequence[Message], k: int) -> Suggestions:
    """The k templates that the run finds most likely to come after `messages`, retired ones left out.

    Args:
        run: a finetune run.
        step: its checkpoint.
        messages: the context, oldest first; read through the same window as in training.
        k: how many; fewer come where fewer templates are active.

    Raises:
        UserError: the run is an adapt run, or all of its templates are retired.
    """
    if run.phase != "finetune":
        raise UserError(f"{run.folder} is an adapt run, which knows no templates; name a finetune run")
    active = np.array([template.active for template in run.templates])
    if not active.any():
        raise UserError(f"all templates of {run.folder} are retired; set one active in its templates.json")
    tokens, dropped = window(run, messages)
    logits = Forward(run, step).one(tokens) / _temperature(run, step)
    probability = special.softmax(np.where(active, logits, -np.inf))
    best = np.argsort(-probability, kind="stable")[: min(k, int(active.sum()))]
    chosen = [Suggestion(run.templates[i].id, run.templates[i].text, float(probability[i])) for i in best]
    return Suggestions(chosen, len(tokens), dropped)


def window(run: Run, messages: Sequence[Message]) -> tuple[list[int], int]:
    """Ids of the window that the run reads, and how many older messages it leaves out."""
    pieces = run.tokenizer.encode(text.pieces(messages, run.manifest["role_tags"]))
    ids = text.window(pieces, run.manifest["length"])
    left, kept = len(ids), 0
    while left > 0:
        kept += 1
        left -= len(pieces[-kept])
    return ids, len(messages) - kept


def _temperature(run: Run, step: int) -> float:
    """The temperature that bin/evaluate fitted for this very checkpoint; 1 without one."""
    path = run.folder / "calibration.json"
    fitted = files.read_json(path)["steps"] if path.exists() else {}
    return float(fitted[str(step)]["temperature"]) if str(step) in fitted else 1.0


def as_json(found: Suggestions, run: Run, step: int) -> Mapping[str, Any]:
    """What `--json` prints."""
    return {
        "format": files.FORMAT,
        "suggestions": [suggestion._asdict() for suggestion in found.suggestions],
        "tokens": found.tokens,
        "dropped_messages": found.dropped_messages,
        "run": str(run.folder),
        "step": step,
    }


def table(found: Suggestions) -> str:
    """One line a suggestion: a bar, the probability, the id and the text."""
    width = max(len(suggestion.template) for suggestion in found.suggestions)
    lines = [_line(suggestion, width) for suggestion in found.suggestions]
    if found.dropped_messages:
        lines.append(f"(the oldest {found.dropped_messages} messages do not fit in the window)")
    return "\n".join(lines)


def _line(suggestion: Suggestion, width: int) -> str:
    bar = "█" * round(BAR * suggestion.probability)
    shown = " ".join(suggestion.text.split())
    shown = shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"
    return f"{bar:<{BAR}} {suggestion.probability:6.1%}  {suggestion.template:<{width}}  {shown}"
