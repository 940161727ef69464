"""The two projectors: parity with torch, their initial distribution, sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dreamjax.models.projectors import ConditionProjector, VisualProjector


def shapes_of(module, inputs: int) -> dict:
    shapes = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, inputs))), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}


@pytest.mark.parametrize("kind", ["linear", "mlp", "condition"])
def test_parity_with_torch(kind):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if kind == "mlp":
        layers = {"fc1": torch.nn.Linear(6, 8), "fc2": torch.nn.Linear(8, 8)}
        theirs = torch.nn.Sequential(layers["fc1"], torch.nn.GELU(), layers["fc2"])
    else:
        theirs = torch.nn.Linear(6, 8, bias=kind == "linear")
        layers = {"linear": theirs}
    module = ConditionProjector(8) if kind == "condition" else VisualProjector(kind, 8)
    params = {
        name: {"kernel": layer.weight.detach().numpy().T}
        | ({} if layer.bias is None else {"bias": layer.bias.detach().numpy()})
        for name, layer in layers.items()
    }
    assert {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()} == shapes_of(module, 6)
    x = 3 * np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "module", [VisualProjector("mlp", 400), VisualProjector("linear", 400), ConditionProjector(400)]
)
def test_initial_values_are_uniform_within_torchs_bound(module):
    params = flatten_dict(module.init(jax.random.key(0), jnp.zeros((1, 100)))["params"], sep="/")
    for path, leaf in params.items():
        bound = (400 if path.startswith("fc2") else 100) ** -0.5
        assert 0.95 * bound < np.abs(leaf).max() <= bound, path
        assert abs(np.std(leaf) * 3**0.5 / bound - 1) < 0.1, path  # of a uniform distribution


@pytest.mark.parametrize(
    "module, inputs, count",
    [
        (VisualProjector("linear", 4096), 1024, 4_198_400),
        (VisualProjector("mlp", 4096), 1024, 20_979_712),
        (ConditionProjector(1024), 4096, 4_194_304),
    ],
)
def test_counts_at_the_real_size(module, inputs, count):
    assert sum(map(math.prod, shapes_of(module, inputs).values())) == count


@pytest.mark.parametrize("module", [VisualProjector("mlp", 8, jnp.bfloat16), ConditionProjector(8, jnp.bfloat16)])
def test_bfloat16_computes_in_bfloat16_with_float32_parameters(module):
    params = module.init(jax.random.key(0), jnp.zeros((1, 6)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert module.apply(params, jnp.ones((1, 6))).dtype == jnp.bfloat16


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="'MLP' is neither linear nor mlp"):
        VisualProjector("MLP", 8).init(jax.random.key(0), jnp.zeros((1, 6)))
