"""The network of FID against the same network in torch, with random weights under pytorch-fid's names."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_model import relative_error

from dreamjax.convert.formats import inception as reading
from dreamjax.errors import ConfigError
from dreamjax.models import inception


class Theirs:
    """The network written out in torch's functions; each convolution draws its weights when it is first run."""

    def __init__(self):
        self.state, self.generator = {}, torch.Generator().manual_seed(0)

    def conv(self, name, x, features, kernel=1, **how):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        if f"{name}.conv.weight" not in self.state:

            def draw(*shape):
                return torch.randn(shape, generator=self.generator)

            fan_in = x.shape[1] * kernel[0] * kernel[1]
            self.state[f"{name}.conv.weight"] = draw(features, x.shape[1], *kernel) * (2 / fan_in) ** 0.5
            self.state |= {f"{name}.bn.weight": 1 + 0.2 * draw(features), f"{name}.bn.bias": 0.2 * draw(features)}
            self.state |= {
                f"{name}.bn.running_mean": 0.2 * draw(features),
                f"{name}.bn.running_var": 1 + 0.2 * draw(features).abs(),
            }
        weight, scale, bias, mean, var = (
            self.state[f"{name}.{part}"]
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        return F.relu(F.batch_norm(F.conv2d(x, weight, **how), mean, var, scale, bias, eps=0.001))

    def chain(self, block, x, *steps):
        for name, features, kernel in steps:
            padding = (
                0
                if isinstance(kernel, int) and kernel == 1
                else kernel // 2
                if isinstance(kernel, int)
                else (kernel[0] // 2, kernel[1] // 2)
            )
            x = self.conv(f"{block}.{name}", x, features, kernel, padding=padding)
        return x

    def mean(self, x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def a(self, block, x, pooled):
        double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
        return torch.cat(
            [
                self.chain(block, x, ("branch1x1", 64, 1)),
                self.chain(block, x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
                self.chain(block, x, *double),
                self.chain(block, self.mean(x), ("branch_pool", pooled, 1)),
            ],
            1,
        )

    def c(self, block, x, n):
        seven = [("branch7x7_1", n, 1), ("branch7x7_2", n, (1, 7)), ("branch7x7_3", 192, (7, 1))]
        double = [
            (f"branch7x7dbl_{i}", 192 if i == 5 else n, 1 if i == 1 else ((1, 7), (7, 1))[i % 2 == 0])
            for i in range(1, 6)
        ]
        return torch.cat(
            [
                self.chain(block, x, ("branch1x1", 192, 1)),
                self.chain(block, x, *seven),
                self.chain(block, x, *double),
                self.chain(block, self.mean(x), ("branch_pool", 192, 1)),
            ],
            1,
        )

    def e(self, block, x, pool):
        three = self.chain(block, x, ("branch3x3_1", 384, 1))
        double = self.chain(block, x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))

        def beside(x, name):
            return [self.chain(block, x, (f"{name}a", 384, (1, 3))), self.chain(block, x, (f"{name}b", 384, (3, 1)))]

        branches = [
            self.chain(block, x, ("branch1x1", 320, 1)),
            *beside(three, "branch3x3_2"),
            *beside(double, "branch3x3dbl_3"),
        ]
        return torch.cat([*branches, self.chain(block, pool(x), ("branch_pool", 192, 1))], 1)

    def __call__(self, x):
        x = self.conv("Conv2d_1a_3x3", x, 32, 3, stride=2)
        x = self.conv("Conv2d_2a_3x3", x, 32, 3)
        x = F.max_pool2d(self.conv("Conv2d_2b_3x3", x, 64, 3, padding=1), 3, 2)
        x = self.conv("Conv2d_3b_1x1", x, 80)
        x = F.max_pool2d(self.conv("Conv2d_4a_3x3", x, 192, 3), 3, 2)
        for block, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self.a(block, x, pooled)
        double = self.chain("Mixed_6a", x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
        x = torch.cat(
            [
                self.conv("Mixed_6a.branch3x3", x, 384, 3, stride=2),
                self.conv("Mixed_6a.branch3x3dbl_3", double, 96, 3, stride=2),
                F.max_pool2d(x, 3, 2),
            ],
            1,
        )
        for block, n in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = self.c(block, x, n)
        three = self.chain("Mixed_7a", x, ("branch3x3_1", 192, 1))
        seven = self.chain(
            "Mixed_7a", x, ("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))
        )
        three, seven = (
            self.conv("Mixed_7a.branch3x3_2", three, 320, 3, stride=2),
            self.conv("Mixed_7a.branch7x7x3_4", seven, 192, 3, stride=2),
        )
        x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
        x = self.e("Mixed_7b", x, self.mean)
        return self.e("Mixed_7c", x, lambda x: F.max_pool2d(x, 3, 1, 1)).mean((2, 3))


def test_equals_torch_under_pytorch_fids_names(tmp_path):
    theirs, x = Theirs(), np.random.default_rng(0).uniform(-1, 1, (2, 107, 91, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    assert expected.shape == (2, 2048) and len(theirs.state) == 94 * 5
    state = theirs.state | {
        "fc.weight": torch.zeros(1008, 2048),
        "fc.bias": torch.zeros(1008),
        "Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(0),
    }
    torch.save(state, tmp_path / "pt_inception.pth")
    params = reading.load(tmp_path / "pt_inception.pth")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 21_785_568 - sum(
        v.numel() for k, v in theirs.state.items() if k.endswith("bn.weight")
    )
    found = jax.jit(lambda params, x: inception.Inception().apply({"params": params}, x))(params, x)
    assert relative_error(found, expected) < 1e-5

    del state["Mixed_7c.branch_pool.bn.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match=r"part.pth: has no Mixed_7c.branch_pool.bn.bias \(192,\)"):
        reading.load(tmp_path / "part.pth")
    torch.save(theirs.state | {"Mixed_8a.conv.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ConfigError, match="1 tensors fit nowhere in Inception-v3, the first is Mixed_8a.conv.weight"):
        reading.load(tmp_path / "more.pth")


@pytest.mark.parametrize("size", [(256, 256), (500, 333), (40, 299)])
def test_images_are_resized_as_torch_does(size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    as_torch = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    expected = (
        2 * F.interpolate(as_torch, size=(299, 299), mode="bilinear", align_corners=False)[0].numpy().transpose(1, 2, 0)
        - 1
    )
    np.testing.assert_allclose(inception.prepare(image), expected, atol=2e-5)
