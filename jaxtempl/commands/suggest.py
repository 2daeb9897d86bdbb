"""A case in, the templates that an advocate most likely wants next out."""

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

if TYPE_CHECKING:
    from jaxtempl.runs.run import Run

BAR = 20  # characters of a probability of 1
SHOWN = 100  # characters of a template's text in the table


def main(argv: Sequence[str]) -> None:
    """`bin/suggest`."""
    asked = parsing.parse(SuggestConfig, argv)
    if bool(asked.run) == bool(asked.bundle):
        raise UsageError(
            "what is to suggest? pass one of --bundle=DIR and --run=RUN (RUN@STEP, RUN@best) of a finetune"
        )
    messages = read_case(asked.case).messages
    suggester, origin = _chosen(asked)
    found = suggester.suggest(messages, asked.k)
    print(json.dumps(to_dict(found, origin), ensure_ascii=False, indent=1) if asked.json else format_table(found))


def run_suggester(run: "Run", step: int) -> Suggester:
    """Suggests with a run's checkpoint in JAX.

    Raises:
        UserError: the run is an adapt run, which knows no templates.
    """
    from jaxtempl.evaluation.predict import Predictor

    if run.phase != "finetune":
        raise UserError(f"{run.folder} is an adapt run, which knows no templates; name a finetune run")
    ranker = Ranker(str(run.folder), run.templates, run.temperature(step))
    return Suggester(Predictor(run, step).one, run.window, ranker)


def _chosen(asked: SuggestConfig) -> tuple[Suggester, dict[str, Any]]:
    """What is to suggest, and how `--json` names it; a bundle needs no JAX, so only a run imports it."""
    if asked.bundle:
        bundle = Bundle.open(Path(asked.bundle))
        return bundle_suggester(bundle), {"bundle": asked.bundle, "version": bundle.manifest["version"]}
    from jaxtempl.runs.run import resolve

    run, step = resolve(asked.run)
    return run_suggester(run, step), {"run": str(run.folder), "step": step}


def to_dict(found: Suggestions, origin: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `--json` prints."""
    return {
        "format": files.FORMAT,
        "suggestions": [suggestion._asdict() for suggestion in found.suggestions],
        "tokens": found.tokens,
        "dropped_messages": found.dropped_messages,
        **origin,
    }


def format_table(found: Suggestions) -> str:
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
