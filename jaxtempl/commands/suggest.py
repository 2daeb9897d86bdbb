"""Suggest templates for a case with a run or a bundle, and print them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtempl import files
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.config import parsing
from jaxtempl.config.evaluation import SuggestConfig
from jaxtempl.errors import UsageError, UserError
from jaxtempl.serve.inference.ranking import Ranker, Suggestion
from jaxtempl.serve.inference.suggester import Suggester, Suggestions, bundle_suggester
from jaxtempl.text.case_files import read_case
from jaxtempl.text.cases import fill_texts

if TYPE_CHECKING:
    from jaxtempl.runs.run import Run

BAR = 20  # characters of a probability of 1
SHOWN = 100  # characters of a template's text in the table


def main(argv: Sequence[str]) -> None:
    """Run `bin/suggest`."""
    config = parsing.parse(SuggestConfig, argv)
    if bool(config.run) == bool(config.bundle):
        raise UsageError(
            "what is to suggest? pass one of --bundle=DIR and --run=RUN (RUN@STEP, RUN@best) of a finetune"
        )
    case = read_case(config.case)
    suggester, origin = _load(config)
    case = fill_texts(case, suggester.ranker.listed_texts)
    suggestions = suggester.suggest(case.messages, config.k, case.known_values)
    print(
        json.dumps(to_dict(suggestions, origin), indent=1)  # in ASCII, which every locale can print
        if config.json
        else format_table(suggestions)
    )


def run_suggester(run: "Run", step: int) -> Suggester:
    """Return a suggester with a run's checkpoint, in JAX.

    Raises:
        UserError: the run is an adapt run, which has no templates.
    """
    from jaxtempl.evaluation.predict import Predictor

    if run.phase != "finetune":
        raise UserError(f"{run.folder} is an adapt run, which knows no templates; name a finetune run")
    ranker = Ranker(str(run.folder), run.templates, run.temperature(step))
    return Suggester(Predictor(run, step).one, run.window, ranker)


def _load(config: SuggestConfig) -> tuple[Suggester, dict[str, Any]]:
    """Return the suggester and its entries of the JSON; only a run imports JAX."""
    if config.bundle:
        bundle = Bundle.open(Path(config.bundle))
        return bundle_suggester(bundle), {"bundle": config.bundle, "version": bundle.manifest["version"]}
    from jaxtempl.runs.run import resolve

    run, step = resolve(config.run)
    return run_suggester(run, step), {"run": str(run.folder), "step": step}


def to_dict(suggestions: Suggestions, origin: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON that `--json` prints."""
    return {
        "format": files.FORMAT,
        "suggestions": [suggestion._asdict() for suggestion in suggestions.suggestions],
        "tokens": suggestions.tokens,
        "dropped_messages": suggestions.dropped_messages,
        **origin,
    }


def format_table(suggestions: Suggestions) -> str:
    """Return a line for each suggestion: a bar, the probability, the id and the text."""
    width = max(len(suggestion.template) for suggestion in suggestions.suggestions)
    lines = [_line(suggestion, width) for suggestion in suggestions.suggestions]
    if suggestions.dropped_messages:
        lines.append(f"(the oldest {suggestions.dropped_messages} messages do not fit in the window)")
    return "\n".join(lines)


def _line(suggestion: Suggestion, width: int) -> str:
    bar = "█" * round(BAR * suggestion.probability)
    shown = " ".join(suggestion.text.split())
    shown = shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"
    return f"{bar:<{BAR}} {suggestion.probability:6.1%}  {suggestion.template:<{width}}  {shown}"
