"""Distances of pictures and the recogniser: real libraries, known answers, clear errors."""

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from PIL import Image  # noqa: E402
from torchvision.models import mobilenet_v2  # noqa: E402

from eraseanything_core.evaluation import choose, quality, recogniser  # noqa: E402
from eraseanything_core.tinyflux.world import draw_scene, render  # noqa: E402


@pytest.fixture(scope="module")
def pictures():
    rng = random.Random(0)
    return torch.stack([render(draw_scene(rng)) for _ in range(240)])


@pytest.fixture(scope="module")
def net():
    return quality.network("tinyflux", None)


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
    assert quality.drift(before, after) == [0.5, 0.0]


def test_a_clip_score_is_the_mean_cosine():
    class Clip:
        def images(self, pictures):
            return torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])

        def texts(self, prompts):
            return torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])

    assert quality.clip_score(Clip(), None, ["a", "b", "c"]) == pytest.approx(100 * (1 + 0 + 0.8) / 3)


def test_missing_weights_are_said_and_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(recogniser.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mobilenet_v2-b0353104.pth is not there: put it into"):
        quality.network("mobilenet_v2", tmp_path)
    with pytest.raises(ValueError, match="torchmetrics is not installed: run `pip install torchmetrics`"):
        quality.network("inception", tmp_path)
    monkeypatch.setattr(recogniser.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match="weights-inception-2015-12-05-6726825d.pth"):
        quality.network("inception", tmp_path)
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
        tensors, told = recogniser.train(recogniser.features(random_backbone), faces, epochs=200, lr=0.05)
    assert told["labels"] == ["anna", "ben", "carl"] and (told["test"]["n"], told["test"]["value"]) == (6, 1.0)
    path = recogniser.save_recogniser(tmp_path / "faces.safetensors", tensors, told)
    judge = choose.judge("recogniser", ["ben"], folder=tmp_path, weights=path.name)
    seen = torch.stack([recogniser._picture(faces / name / "0.png", 160) for name in told["labels"]])
    assert [v.label for v in judge.read(seen)] == told["labels"]
    unsure = recogniser.RecogniserJudge(path, threshold=1.0)
    assert {v.label for v in unsure.read(seen)} <= {None, *told["labels"]}
    assert [v.score for v in unsure.read(seen)] == [v.score for v in judge.read(seen)]


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
        choose.judge(name, wanted, folder=tmp_path, **given)


def test_a_label_that_the_judge_cannot_answer_is_refused(tmp_path):
    pytest.importorskip("nudenet")
    with pytest.raises(ValueError, match="NudeNet cannot answer nude; it knows: exposed, clean"):
        choose.judge("NudeNet", ["nude"], folder=tmp_path)
