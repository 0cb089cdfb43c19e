import math
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from eraseanything_core import sampling
from eraseanything_core.training import trajectories


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
    x, v = trajectories.allocate((3, steps + 1, 2, 4, 4), 1), trajectories.allocate((3, steps, 2, 4, 4), 1)
    trajectories.collect(points, x, v)
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
    pool = trajectories.Trajectories(["a", "b", "c"], x, v, sigmas)
    row, step = pool.draw(500, 0.0, torch.Generator().manual_seed(1))
    point, t, _ = pool.at(row, step, "cpu")
    assert set(row.tolist()) == {0, 1, 2} and set(step.tolist()) == set(range(10))
    t = t[:, None, None, None]
    assert torch.allclose(point, (1 - t) * x_0[row] + t * noise[row], atol=1e-5)


def test_a_window_of_high_times():
    *_, sigmas, (x, v) = walk()
    pool = trajectories.Trajectories(["a"], x, v, sigmas)
    _, step = pool.draw(300, 0.6, torch.Generator().manual_seed(1))
    assert sigmas[step].min() >= 0.6 and sigmas[step].max() == 1


def test_beyond_its_bound_an_array_lies_on_disk_and_holds_the_same():
    def anonymous() -> int:
        """Bytes of this process that no file backs; only Linux tells."""
        if sys.platform != "linux":
            return 0
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])

    shape, before = (16, 1024, 1024), anonymous()
    on_disk = trajectories.allocate(shape, gib=0.01)
    on_disk[3, 5] = torch.arange(1024.0)
    on_disk[:, 7] = 1.0
    assert on_disk.sum() == 1023 * 512 + 16 * 1024 and on_disk.shape == shape
    assert anonymous() - before < 8 * 2**20, "64 MiB were asked for"


@pytest.fixture(params=("reserved", "filled with zeros"))
def way(request, monkeypatch):
    """Both ways to take the disk's space."""
    if request.param == "filled with zeros":
        monkeypatch.delattr("os.posix_fallocate", raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the blocks of a file")
def test_an_array_on_disk_has_its_space_before_it_is_written(way, monkeypatch):
    """A sparse file on a disk that fills up is SIGBUS."""
    files, original = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: files.append(original()) or files[-1])
    on_disk = trajectories.allocate((5, 2**18 + 1), gib=0)
    assert 512 * os.fstat(files[0].fileno()).st_blocks >= on_disk.nbytes and not on_disk.any()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on files")
def test_a_disk_without_room_is_an_error_with_advice(way):
    """A limit on the size of files stands for the disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"no room for 0.1 GiB of cached trajectories in .*too large.: make room there, or lower"
        ):
            trajectories.allocate((25, 2**20), gib=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_lies_beside_an_array_counts_towards_its_bound(monkeypatch):
    asked, original = [], trajectories.reserve
    monkeypatch.setattr(trajectories, "reserve", lambda file, size: asked.append(size) or original(file, size))
    for beside in (0, 2**20, 2**20 + 1):
        trajectories.allocate((2**18,), 2 / 1024, beside)
    assert asked == [2**20]
