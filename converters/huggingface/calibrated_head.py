"""The template head of an exported folder: calibrated, and without retired templates.

transformers' pipeline takes a softmax of the logits over all classes of the head. A GPT-NeoX head has no bias that
could suppress a class, so the classes of retired templates are left out.

Dims: D hidden, S slots, C classes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxtempl.errors import UserError
from jaxtempl.runs.run import Run
from jaxtempl.text.cases import Template


def active_templates(source: Run) -> list[Template]:
    """Return the templates of a run that may be suggested, by slot; raise UserError if all are retired."""
    active = [template for template in source.templates if template.active]
    if source.templates and not active:
        raise UserError(f"all templates of {source.folder} are retired; set one active in its templates.json")
    return active


def calibrate(params: PyTree, templates: Sequence[Template], temperature: float) -> dict[str, Any]:
    """Return parameters whose head has a class for each of `templates`, divided by the temperature.

    A softmax of the logits then gives the probabilities of `bin/suggest`; the order of the classes is unchanged.

    Args:
        params: Parameters with a template head: kernel [D S], and for a BERT bias [S].
        templates: Templates of the classes [C], in order.
        temperature: Divisor of the logits, above 0.
    """
    slots = [template.slot for template in templates]
    return {
        **params,
        "head": jax.tree.map(lambda leaf: np.asarray(leaf)[..., slots] / np.float32(temperature), params["head"]),
    }
