"""The files of a run: written and read without ComfyUI, in the memory that their tensors take."""

import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from eraseanything_core.training import run_files


def test_the_writer_writes_what_safetensors_reads(tmp_path):
    """Odd sizes before wide types, numbers without an axis, and tensors that share memory."""
    shared = torch.arange(6.0)
    tensors = {
        "a": torch.tensor([1, 2, 255], dtype=torch.uint8),
        "b": shared.view(2, 3),
        "c": shared[2:],
        "d": torch.tensor(7, dtype=torch.int64),
        "e": torch.tensor([0.5, -1], dtype=torch.bfloat16),
        "f": torch.tensor([0.5], dtype=torch.float16),
        "g": torch.tensor([-3], dtype=torch.int8),
        "h": torch.zeros(0, 4),
        "i": torch.tensor([True, False, True]),
        "j": shared.view(2, 3).T,
    }
    run_files._write(tmp_path / "x.safetensors", tensors, {"run": "π"})
    for found in (load_file(tmp_path / "x.safetensors"), run_files._read(tmp_path / "x.safetensors")[0]):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[k], t) and found[k].dtype == t.dtype for k, t in tensors.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["run"] == "π"


@pytest.fixture
def traced():
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_pools_are_written_from_where_they_lie(tmp_path, traced):
    """64 MiB; what Python holds of it at a time, torch's own arrays not counted."""
    run_files.save_trajectories(
        tmp_path, 0, {"concept.x": torch.ones(4, 2**20), "retain.x": torch.ones(12, 2**20)}, "", 1
    )
    assert traced() < 4 * 2**20
    assert run_files.load_trajectories(tmp_path, 0, "")[0]["retain.x"].sum() == 12 * 2**20
    assert traced() < 4 * 2**20
