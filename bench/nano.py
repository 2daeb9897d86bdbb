"""Train `nano`, the base model of this package, and compare shapes and vocabularies for it.

`JAXTEMPL_DATA=DATA .venv/bin/python -m bench.nano STAGE` runs a stage, `data` or `compare`; each resumes where it
stopped. All files stay in `runs/nano`.
"""

import argparse
import gzip
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bench import common, runs
from jaxtempl import files
from jaxtempl.config.paths import ASSETS
from jaxtempl.specs.architecture import NeoXArchitecture
from jaxtempl.text import formats
from jaxtempl.text.cases import Message

WORK = Path("runs/nano")  # relative to the project root
CACHE = WORK / "compiled"
LENGTH, ROWS = 512, 8  # tokens of a row, and rows of an update


class Source(NamedTuple):
    """A corpus of the base.

    Attributes:
        path: File in the data folder, without `.jsonl.gz`.
        share: Share of the rows drawn.
        vocabulary_share: Share of the records that the tokenizer is trained on.
    """

    path: str
    share: float
    vocabulary_share: float


# 200 M tokens repeat no dialogue more than four times: sgd has 8.1 M, taskmaster4 1.2 M and multidogo 0.4 M.
SOURCES = {
    "books": Source("general/classic_books", 0.560, 0.15),
    "openstax": Source("general/openstax", 0.100, 0.5),
    "officedocs": Source("general/officedocs", 0.044, 1.0),
    "ubuntu_irc": Source("general/ubuntu_irc", 0.106, 0.5),
    "sgd": Source("sgd/train", 0.160, 0.5),
    "taskmaster4": Source("taskmaster4/train", 0.023, 1.0),
    "multidogo": Source("multidogo/train", 0.007, 1.0),
}


class Candidate(NamedTuple):
    """A shape and a vocabulary.

    Attributes:
        layers: Layers.
        hidden: Hidden size.
        heads: Heads.
        tokenizer: Name of the tokenizer in `_tokenizer`.
        learning_rate: Peak learning rate: 2e-3 at 128 dims, and in inverse proportion to the width elsewhere.
    """

    layers: int
    hidden: int
    heads: int
    tokenizer: str
    learning_rate: float

    @property
    def architecture(self) -> NeoXArchitecture:
        """The candidate as an architecture."""
        return NeoXArchitecture(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            feed_forward=4 * self.hidden,
            vocabulary=Tokenizer.from_file(str(_tokenizer(self.tokenizer))).get_vocab_size(),
        )


CANDIDATES = {
    "4x128-books8192": Candidate(4, 128, 4, "books8192", 2e-3),  # the shape and vocabulary of the first nano
    "4x128-8192": Candidate(4, 128, 4, "8192", 2e-3),
    "4x128-4096": Candidate(4, 128, 4, "4096", 2e-3),
    "6x128-4096": Candidate(6, 128, 4, "4096", 2e-3),
    "4x192-4096": Candidate(4, 192, 6, "4096", 1.33e-3),
    "4x256-4096": Candidate(4, 256, 8, "4096", 1e-3),
}
COMPARE_SECONDS = 600.0  # CPU time of a candidate's pre-training
FINETUNE = {500: ("--epochs=10", "--learning_rate=3e-3"), 2_000: ("--epochs=4", "--learning_rate=3e-3")}


def main() -> None:
    """Run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["data", "compare", "cost"])
    parser.add_argument("candidates", nargs="*", choices=[[], *CANDIDATES], help="default: all")
    arguments = parser.parse_args()
    os.chdir(common.ROOT)
    names = arguments.candidates or list(CANDIDATES)
    if arguments.stage == "cost":
        print(json.dumps({"seconds": update_seconds(CANDIDATES[names[0]].architecture)}))
    elif arguments.stage == "data":
        prepare(common.data().resolve(), {CANDIDATES[name].tokenizer for name in names})
    else:
        for name in names:
            print(json.dumps({name: compare(name)}), flush=True)


def _tokenizer(name: str) -> Path:
    """Return the tokenizer.json of a candidate."""
    return ASSETS / "nano" / "tokenizer.json" if name == "books8192" else WORK / f"tokenizer-{name}.json"


def prepare(data: Path, tokenizers: set[str]) -> None:
    """Train the tokenizers, and write a dataset of each source by each of them, and of star."""
    for name in sorted(tokenizers):
        if not _tokenizer(name).exists():
            train_tokenizer(data, int(name), _tokenizer(name))
        for source, (path, *_) in SOURCES.items():
            kind = "documents" if path.startswith("general") else "train"
            _prepare(name, source, f"--{kind}={data}/{path}.jsonl.gz")
    star = [f"--{side}={data}/star/{part}" for side, part in (("train", "train"), ("test", "dev"))]
    _prepare("books8192", "star", *star, f"--templates={data}/star/templates.json")


def _prepare(tokenizer: str, source: str, *flags: str) -> None:
    out = WORK / "data" / tokenizer / source
    if not out.exists():
        name = f"--tokenizer={_tokenizer(tokenizer)}"
        runs.command("prepare", *flags, name, f"--length={LENGTH}", f"--out={out}", cache=CACHE)


def train_tokenizer(data: Path, size: int, out: Path) -> None:
    """Train a byte-level BPE of `size` entries on a share of every source, tags of the roles included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_vocabulary_texts(data), trainer)
    with files.atomic_file(out) as temporary:
        tokenizer.save(str(temporary))


