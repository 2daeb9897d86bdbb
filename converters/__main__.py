"""`python -m converters NAME --flags`: one converter by name, its flags after it.

A converter is imported when it is called: those for the serving machine run where there is no JAX.
"""

import importlib
import sys
from collections.abc import Sequence

from jaxtempl import cli
from jaxtempl.config import parsing
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
    """Runs the converter that `argv` names.

    Raises:
        UsageError: no such converter, or a flag that it does not take.
        UserError: the conversion failed.
    """
    name = cli.named("bin/convert", CONVERTERS, argv)
    if not name:
        return
    module, kind = CONVERTERS[name]
    asked = parsing.parse(kind, argv[1:])
    print(parsing.dump(asked), flush=True)
    importlib.import_module(module).main(asked)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
