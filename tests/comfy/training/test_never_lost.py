"""Work is never lost: kills, full disks, damaged states, interrupts, SIGTERM, names that are taken."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import comfy.sd
import pytest
import torch
from safetensors.torch import load, save_file

from eraseanything_core import files
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.training import method, optimizers, run_files, trainer
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.termination import defer_sigterm


@pytest.mark.skipif(sys.platform != "linux", reason="forks after torch has run, which only Linux stands")
def test_twenty_kills_leave_the_same_bits(tmp_path):
    script = Path(__file__).with_name("killed.py")
    run = subprocess.run([sys.executable, script, tmp_path, "20", "1"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert len(told["saved"]) == 20 and told["same"] and not told["unreadable"], told
    assert sum(pairs > 0 for pairs in told["saved"]) >= 3 and told["looks"] > 20, told
    assert sorted(set(told["left"])) == ["finished.safetensors", "state.safetensors"], told


def test_a_file_that_goes_while_it_is_looked_at_is_not_unreadable(tmp_path, monkeypatch):
    """A damaged one is."""
    spec = importlib.util.spec_from_file_location("killed", Path(__file__).with_name("killed.py"))
    killed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(killed)
    pools, second_open = tmp_path / "pools-0.safetensors", torch.UntypedStorage.from_file
    save_file({"x": torch.ones(8)}, pools)

    def gone(*args, **more):
        pools.unlink()
        return second_open(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch.UntypedStorage, "from_file", gone)
        assert killed.unreadable(tmp_path) == []
    pools.write_bytes(pools.read_bytes()[:-1])
    (bad,) = killed.unreadable(tmp_path)
    assert bad.startswith("pools-0.safetensors: ")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", lambda *_: [tmp_path / "pools-1.safetensors"])
        assert killed.unreadable(tmp_path) == []


def stop_at(pair):
    def progress(step, _):
        if step == pair:
            raise KeyboardInterrupt

    return progress


def test_a_state_that_is_cut_off(patcher, clip, config, tmp_path):
    train_eraser(ComfyHost(patcher, clip), config, stop_at(2), tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state.safetensors is damaged \(.*\): delete it, or start") as caught:
        train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_state_with_a_flipped_bit(patcher, clip, config, tmp_path):
    train_eraser(ComfyHost(patcher, clip), config, stop_at(2), tmp_path)
    state = tmp_path / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-100] ^= 4
    state.write_bytes(data)
    with pytest.raises(ValueError, match="damaged .its checksum differs"):
        train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)


def test_a_file_of_somebody_else(patcher, clip, config, tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="is no state of a run"):
        train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)


def test_an_error_between_pairs_keeps_all_of_them(patcher, clip, config, tmp_path):
    """No autosave was due: the error itself saves, and the run goes on to the same bits."""

    def fail(step, _):
        if step == 2:
            raise RuntimeError("the window was closed")

    whole = train_eraser(ComfyHost(patcher, clip), config)
    with pytest.raises(RuntimeError, match="window"):
        train_eraser(ComfyHost(patcher, clip), config, fail, tmp_path / "run")
    steps = []
    rest = train_eraser(ComfyHost(patcher, clip), config, lambda step, _: steps.append(step), tmp_path / "run")
    assert steps == [3] and rest.losses == whole.losses
    assert all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)


def test_an_error_before_the_first_state_leaves_no_run(patcher, clip, config, tmp_path, monkeypatch):
    """But a folder that was there before keeps its pools, which a run that was killed has left."""

    def fail(*args):
        raise RuntimeError("out of memory")

    def files_after(folder):
        with pytest.raises(RuntimeError, match="out of memory"):
            train_eraser(ComfyHost(patcher, clip), config, run_dir=folder)
        return {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}

    monkeypatch.setattr(method, "preserve_graphs", fail)
    assert files_after(tmp_path / "run") == set()
    (tmp_path / "run").mkdir()
    assert files_after(tmp_path / "run") == {"run", "run/pools-0.safetensors"}


def broken_off(monkeypatch, where, error):
    """The third pair fails after its erasing step, or after both steps but before it is counted."""
    original, calls = getattr(method, where), []

    def fail(*args):
        calls.append(1)
        if len(calls) == {"preserve_graphs": 3, "optimizer_step": 6}[where]:
            if where == "optimizer_step":
                original(*args)
            raise error
        return original(*args)

    monkeypatch.setattr(method, where, fail)


@pytest.mark.parametrize("where", ("preserve_graphs", "optimizer_step"))
@pytest.mark.parametrize("name", optimizers.LIBRARIES)
def test_an_error_within_a_pair_keeps_the_last_whole_one(patcher, clip, config, tmp_path, monkeypatch, where, name):
    """No autosave was due; the state is that of two pairs, and the run goes on to the bits of one never stopped."""
    rate = 1.0 if name == "prodigy" else 1e-3
    config = dataclasses.replace(config, optimizer=name, lr_low=rate, lr_up=rate, rank=16)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    two = train_eraser(ComfyHost(patcher, clip), config, stop_at(2))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        broken_off(patch, where, RuntimeError("out of memory"))
        train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path / "run")
    saved = load((tmp_path / "run" / "state.safetensors").read_bytes())  # load_file would hold it open
    assert all(torch.equal(saved[f"lora.{key}"], tensor) for key, tensor in two.lora.items())
    steps = []
    rest = train_eraser(ComfyHost(patcher, clip), config, lambda step, _: steps.append(step), tmp_path / "run")
    assert steps == [3] and rest.losses == whole.losses
    assert all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)


def test_an_interrupt_within_a_pair_hands_on_the_last_whole_one(patcher, clip, config, monkeypatch):
    """As Ctrl-C is, which does not wait for the pair's end."""
    two = train_eraser(ComfyHost(patcher, clip), config, stop_at(2))
    broken_off(monkeypatch, "preserve_graphs", KeyboardInterrupt())
    found = train_eraser(ComfyHost(patcher, clip), config)
    assert found.interrupted and found.steps == 2 and found.losses == two.losses
    assert all(torch.equal(found.lora[k], two.lora[k]) for k in two.lora)


