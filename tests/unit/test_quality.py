"""Distances of pictures and the recogniser: real libraries, known answers, clear errors."""

import os
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

import torchmetrics  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.models import alexnet, mobilenet_v2  # noqa: E402

from eraseanything_core.evaluation import judge_choice, quality, recogniser
from eraseanything_core.evaluation.judges import sha256
from eraseanything_core.tinyflux import judge, judges
from eraseanything_core.tinyflux.world import render
from lab.tinyflux.scenes import draw_scene

JUDGES = {**judges.JUDGES, **judge_choice.JUDGES}
LINS = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"


@pytest.fixture(scope="module")
def pictures():
    rng = random.Random(0)
    return torch.stack([render(draw_scene(rng)) for _ in range(240)])


@pytest.fixture(scope="module")
def net():
    return quality.load_network("tinyflux", None, judges.NETWORKS)


def test_a_distance_grows_with_the_damage(pictures, net):
    one, other = pictures[:120], pictures[120:]
    same, dark = (quality.frechet(one, after, net, "tinyflux") for after in (other, other / 2))
    assert same["name"] == "FD_tinyflux" and same["n"] == 120
    assert dark["value"] > 3 * same["value"] > 0
    assert quality.frechet(one, one, net, "tinyflux")["value"] == pytest.approx(0, abs=1e-2)


def test_the_frechet_distance_is_that_of_two_gaussians():
    """On features that are the pictures' own means, the formula can be written out."""

    class Means(torch.nn.Module):
        num_features = 3

        def forward(self, pictures):
            return pictures.mean((2, 3))

    g = torch.Generator().manual_seed(0)
    flat = torch.rand(64, 3, 1, 1, generator=g).expand(-1, 3, 8, 8) * 0.5
    found = quality.frechet(flat, flat + 0.25, Means(), "inception")
    assert found["name"] == "FID" and found["value"] == pytest.approx(3 * 0.25**2, rel=1e-3)


def test_a_frechet_distance_of_unequal_numbers_is_refused(pictures, net):
    with pytest.raises(ValueError, match="equal numbers"):
        quality.frechet(pictures[:8], pictures[:7], net, "tinyflux")


def test_kid_is_near_zero_for_the_same_world(pictures, net):
    one, other = pictures[:120], pictures[120:]
    same, dark = (quality.kernel_distance(one, after, net, "tinyflux") for after in (other, other / 2))
    assert same["name"] == "KD_tinyflux" and abs(same["value"]) < 0.1 * dark["value"]


def test_a_paired_kernel_distance_covers_no_change_and_grows_with_the_damage():
    x, noise = torch.randn(2, 200, 32, generator=torch.Generator().manual_seed(0))
    assert quality.paired_kernel_distance(x, x) == (0, 0, 0)
    value, low, high = quality.paired_kernel_distance(x, noise)
    assert low < 0 < high and abs(value) < 0.05
    near, far = (quality.paired_kernel_distance(x, x + shift) for shift in (0.5, 1.0))
    assert 0 < near[1] < near[2] < far[1] < far[2]


def test_drift_is_a_root_mean_square():
    before = torch.zeros(2, 3, 4, 4)
    after = torch.stack([torch.full((3, 4, 4), 0.5), torch.zeros(3, 4, 4)])
    assert quality.rms_drift(before, after) == [0.5, 0.0]


def test_measures_name_their_network_and_its_file(pictures):
    found = quality.distances(pictures[:8], pictures[:8], "tinyflux", None, judges.NETWORKS)
    assert [m.name for m in found] == ["RMS drift at the same seed", "FD_tinyflux", "KD_tinyflux"]
    assert [m.sha256 for m in found] == ["", *[sha256(judge.WEIGHTS)] * 2] and [m.n for m in found] == [8] * 3
    assert found[0].value == 0 and found[2].spread >= 0 and "standard deviation over subsets" in found[2].text()
    assert found[0].text() == "RMS drift at the same seed: 0.00000 (8 pictures)"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder with an AlexNet whose features are random, and whose classifier, unused, is zeros."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in alexnet(weights=None).state_dict().items()}
    g = torch.Generator().manual_seed(0)
    state = {
        name: torch.zeros(1).expand(shape) if "classifier" in name else 0.1 * torch.randn(shape, generator=g)
        for name, shape in shapes.items()
    }
    torch.save(state, tmp_path / "checkpoints" / quality.LPIPS_NETS["alex"])
    return state


