"""Read `templates.json` of a dataset, a run or a bundle."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from jaxtempl import files
from jaxtempl.errors import UserError
from jaxtempl.text.cases import RecordError, Template, template_id


def read_templates(path: Path) -> list[Template]:
    """Return the templates of a file, by slot.

    Raises:
        UserError: an entry has another form, or the event store cannot keep its id as it is written.
    """
    try:
        templates = msgspec.convert(files.read_json(path), list[Template])
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not a list of templates ({error}); restore it, or make its folder again") from None
    for template in templates:
        _check_id(path, template.id)
    return templates


def _check_id(path: Path, name: str) -> None:
    try:
        is_kept = template_id(name) == name
    except RecordError:
        is_kept = False
    if not is_kept:
        raise UserError(
            f"{path} has the template id {name[:40]!r}, which events cannot refer to; prepare the transcripts again, "
            "which strips or refuses such ids, and train again"
        )


def listed_texts(templates: Iterable[Template]) -> dict[str, str]:
    """Return the text by id of the templates that a user's file lists.

    Observed texts are left out: `prepare` gives a labelled message without text the text of the user's file alone.
    """
    return {template.id: template.text for template in templates if not template.observed}