def _vocabulary_texts(data: Path) -> Iterator[str]:
    """Yield a seeded share of each source as `adapt` reads it."""
    generator = np.random.default_rng(0)
    for source in SOURCES.values():
        with gzip.open(data / f"{source.path}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                if generator.random() < source.vocabulary_share:
                    yield _text(json.loads(line))


def _text(record: dict[str, Any]) -> str:
    if "text" in record:
        return record["text"]
    return formats.document([Message(m["role"], m["text"], None) for m in record["messages"]])


def compare(name: str) -> dict[str, Any]:
    """Return what a candidate learns in COMPARE_SECONDS of CPU time: held-out loss, and accuracy on star."""
    candidate = CANDIDATES[name]
    folder = WORK / "compare" / name
    cost = folder / "cost.json"
    if not cost.exists():
        cost.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(cost, common.run_child("bench.nano", "cost", name))
    update = json.loads(cost.read_text())["seconds"]
    pretrain(candidate, folder / "base", round(COMPARE_SECONDS / update))
    star = WORK / "data" / "books8192" / "star"
    loss = runs.evaluate(f"{folder}/base@last", star, folder / "loss-star", cache=CACHE)["metrics"]
    return {
        "update_seconds": update,
        "star_bits_a_byte": loss["bits_a_byte"]["value"],
        "labels": {labels: _finetune(folder, labels, star) for labels in FINETUNE},
    }


def _finetune(folder: Path, labels: int, star: Path) -> dict[str, float]:
    out = folder / f"star-{labels}"
    flags = (f"--from={folder}/base", f"--data={star}", f"--labels={labels}", *FINETUNE[labels], f"--out={out}")
    runs.command("finetune", *flags, cache=CACHE)
    report = runs.evaluate(out, star, out / "evaluate-test", "--baselines=false", cache=CACHE)
    return {key: report["metrics"][key]["value"] for key in ("top1", "top3", "top5", "cross_entropy")}


def pretrain(candidate: Candidate, out: Path, steps: int, *flags: str) -> None:
    """Train a candidate from random weights on the mixture."""
    weights = out.with_name(f"{out.name}-random")
    if not weights.exists():
        _write_random(candidate, weights)
    mixture = ",".join(f"{WORK}/data/{candidate.tokenizer}/{name}:{s.share}" for name, s in SOURCES.items())
    runs.command(
        "adapt",
        f"--weights={weights}",
        f"--data={mixture}",
        f"--steps={steps}",
        f"--batch_size={ROWS}",
        f"--learning_rate={candidate.learning_rate}",
        "--schedule=wsd",
        "--weight_decay=0.1",
        *flags,
        f"--out={out}",
        cache=CACHE,
    )


def _write_random(candidate: Candidate, folder: Path) -> None:
    """Write random weights and the tokenizer as a Hugging Face folder."""
    import jax

    from jaxtempl.huggingface import save
    from jaxtempl.models import factory

    with files.atomic_folder(folder) as temporary:
        params = jax.device_get(factory.random_params(candidate.architecture, None, 0))
        save.write(temporary, candidate.architecture, params, "lm")
        shutil.copy(_tokenizer(candidate.tokenizer), temporary / "tokenizer.json")


def update_seconds(a: NeoXArchitecture, repeats: int = 12) -> float:
    """Return the CPU seconds of an update of ROWS x LENGTH tokens: the least of some, which other processes disturb."""
    import jax

    from jaxtempl.config.training import AdaptConfig
    from jaxtempl.models import factory
    from jaxtempl.parallel.mesh import MeshShape, make_mesh
    from jaxtempl.training import objectives, state
    from jaxtempl.training.optimizer import adamw
    from jaxtempl.training.step import compile_step, run_update

    mesh, optimizer = make_mesh(MeshShape(1, 1, 1)), adamw(AdaptConfig(learning_rate=1e-3), 1000)
    params = factory.random_params(a, None, 0)
    functions = compile_step(
        objectives.causal_lm(factory.make_graphdef(a)), optimizer, state.state_shardings(mesh, optimizer, params)
    )
    current = state.initial_state(params, optimizer, mesh)
    rows = np.ones((ROWS, LENGTH), np.uint16)
    batch = [jax.device_put({"tokens": rows, "segments": rows})]
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        current, metrics = run_update(functions, current, batch)
        jax.block_until_ready((current, metrics))
        seconds.append(time.process_time() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
