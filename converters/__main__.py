"""`python -m converters NAME --flags`: one converter by name, its flags after it.

A converter is imported when it is called: those for the serving machine run where there is no JAX.
"""

import importlib
import sys
from collections.abc import Sequence

from jaxtempl import cli, config
from jaxtempl.config import ConvertHuggingfaceConfig, ConvertOnnxConfig, ConvertTensorrtConfig, ConvertTritonConfig

CONVERTERS: dict[str, tuple[str, type]] = {
    "huggingface": ("converters.huggingface", ConvertHuggingfaceConfig),
    "onnx": ("converters.onnx_export", ConvertOnnxConfig),
    "tensorrt": ("converters.tensorrt", ConvertTensorrtConfig),
    "triton": ("converters.triton", ConvertTritonConfig),
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
    asked = config.parse(kind, argv[1:])
    print(config.dump(asked), flush=True)
    importlib.import_module(module).main(asked)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