def test_lpips_is_the_papers_formula(hub, pictures):
    """Unit features of five layers, squared differences weighted by channel, mean over places, sum over layers."""
    one, other = pictures[:2, :, :64, :64], pictures[2:4, :, :64, :64]
    net = alexnet(weights=None).features.eval()
    net.load_state_dict({k.removeprefix("features."): v for k, v in hub.items() if k.startswith("features.")})
    lins = torch.load(LINS, map_location="cpu", weights_only=True)
    shift, scale = (torch.tensor(v)[:, None, None] for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))

    def features(x):
        x = (2 * x - 1 - shift) / scale
        for i, layer in enumerate(net):
            x = layer(x)
            if i in (1, 4, 7, 9, 11):
                yield x / (x.pow(2).sum(1, keepdim=True) + 1e-8).sqrt()

    with torch.no_grad():
        layers = [(a - b) ** 2 for a, b in zip(features(one), features(other), strict=True)]
        wanted = sum(float((lins[f"lin{i}.model.1.weight"] * d).sum(1).mean()) for i, d in enumerate(layers))
    assert quality.lpips(one, other) == pytest.approx(wanted, rel=1e-4) and wanted > 0.01
    assert quality.lpips(one, one) == 0
    measure = quality.perceptual(one, other)
    assert (measure.n, measure.sha256) == (2, sha256(quality.lpips_file()))


@pytest.fixture
def inception_file(tmp_path, monkeypatch, pictures):
    """FID's network with random weights whose batch norms have seen pictures, under the name of the real file."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    path = tmp_path / quality.INCEPTION
    torch.save({}, path)
    with monkeypatch.context() as patch:
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        net = extractor("inception-v3-compat", ["2048"], str(path)).train()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # running statistics are the mean over what was seen
    net((pictures[:3] * 255).byte())
    torch.save(net.state_dict(), path)
    return path


def test_inceptions_file_is_read_and_its_distance_is_kid(inception_file, pictures):
    net = quality.load_network("inception", inception_file.parent)
    one, other = pictures[:4], pictures[4:8]
    with torch.no_grad():
        assert net(one[:1]).shape == (1, 2048)
    same, dark = (quality.kernel_distance(one, after, net, "inception", subsets=5) for after in (other, other / 4))
    assert (dark["name"], dark["n"]) == ("KID", 4) and dark["value"] > 2 * abs(same["value"])


def test_a_file_that_would_run_something_is_not_opened(tmp_path):
    pytest.importorskip("torch_fidelity")
    ran = tmp_path / "ran"
    torch.save({"weight": Runs(ran)}, tmp_path / quality.INCEPTION)
    with pytest.raises(ValueError, match="holds more than weights"):
        quality.load_network("inception", tmp_path)
    assert not ran.exists()
    torch.load(tmp_path / quality.INCEPTION, weights_only=False)
    assert ran.exists(), "the file does run something where nobody looks"


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_clip_score_is_the_mean_cosine():
    class Clip:
        def images(self, pictures):
            return torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])

        def texts(self, prompts):
            return torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])

    assert quality.clip_score(Clip(), torch.zeros(3, 3, 1, 1), ["a", "b", "c"]) == pytest.approx(
        100 * (1 + 0 + 0.8) / 3
    )


def test_missing_weights_are_said_and_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(recogniser.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mobilenet_v2-b0353104.pth is not there: put it into"):
        quality.load_network("mobilenet_v2", tmp_path)
    with pytest.raises(ValueError, match="torch-fidelity is not installed: run `pip install torch-fidelity`"):
        quality.load_network("inception", tmp_path)
    with pytest.raises(ValueError, match="torchmetrics is not installed: run `pip install torchmetrics`"):
        quality.require_quality("mobilenet_v2", tmp_path)
    monkeypatch.setattr(recogniser.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match="weights-inception-2015-12-05-6726825d.pth"):
        quality.load_network("inception", tmp_path)
    with pytest.raises(ValueError, match="alexnet-owt-7be5be79.pth is not there: download"):
        quality.lpips(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


def test_a_wrong_file_is_no_backbone(tmp_path):
    (tmp_path / recogniser.BACKBONE).write_bytes(b"something else")
    with pytest.raises(ValueError, match="does not start with b0353104"):
        recogniser.find_backbone(tmp_path)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Three names, ten pictures each: one colour a name, with noise."""
    folder, g = tmp_path_factory.mktemp("faces"), torch.Generator().manual_seed(0)
    for name, colour in (("anna", (0.9, 0.2, 0.2)), ("ben", (0.2, 0.9, 0.2)), ("carl", (0.2, 0.2, 0.9))):
        (folder / name).mkdir()
        for i in range(10):
            picture = torch.tensor(colour)[:, None, None] + 0.1 * torch.randn(3, 48, 40, generator=g)
            array = (picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(array).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def random_backbone(tmp_path_factory):
    """MobileNetV2 with random weights whose batch norms have seen pictures, as torchvision would save it."""
    torch.manual_seed(0)
    net = mobilenet_v2(weights=None).train()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # running statistics are the mean over what was seen
    with torch.no_grad():
        net(torch.randn(16, 3, 96, 96))
    path = tmp_path_factory.mktemp("backbone") / "random.pth"
    torch.save(net.state_dict(), path)
    return path


def test_a_recogniser_learns_names_and_rejects_when_unsure(faces, random_backbone, tmp_path):
    with torch.inference_mode():  # as ComfyUI runs nodes
        tensors, told = recogniser.train_recogniser(recogniser.features(random_backbone), faces, epochs=200, lr=0.05)
    assert told["labels"] == ["anna", "ben", "carl"] and (told["test"]["n"], told["test"]["value"]) == (6, 1.0)
    path = recogniser.save_recogniser(tmp_path / "faces.safetensors", tensors, told)
    request = judge_choice.JudgeRequest(["ben"], tmp_path, weights=path.name)
    judge = judge_choice.build_judge("recogniser", request)
    seen = torch.stack([recogniser._read_picture(faces / name / "0.png", 160) for name in told["labels"]])
    assert [v.label for v in judge.read(seen)] == told["labels"]
    unsure = recogniser.RecogniserJudge(path, threshold=1.0)
    assert {v.label for v in unsure.read(seen)} <= {None, *told["labels"]}
    assert [v.score for v in unsure.read(seen)] == [v.score for v in judge.read(seen)]


def test_equal_recognisers_are_equal_files(tmp_path):
    """Reports name a recogniser by the hash of its file, and the library's own writer has its entries in any order."""
    tensors = {name: torch.ones(2, 2) for name in ("head.weight", "features.0.weight", "features.1.weight")}
    told = {"labels": ["anna", "ben"], "test": {"value": 1.0}, "seed": 0}
    written = set()
    for number in range(8):
        path = recogniser.save_recogniser(tmp_path / f"{number}.safetensors", tensors, told)
        written.add(path.read_bytes())
    assert len(written) == 1 and recogniser.names_of(path) == ("anna", "ben")


def test_a_training_reports_its_epochs_and_can_be_stopped(faces, random_backbone):
    class Stop(Exception):
        pass

    calls, network = [], recogniser.features(random_backbone)
    recogniser.train_recogniser(network, faces, epochs=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3), (0, 3)]  # files, epochs, files of the test

    def stop_after(last):
        def progress(done, total):
            calls.append(done)
            if done == last:
                raise Stop

        return progress

    for last in (0, 2):
        calls.clear()
        with pytest.raises(Stop):
            recogniser.train_recogniser(network, faces, epochs=3, progress=stop_after(last))
        assert calls == list(range(last + 1))