@pytest.mark.parametrize("name", optimizers.LIBRARIES)
def test_every_optimiser_goes_on_with_the_same_bits(patcher, clip, config, tmp_path, name):
    """At rank 16 a factor has the 4,096 weights from which on bitsandbytes keeps bytes."""
    rate = 1.0 if name == "prodigy" else 1e-3
    change = {
        "rank": 16,
        "steps": 5,
        "lr_schedule": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "gradient_accumulation_steps": 2,
    }
    config = dataclasses.replace(config, optimizer=name, lr_low=rate, lr_up=rate, **change)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    train_eraser(ComfyHost(patcher, clip), config, stop_at(3), tmp_path / "run")
    rest = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path / "run")
    assert all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)
    assert any(t.abs().max() > 0 for k, t in whole.lora.items() if "lora_B" in k)


def test_a_walked_pool_outlives_a_stop(patcher, clip, config, tmp_path):
    """On-policy trajectories cannot be walked again: the student that walked them has moved."""
    config = dataclasses.replace(config, steps=6, refresh_every=3, on_policy_share=0.5)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    train_eraser(ComfyHost(patcher, clip), config, stop_at(5), tmp_path / "run")
    assert (tmp_path / "run" / "pools-1.safetensors").exists()
    rest = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path / "run")
    assert all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"state.safetensors"}, "a finished run needs no pools"


WITHIN = {"steps": 10}
WALKED = {"refresh_every": 3, "on_policy_share": 0.5, "gradient_accumulation_steps": 2, "steps": 8}


@pytest.mark.parametrize(
    "change, first, stop, whole_pools",
    ((WITHIN, 3, 2, False), (WITHIN, 3, None, False), (WALKED, 5, 4, False), (WALKED, 3, None, True)),
)
def test_a_run_may_be_asked_for_more_pairs(patcher, clip, config, tmp_path, change, first, stop, whole_pools):
    """Stopped or ended: its pairs have the points that a run of that length has from the start.

    Within a pool the teacher is asked for the later targets in other batches, so they are the same up to rounding.
    """
    small = {"width": 32, "height": 32, "batch_size": 1, "retain_batch_size": 1, "sampling_steps": 8}
    config = dataclasses.replace(config, **small | change)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, steps=first), stop_at(stop), tmp_path / "run")
    rest = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path / "run")
    assert rest.losses.keys() == whole.losses.keys()
    assert all(rest.losses[name] == pytest.approx(values, rel=1e-4) for name, values in whole.losses.items())
    assert not whole_pools or all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)


@pytest.mark.parametrize(
    "change", ({"concept": "blue heart", "eta": 0.3, "seed": 7}, {"cached_trajectories": 6, "width": 64})
)
def test_pools_of_other_settings_are_not_used(patcher, clip, config, tmp_path, monkeypatch, change):
    """Killed before its first state, a run leaves its pools; then the settings change."""
    with monkeypatch.context() as patch:
        patch.setattr(run_files, "discard", lambda folder: None)
        patch.setattr(trainer, "train_pair", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["pools-0.safetensors"]
    other = dataclasses.replace(config, **change)
    fresh = train_eraser(ComfyHost(patcher, clip), other)
    found = train_eraser(ComfyHost(patcher, clip), other, run_dir=tmp_path / "run")
    assert all(torch.equal(found.lora[k], fresh.lora[k]) for k in fresh.lora)


@pytest.mark.parametrize("shape", ({}, {"depth": 1}))
def test_a_run_of_another_base_model_is_not_resumed(patcher, clip, config, make_flux, tmp_path, shape):
    """Of the same shape or of another; the model that it was of goes on."""
    train_eraser(ComfyHost(patcher, clip), config, stop_at(2), tmp_path)
    state = {name: 1.01 * tensor for name, tensor in make_flux(**shape).state_dict().items()}
    with torch.inference_mode():
        other = comfy.sd.load_diffusion_model_state_dict(state)
    with pytest.raises(ValueError, match=r"is of another base model \(\w{12}, not \w{12}\): connect that") as caught:
        train_eraser(ComfyHost(other, clip), config, run_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path).steps == 3


def test_a_state_that_does_not_say_which_model_it_is_of(patcher, clip, config, tmp_path):
    """As the first format of states did not."""
    train_eraser(ComfyHost(patcher, clip), config, stop_at(2), tmp_path)
    tensors, header = run_files._read(tmp_path / "state.safetensors")
    run = json.loads(header["run"])
    del run["format"], run["base"]
    run_files._write(tmp_path / "state.safetensors", tensors, {"run": json.dumps(run)})
    with pytest.raises(ValueError, match="saved by another version of this pack: go on with that one, or start"):
        train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped")
def test_no_file_is_mapped_when_it_is_replaced_or_removed(patcher, clip, config, tmp_path, monkeypatch):
    """Windows refuses both. The pools of the stopped run, which are read mapped, are written anew with more targets."""
    config, told = dataclasses.replace(config, steps=6, refresh_every=3, save_every=1), []
    train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, steps=2), stop_at(2), tmp_path)

    def watched(method, at):
        def call(*args, **kwargs):
            told.append((args[at].name, str(args[at]) in Path("/proc/self/maps").read_text()))
            return method(*args, **kwargs)

        return call

    monkeypatch.setattr(Path, "replace", watched(Path.replace, 1))
    monkeypatch.setattr(Path, "unlink", watched(Path.unlink, 0))
    train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
    assert {name for name, _ in told if name[0] != "."} == {f"{n}.safetensors" for n in ("state", "pools-0", "pools-1")}
    assert not any(mapped for _, mapped in told)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped")
