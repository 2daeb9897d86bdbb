"""Train `nano`, the base model of this package, and compare shapes, vocabularies and kinds of text for it.

`JAXTEMPL_DATA=DATA .venv/bin/python -m bench.nano STAGE` runs a stage; each resumes where it stopped. All files stay in
`runs/nano`.

    data      train the tokenizers, and prepare every source
    compare   train each candidate for the same CPU time, and measure it on star
    texts     train the chosen candidate on each kind of text alone
    train     train the chosen candidate on 200 M tokens at a constant learning rate
    anneal    continue a copy of it from its newest checkpoint, the rate falling to zero, and measure it on star
    publish   write the newest annealed copy to jaxtempl/assets/nano
    page      write docs/benchmarks/nano.md
"""

import argparse
import json
import os

from bench import common
from bench.nano import base, compare, corpus, page
from bench.nano.candidates import CANDIDATES


def main() -> None:
    """Run a stage."""
    parser = argparse.ArgumentParser(
        "bench.nano", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = ["data", "compare", "texts", "train", "anneal", "publish", "page", "cost"]
    parser.add_argument("stage", choices=stages)
    parser.add_argument("candidates", nargs="*", choices=[[], *CANDIDATES], help="default: all")
    arguments = parser.parse_args()
    os.chdir(common.ROOT)
    names = arguments.candidates or list(CANDIDATES)
    if arguments.stage == "cost":
        print(json.dumps({"seconds": compare.update_seconds(CANDIDATES[names[0]])}))
    elif arguments.stage == "data":
        corpus.prepare(common.data().resolve(), {CANDIDATES[name].vocabulary for name in names})
    elif arguments.stage == "compare":
        for name in names:
            print(json.dumps({name: compare.compare(name)}), flush=True)
    else:
        {
            "texts": lambda: compare.compare_texts(base.CHOSEN),
            "train": base.train,
            "anneal": lambda: compare.measure(branch := base.anneal(), branch),
            "publish": lambda: base.publish(base.newest_branch()),
            "page": page.write,
        }[arguments.stage]()


if __name__ == "__main__":
    main()
