"""Train nano at a constant learning rate, anneal a branch of it, and publish the branch in the package."""

import shutil
from pathlib import Path

from bench import runs
from bench.nano import corpus
from bench.nano.candidates import CANDIDATES, pretrain
from bench.nano.corpus import CACHE, WORK
from jaxtempl import files
from jaxtempl.config.paths import ASSETS
from jaxtempl.runs.run import Run

CHOSEN = "4x128-8192"
BASE = WORK / "base"
STEPS = 48_900  # 200 M tokens
ANNEAL = 0.1  # updates of a branch, over those before it
TEXT = "Customer service can be difficult, but a good answer at the right time makes all the difference."


def train() -> None:
    """Train to STEPS at a constant rate; a repeated call resumes, and SIGTERM saves."""
    candidate = CANDIDATES[CHOSEN]
    pretrain(candidate, BASE, STEPS, f"--decay_at={STEPS - 1}", "--save_every=2445", "--recover_minutes=5")


def anneal() -> Path:
    """Continue a copy of the base from its newest checkpoint, its rate falling to zero, and return the copy."""
    step = Run(BASE).checkpoints.steps("recovery")[-1]
    branch = WORK / f"annealed-{step}"
    if not branch.exists():
        with files.atomic_folder(branch) as temporary:
            shutil.copytree(BASE, temporary, dirs_exist_ok=True)
    changed = (f"--decay_at={step}", "--save_every=2445", "--recover_minutes=5", "--allow_change=steps,decay_at")
    pretrain(CANDIDATES[CHOSEN], branch, round(step * (1 + ANNEAL)), *changed)
    return branch


def newest_branch() -> Path:
    """Return the annealed copy that has read most."""
    return max(WORK.glob("annealed-*[0-9]"), key=lambda path: int(path.name.split("-")[1]))


def publish(branch: Path) -> None:
    """Write a branch as the package's nano: float16 weights, the tokenizer, and a loss that transformers computes."""
    import torch
    from transformers import AutoModelForCausalLM

    converted, target = branch.with_name(f"{branch.name}-huggingface"), ASSETS / "nano"
    if not converted.exists():
        runs.command("convert", "huggingface", f"--run={branch}@last", f"--out={converted}", cache=CACHE)
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float16)
    model.save_pretrained(target)
    shutil.copy(corpus.tokenizer_path(CANDIDATES[CHOSEN].vocabulary), target / "tokenizer.json")
    files.write_json(target / "reference.json", _reference(model.float().eval(), target / "tokenizer.json"))


def _reference(model: object, tokenizer: Path) -> dict[str, object]:
    """Return the loss and the last logits of TEXT by transformers, in float32 on the stored weights."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer)).encode(TEXT).ids
    with torch.no_grad():
        outputs = model(torch.tensor([ids]), labels=torch.tensor([ids]))  # pyright: ignore[reportCallIssue]
    last = outputs.logits[0, -1]
    return {
        "text": TEXT,
        "ids": ids,
        "mean_next_token_loss": float(outputs.loss),
        "last_logits_first_8": [round(float(value), 5) for value in last[:8]],
        "argmax": int(last.argmax()),
        "how": f"transformers {transformers.__version__}, torch {torch.__version__}, float32 arithmetic on these "
        "float16 weights",
    }
