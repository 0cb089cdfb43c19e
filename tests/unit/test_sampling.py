import math
import re
import sys
from pathlib import Path

import pytest
import torch

from eraseanything_core import sampling


def test_shifted_sigmas_run_from_exactly_one_to_exactly_zero():
    for steps in (1, 4, 20, 28):
        sigmas = sampling.shifted_sigmas(steps, 1.15)
        assert len(sigmas) == steps + 1 and sigmas[0] == 1 and sigmas[-1] == 0
        assert (sigmas[:-1] > sigmas[1:]).all()


def test_shift_is_flux_own_formula():
    even = torch.linspace(1, 0, 11)[1:-1]
    expected = math.exp(0.63) / (math.exp(0.63) + (1 / even - 1))
    assert torch.allclose(sampling.shifted_sigmas(10, 0.63)[1:-1], expected, atol=1e-6)
    assert torch.allclose(sampling.shifted_sigmas(10, 0.0), torch.linspace(1, 0, 11), atol=1e-6)


def test_token_mu():
    assert sampling.token_mu(256) == 0.5 and sampling.token_mu(4096) == pytest.approx(1.15)
    assert sampling.token_mu(1024) == pytest.approx(0.63)


def walk(steps=10):
    """The exact field of one image: v = (x_t - x_0) / t leads every noise to x_0 in straight lines."""
    x_0, noise = torch.full((3, 2, 4, 4), 0.5), torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sigmas = sampling.shifted_sigmas(steps, 1.15)
    points = sampling.euler(lambda x, t: (x - x_0) / t[:, None, None, None], noise, sigmas)
    x, v = sampling.room((3, steps + 1, 2, 4, 4), 1), sampling.room((3, steps, 2, 4, 4), 1)
    sampling.collect(points, x, v)
    return x_0, noise, sigmas, (x, v)


def test_euler_stays_on_the_line_and_arrives():
    x_0, noise, sigmas, (x, v) = walk()
    assert x.shape == (3, 11, 2, 4, 4) and v.shape == (3, 10, 2, 4, 4)
    for k, t in enumerate(sigmas):
        assert torch.allclose(x[:, k], (1 - t) * x_0 + t * noise, atol=1e-5)
    assert torch.allclose(v, (noise - x_0)[:, None].expand_as(v), atol=1e-4)


def test_the_walk_is_the_same_every_time():
    """The reference code's scheduler kept a step index between walks and stood still from the second on."""
    assert torch.equal(walk()[3][0], walk()[3][0])


def test_a_pool_gives_the_point_with_its_own_time():
    x_0, noise, sigmas, (x, v) = walk()
    pool = sampling.Pool(["a", "b", "c"], x, v, sigmas)
    row, step = pool.draw(500, (0.0, 1.0), torch.Generator().manual_seed(1))
    point, t, _ = pool.at(row, step, "cpu")
    assert set(row.tolist()) == {0, 1, 2} and set(step.tolist()) == set(range(10))
    t = t[:, None, None, None]
    assert torch.allclose(point, (1 - t) * x_0[row] + t * noise[row], atol=1e-5)


def test_a_window_of_high_times():
    *_, sigmas, (x, v) = walk()
    pool = sampling.Pool(["a"], x, v, sigmas)
    _, step = pool.draw(300, (0.6, 1.0), torch.Generator().manual_seed(1))
    assert sigmas[step].min() >= 0.6 and sigmas[step].max() == 1


def test_beyond_its_bound_an_array_lies_on_disk_and_holds_the_same():
    def anonymous() -> int:
        """Bytes of this process that no file backs; only Linux tells."""
        if sys.platform != "linux":
            return 0
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])

    shape, before = (16, 1024, 1024), anonymous()
    on_disk = sampling.room(shape, gib=0.01)
    on_disk[3, 5] = torch.arange(1024.0)
    on_disk[:, 7] = 1.0
    assert on_disk.sum() == 1023 * 512 + 16 * 1024 and on_disk.shape == shape
    assert anonymous() - before < 8 * 2**20, "64 MiB were asked for"
