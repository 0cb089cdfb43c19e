"""The plug-in in eval-unlearn's own runner, offline, as an installed package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eraseanything_core.lora.adapter import Lora
from eraseanything_core.lora.keys import target_slices

pytest.importorskip("eval_unlearn")
pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[2]
CUT = """# Python imports this by itself before anything else.
import socket

def refused(*given, **named):
    raise OSError("this process has no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.gethostbyname = refused
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Installs pack and laboratory without their dependencies, and runs Python lines beside them with no network."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    for package in ("eraseanything_core", "lab"):  # building leaves folders behind
        shutil.copytree(ROOT / package, source / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ["-q", "--no-deps", "--no-index", "--no-build-isolation"]
    command = ["install", *offline, "--target", str(site), str(source), str(source / "lab")]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, capture_output=True)

    (site / "sitecustomize.py").write_text(CUT)

    def run(lines: str) -> list:
        paths = os.pathsep.join([str(site), os.environ["COMFYUI_PATH"]])
        variables = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", lines], env=variables, cwd=site, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def benchmark(out: Path, *loras: str) -> str:
    """One process for all, since it takes longer to start than to draw."""
    return f"""
import json, torch
torch.set_num_threads(1)
from eval_unlearn.runners import SingleBenchmarkRunner
metric, results = {{"concept": "heart", "count": 4}}, []
for i, lora in enumerate({loras!r}):
    technique = {{"lora": lora, "erase_concept": "heart"}}
    out = {str(out)!r} + f"/{{i}}"
    runner = SingleBenchmarkRunner("eraseanything_tinyflux", "tinyflux_erasure", technique, metric, out, seed=3)
    results.append(runner.run()["metric_result"])
print(json.dumps(results))
"""


def test_what_is_run_here_has_no_network(run):
    """Neither by a name nor by an address."""
    told = run("""
import json, urllib.request
found = []
for address in ("http://huggingface.co", "http://127.0.0.1:9"):
    try:
        urllib.request.urlopen(address, timeout=5)
    except OSError as error:
        found.append(str(error))
print(json.dumps(found))
""")
    assert len(told) == 2 and all("this process has no network" in error for error in told)


def test_the_harness_finds_the_plug_in_and_scores_tinyflux(run, tmp_path):
    """Without an eraser, and with a LoRA that breaks the model: it scores unlike the un-erased one, so it is merged."""
    lora = Lora(target_slices("all_qkv", 256, 2, 4, 4.0), 8, torch.Generator().manual_seed(0))
    for up in lora.up:
        up.data.normal_(0, 1.0, generator=torch.Generator().manual_seed(1))
    save_file(lora.tensors(), tmp_path / "broken.safetensors")
    plain, broken = run(benchmark(tmp_path, "", str(tmp_path / "broken.safetensors")))
    assert plain["name"] == "tinyflux_erasure" and set(plain["details"]) == {"acc_e", "acc_ir", "acc_g"}
    assert plain["details"]["acc_e"]["n"] == 4 and plain["details"]["acc_e"]["value"] >= 0.5  # nothing is erased
    assert 0 <= plain["value"] <= 0.8
    assert len(list(tmp_path.glob("0/**/*.png"))) == 12 and list(tmp_path.glob("0/*_latest_report.json"))
    assert broken["details"]["acc_e"]["value"] == 0


def test_the_technique_of_flux_draws_with_diffusers_and_a_lora(run, tmp_path):
    """A FluxPipeline with random weights, the LoRA at full strength and at none."""
    save_file(trained_lora().tensors(torch.float32), tmp_path / "eraser.safetensors")
    found = run(f"""
import json
import numpy as np
import torch
torch.manual_seed(0)
torch.set_num_threads(1)
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast
import os
from pathlib import Path
comfy = Path(os.environ["COMFYUI_PATH"], "comfy")
sizes = dict(hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2)
FluxPipeline(
    scheduler=FlowMatchEulerDiscreteScheduler(),
    vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=1, use_quant_conv=False,
                      use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0),
    text_encoder=CLIPTextModel(CLIPTextConfig(projection_dim=32, bos_token_id=0, eos_token_id=2, **sizes)),
    tokenizer=CLIPTokenizer.from_pretrained(comfy / "sd1_tokenizer", model_max_length=77),
    text_encoder_2=T5EncoderModel(T5Config(d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)),
    tokenizer_2=T5TokenizerFast.from_pretrained(comfy / "text_encoders/t5_tokenizer", model_max_length=64),
    transformer=FluxTransformer2DModel(in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True),
).save_pretrained({str(tmp_path / "flux")!r})
from importlib.metadata import entry_points
make = next(e for e in entry_points(group="eval_unlearn.techniques") if e.name == "eraseanything").load()
def draw(**settings):
    technique = make({str(tmp_path / "flux")!r}, steps=2, size=16, dtype="float32", **settings)
    return np.stack([np.asarray(p, float) for p in technique.generate(["a heart", "a moon"], seed=1)])
lora = {str(tmp_path / "eraser.safetensors")!r}
plain, erased, none = draw(), draw(lora=lora), draw(lora=lora, strength=0.0)
print(json.dumps([list(plain.shape), abs(erased - plain).max(), abs(none - plain).max()]))
""")
    assert found[0] == [2, 16, 16, 3] and found[1] > 0 and found[2] == 0


def trained_lora() -> Lora:
    """Adapters for a Flux of width 32 with one dual block, as if they had been trained."""
    lora = Lora(target_slices("dual_qkv", 32, 1, 1, 4.0), 4, torch.Generator().manual_seed(0))
    for up in lora.up:
        up.data.normal_(0, 2.0, generator=torch.Generator().manual_seed(1))
    return lora