def test_a_folder_without_enough_pictures_is_refused(tmp_path):
    (tmp_path / "anna").mkdir()
    with pytest.raises(ValueError, match="at least five pictures for each of two or more names; too few of anna"):
        recogniser.read_folder(tmp_path)


@pytest.mark.parametrize(
    "name, wanted, given, message",
    [
        ("TinyFlux CNN", ["heart", "striped"], {}, r"several kinds \(entity, style\)"),
        ("TinyFlux CNN", ["Nike"], {}, "'Nike' is no concept of TinyFlux's world"),
        ("CLIP", ["cat"], {"weights": "../x"}, "must name the folder of a CLIP"),
        ("recogniser", ["cat"], {}, "must name the file of a trained recogniser"),
        ("CLIP of ComfyUI", ["cat"], {}, "connect `clip_vision` and `clip`"),
    ],
)
def test_a_judge_that_lacks_something_says_so(tmp_path, name, wanted, given, message):
    with pytest.raises(ValueError, match=message):
        judge_choice.build_judge(name, judge_choice.JudgeRequest(wanted, tmp_path, **given), JUDGES)


@pytest.mark.parametrize(
    "name, weights, message",
    [
        ("CLIP", "", "`weights` must name the folder of a CLIP.*huggingface.co/openai/clip-vit-large-patch14"),
        ("CLIP", "empty", "config.json.*is missing.*huggingface.co/openai/clip-vit-large-patch14"),
        ("recogniser", "none.safetensors", "the file of a trained recogniser .Train Recogniser writes it."),
        ("recogniser", "text.safetensors", "text.safetensors is no recogniser"),
        ("recogniser", "empty", "empty is no recogniser"),
        ("magic", "", "there is no judge 'magic'"),
    ],
)
def test_what_a_judge_lacks_is_known_without_a_picture(tmp_path, name, weights, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match=message):
        judge_choice.require_judge(name, tmp_path, weights, JUDGES)
    for other in ("TinyFlux CNN", "TinyFlux oracle", "CLIP of ComfyUI"):
        judge_choice.require_judge(other, tmp_path, "", JUDGES)


def test_a_label_that_the_judge_cannot_answer_is_refused(tmp_path):
    pytest.importorskip("nudenet")
    with pytest.raises(ValueError, match="NudeNet cannot answer nude; it knows: exposed, clean"):
        judge_choice.build_judge("NudeNet", judge_choice.JudgeRequest(["nude"], tmp_path))
