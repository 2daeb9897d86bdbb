"""`python -m converters NAME --flags`: run one converter by name.

A converter is imported on use, because those for the serving machine run without JAX.
"""

import importlib
import sys
from collections.abc import Sequence

from jaxtempl import cli
from jaxtempl.config.converting import (
    ConvertHuggingfaceConfig,
    ConvertOnnxConfig,
    ConvertTensorrtConfig,
    ConvertTritonConfig,
)

CONVERTERS: dict[str, tuple[str, type]] = {
    "huggingface": ("converters.huggingface.export", ConvertHuggingfaceConfig),
    "onnx": ("converters.onnx.export", ConvertOnnxConfig),
    "tensorrt": ("converters.tensorrt.convert", ConvertTensorrtConfig),
    "triton": ("converters.triton.convert", ConvertTritonConfig),
}


def main(argv: Sequence[str]) -> None:
    """Run the converter that `argv` names.

    Raises:
        UsageError: The converter does not exist, or does not have a flag.
        UserError: The conversion failed.
    """
    from jaxtempl.config import parsing  # a package that is not installed is reported only inside `cli.run`

    name = cli.named("bin/convert", CONVERTERS, argv)
    if not name:
        return
    module, kind = CONVERTERS[name]
    config = parsing.parse(kind, argv[1:])
    if config.verbose:
        print(parsing.dump(config), flush=True)
    importlib.import_module(module).main(config)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
