"""Every published size has its published architecture: the parameter counts are exact."""

import jax
import pytest
from flax import nnx

from jaxtempl.config import paths, sizes
from jaxtempl.models.neox import NeoX, parameter_count
from jaxtempl.specs.architecture import NeoXArchitecture

COUNTS = {  # without and with the embedding and the output (Pythia: model cards; nano: README)
    # l layers of width h, by hand: l (12 h^2 + 13 h) + 2 h, plus twice 8192 h
    "nano-0.6m": (25_472, 549_760),
    "nano-0.9m": (84_912, 871_344),
    "nano-1.3m": (200_064, 1_248_640),
    "nano-1.9m": (335_712, 1_908_576),
    "nano": (793_344, 2_890_496),
    "14m": (1_189_888, 14_067_712),
    "31m": (4_739_072, 30_494_720),
    "70m": (18_915_328, 70_426_624),
    "160m": (85_056_000, 162_322_944),
    "410m": (302_311_424, 405_334_016),
    "1b": (805_736_448, 1_011_781_632),
    "1.4b": (1_208_602_624, 1_414_647_808),
    "2.8b": (2_517_652_480, 2_775_208_960),
    "6.9b": (6_444_163_072, 6_857_302_016),
    "12b": (11_327_027_200, 11_846_072_320),
}
RATES = {"410m": 3e-4, "1.4b": 2e-4, "2.8b": 1.6e-4}  # Table 1 of the paper


def test_every_size_has_a_published_count() -> None:
    names = {path.stem for path in (paths.CONFIGS / "sizes").glob("*.yaml")}
    assert {name for name in names if not name.startswith("bert-")} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_equal_the_published_ones(name: str) -> None:
    a = NeoXArchitecture(**sizes.read_size(name)["architecture"])
    model = nnx.eval_shape(lambda: NeoX(a, a.vocabulary, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model))
    inner = {key: tree for key, tree in params.items() if key not in ("embed", "head")}
    assert (parameter_count(inner), parameter_count(params)) == COUNTS[name]
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", COUNTS)
def test_hyperparameters_equal_the_published_ones(name: str) -> None:
    size = sizes.read_size(name)
    assert sizes.tokenizer_path(name).is_file()
    assert size["adapt"]["learning_rate"] == RATES.get(name, size["adapt"]["learning_rate"])
    if not name.startswith("nano"):
        assert size["weights"] == f"EleutherAI/pythia-{name}"
        assert size["finetune"]["learning_rate"] == 1e-5  # Table 2 of the paper