def test_a_resumed_run_has_not_mapped_its_state(patcher, clip, config, tmp_path):
    """The optimisers keep the very tensors that they are given."""
    train_eraser(ComfyHost(patcher, clip), config, stop_at(2), tmp_path)
    told = []
    look = lambda *_: told.append(str(tmp_path) in Path("/proc/self/maps").read_text())  # noqa: E731
    train_eraser(ComfyHost(patcher, clip), config, look, tmp_path)
    assert told == [False]


@pytest.mark.parametrize("recompute", (False, True))
def test_memory_settings_may_differ_when_resumed(patcher, clip, config, tmp_path, recompute):
    config = dataclasses.replace(config, gradient_checkpointing=recompute)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    train_eraser(ComfyHost(patcher, clip), config, stop_at(1), tmp_path / "run")
    other = dataclasses.replace(config, gradient_checkpointing=not recompute)
    rest = train_eraser(ComfyHost(patcher, clip), other, run_dir=tmp_path / "run")
    assert all(torch.allclose(rest.lora[k], whole.lora[k], atol=1e-6) for k in whole.lora)


def test_sigterm_is_an_interrupt_first():
    told, before = [], signal.signal(signal.SIGTERM, lambda *_: told.append("passed on"))
    try:
        with defer_sigterm(lambda: told.append("interrupt"), lambda work: work()):
            signal.raise_signal(signal.SIGTERM)
            told.append("work ends")
        assert told == ["interrupt", "work ends", "passed on"]
        with defer_sigterm(lambda: told.append("interrupt"), lambda work: work()):
            pass
        assert len(told) == 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_names_are_numbered():
    assert files.free_name("eraser", set()) == "eraser"
    assert files.free_name("eraser", {"eraser", "eraser_2", "eraser_4"}) == "eraser_3"


def test_a_name_in_other_letters_is_taken():
    """It is the same file on Windows and macOS."""
    assert files.free_name("eraser", {"Eraser", "ERASER_2"}) == "eraser_3"
    assert files.free_name("caf\u00e9", {"Cafe\u0301"}) == "caf\u00e9_2"


@pytest.mark.parametrize("refusals", (2, 9))
def test_a_file_that_is_open_elsewhere_is_waited_for(tmp_path, monkeypatch, refusals):
    """As a virus scanner has it on Windows, for a moment or for good: then the old file stays."""
    path, original, tries = files.write_atomic(tmp_path / "x", b"old"), Path.replace, []

    def refuse(part, target):
        tries.append(part)
        if len(tries) <= refusals:
            raise PermissionError(13, "used by another process")
        return original(part, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError) if refusals == 9 else nullcontext():
        files.write_atomic(path, b"new")
    assert path.read_bytes() == (b"old" if refusals == 9 else b"new") and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_takes_no_files(tmp_path):
    (tmp_path / "runs").write_text("a file stands where the folder should be")
    with pytest.raises(ValueError, match="cannot write into"):
        files.check_folder(tmp_path / "runs")


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="a folder that nobody may write to, not even root")
def test_a_read_only_folder(patcher, clip, config, tmp_path):
    """It is found before the work where the node asks, and named where a run meets it."""
    with pytest.raises(ValueError, match="cannot write into /sys/kernel/eraser: "):
        files.check_folder(Path("/sys/kernel/eraser"))
    with pytest.raises(
        OSError, match="cannot save the run in /sys/kernel/eraser .*: allow writing there, .* and start again"
    ) as caught:
        train_eraser(ComfyHost(patcher, clip), config, run_dir=Path("/sys/kernel/eraser"))
    assert "\n" not in str(caught.value)
