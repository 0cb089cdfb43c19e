"""The files of a run: written and read without ComfyUI, in the memory that their tensors take."""

import dataclasses
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eraseanything_core.training import run_files
from eraseanything_core.training.config import EraseConfig


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


class Factors:
    """A LoRA of no size."""

    def tensors(self, dtype):
        return {"a": torch.zeros(1, dtype=dtype)}


CONFIG = EraseConfig(concept="red  star", templates=("a red star at night",), steps=10)
PLANNED = dataclasses.replace(CONFIG, concept="red star", templates=("a {} at night",))  # as `plan.prepare` leaves it


def stopped_run(folder, pairs, config=PLANNED, base="model"):
    run_files.save_state(folder, Factors(), [], config, {"loss": [0.0] * pairs}, {}, base=base)
    return folder


def test_a_stopped_run_is_found_by_its_settings_and_its_model(tmp_path):
    """Of two the one with more pairs; it may be asked for more pairs than it was, but not for fewer than it has."""
    runs = [stopped_run(tmp_path / "run", 3), stopped_run(tmp_path / "run_2", 5), tmp_path / "none"]
    assert run_files.unfinished_run(runs, CONFIG, "model") == tmp_path / "run_2"
    assert run_files.unfinished_run(runs, dataclasses.replace(CONFIG, steps=4, save_every=1), "model") == runs[0]
    assert run_files.unfinished_run(runs, dataclasses.replace(CONFIG, steps=2), "model") is None
    assert run_files.unfinished_run(runs, dataclasses.replace(CONFIG, seed=1), "model") is None
    assert run_files.unfinished_run(runs, CONFIG, "another model") is None


def test_a_stopped_run_whose_rates_follow_its_looks_is_found(tmp_path):
    """Its held-out prompts count then, and they are saved as templates too."""
    typed = dataclasses.replace(CONFIG, adapt_rate=True, held_out=("a drawing of a red star",))
    planned = dataclasses.replace(PLANNED, adapt_rate=True, held_out=("a drawing of a {}",))
    run = stopped_run(tmp_path / "run", 3, planned)
    assert run_files.unfinished_run([run], typed, "model") == run
    other = dataclasses.replace(typed, held_out=("an image of a red star",))
    assert run_files.unfinished_run([run], other, "model") is None


def test_a_stopped_run_that_removes_a_look_is_found(tmp_path):
    """Its prompts are ordinary ones, without a place for the look's name."""
    look = dataclasses.replace(CONFIG, concept="bokeh", unasked="{}, blurred", templates=("a red star at night",))
    run = stopped_run(tmp_path / "run", 3, look)
    assert run_files.unfinished_run([run], look, "model") == run


def test_a_run_that_has_ended_is_not_gone_on_with(tmp_path):
    run = stopped_run(tmp_path / "run", 10)
    assert run_files.unfinished_run([run], CONFIG, "model") == run, "its LoRA is not written yet"
    run_files.mark_finished(run, "run.safetensors")
    assert run_files.unfinished_run([run], CONFIG, "model") is None
    assert run_files.unfinished_run([run], dataclasses.replace(CONFIG, steps=20), "model") is None
    assert (run / "lora.txt").read_text() == "run.safetensors"


def test_a_run_that_was_killed_before_its_first_state_is_found(tmp_path):
    """By its trajectories, which need not be walked again."""
    run = tmp_path / "run"
    own = run_files.identity(PLANNED, "model")
    run_files.save_trajectories(run, 0, {"concept.x": torch.zeros(1)}, own, 1)
    assert run_files.unfinished_run([run], CONFIG, "model") == run
    assert run_files.unfinished_run([run], dataclasses.replace(CONFIG, seed=1), "model") is None
    (tmp_path / "empty").mkdir()
    assert run_files.unfinished_run([tmp_path / "empty"], CONFIG, "model") is None


def test_damaged_states_and_those_of_others_are_passed_over(tmp_path):
    cut = stopped_run(tmp_path / "cut", 3)
    state = cut / run_files.STATE_FILE
    state.write_bytes(state.read_bytes()[:-4])
    other = tmp_path / "other"
    other.mkdir()
    save_file({"weight": torch.ones(2)}, other / run_files.STATE_FILE)
    old = tmp_path / "old"
    run_files._write(old / run_files.STATE_FILE, {"x": torch.zeros(1)}, {"run": '{"config": {}, "losses": {}}'})
    assert run_files.unfinished_run([cut, other, old], CONFIG, "model") is None


def test_a_run_that_is_discarded_leaves_those_in_folders_below_it(tmp_path):
    """The run `people` beside the run `people/alice`."""
    above, below = tmp_path / "people", tmp_path / "people" / "alice"
    below.mkdir(parents=True)
    (above / "pools-0.safetensors").write_bytes(b"x")
    (below / run_files.STATE_FILE).write_bytes(b"y")
    run_files.discard(above)
    assert [path.name for path in above.iterdir()] == ["alice"] and (below / run_files.STATE_FILE).exists()
    run_files.discard(below)
    assert (below / run_files.STATE_FILE).exists(), "a run with a state stays"
    (below / run_files.STATE_FILE).unlink()
    run_files.discard(below)
    assert not below.exists()
