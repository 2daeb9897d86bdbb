"""The sizes of `configs/sizes/` as architectures, and the one of them that is nearest to another model."""

import math

from jaxtempl.config import sizes
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import Architecture, architecture_from


def size_architecture(size: str) -> Architecture:
    """Return the architecture of one of `configs/sizes/`.

    Raises:
        UsageError: There is no such size.
    """
    return architecture_from(sizes.read_size(size)["architecture"])


def nearest_size(a: Architecture) -> str:
    """Return the size of the same family whose number of parameters is nearest to the model's, as a ratio."""
    shapes = {name: size_architecture(name) for name in sizes.size_names()}
    same = {name: flops.parameter_count(shape) for name, shape in shapes.items() if shape.family == a.family}
    return min(same, key=lambda name: abs(math.log(same[name] / flops.parameter_count(a))))
