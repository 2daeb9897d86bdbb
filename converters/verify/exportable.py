"""Check that a run can be converted: ablations of GPT-NeoX cannot, and transformers has no mean-pooled BERT."""

from jaxtempl.errors import UserError
from jaxtempl.runs.run import Run
from jaxtempl.specs.architecture import BertArchitecture, NeoXArchitecture


def check(found: Run) -> None:
    """Raise UserError for a run of an ablation, which other libraries would not compute as it was trained."""
    a = found.architecture
    if isinstance(a, NeoXArchitecture) and not a.is_paper_classifier:
        raise UserError(
            f"{found.folder} was fine-tuned with --attention={a.attention} --pooling={a.pooling}, which is measured "
            "but not exported; convert a run of causal attention and last pooling"
        )


def check_for_transformers(found: Run) -> None:
    """Raise UserError for a run whose head no class of transformers has."""
    check(found)
    a = found.architecture
    if isinstance(a, BertArchitecture) and found.head == "template" and a.pooling == "mean":
        raise UserError(
            f"{found.folder} was fine-tuned with --pooling=mean, which BertForSequenceClassification does not compute; "
            "convert it with bin/convert onnx, or convert a run of --pooling=first"
        )
