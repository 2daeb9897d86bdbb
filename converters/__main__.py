"""`python -m converters huggingface --run=RUN --out=DIR`: one converter by name, its flags after it."""

import sys
from collections.abc import Sequence

from converters import huggingface
from jaxtempl import cli, config
from jaxtempl.errors import UsageError

CONVERTERS = {"huggingface": huggingface.main}


def main(argv: Sequence[str]) -> None:
    """Runs the converter that `argv` names.

    Raises:
        UsageError: no such converter, or a flag that it does not take.
        UserError: the conversion failed.
    """
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(f"usage: bin/convert {'|'.join(CONVERTERS)} --run=RUN --out=DIR; each has its own --help")
        return
    if name not in CONVERTERS:
        raise UsageError(
            f"converter {name!r} is unknown; allowed: {', '.join(CONVERTERS)}, as in bin/convert huggingface"
        )
    asked = config.parse(config.ConvertConfig, argv[1:])
    print(config.dump(asked), flush=True)
    CONVERTERS[name](asked)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
