"""Whatever can run over a second asks between its parts whether the user has cancelled, and then ends."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from eraseanything_core.attention import heat_maps
from eraseanything_core.evaluation import (
    attack_runs,
    comparison,
    judging,
    metrics,
    prompt_attacks,
    quality,
    report,
    report_files,
)
from eraseanything_core.evaluation.genetic_attack import GeneticConfig
from eraseanything_core.protocols import Verdict


class Stop(Exception):
    """What the user's cancel raises."""


class Cancel:
    """Cancels at the n-th question."""

    def __init__(self, at: int = 3):
        self.at = at
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Stop


PICTURES = torch.zeros(80, 3, 8, 8)


class Judge:
    identity = {"name": "a judge"}
    labels = ("cat",)

    def __init__(self):
        self.sizes = []

    def read(self, pictures):
        self.sizes.append(len(pictures))
        return [Verdict("cat")] * len(pictures)


def test_a_judge_reads_in_batches_and_can_be_stopped():
    judge = Judge()
    answers = judging.judge_pictures(judge, ["cat"] * 80, PICTURES, PICTURES)
    assert judge.sizes == [16] * 10 and len(answers.before) == len(answers.after) == 80
    judge = Judge()
    with pytest.raises(Stop):
        judging.judge_pictures(judge, ["cat"] * 80, PICTURES, PICTURES, check_interrupt=Cancel())
    assert judge.sizes == [16, 16]


@pytest.mark.parametrize("measure", [quality.frechet, quality.kernel_distance])
def test_distances_of_features_can_be_stopped(measure):
    pytest.importorskip("torchmetrics")

    class Means(torch.nn.Module):
        num_features = 3

        def forward(self, pictures):
            return pictures.float().mean((2, 3))

    with pytest.raises(Stop):
        measure(PICTURES, PICTURES, Means(), "means", check_interrupt=Cancel())


def test_a_clip_score_can_be_stopped():
    clip = SimpleNamespace(images=lambda pictures: torch.ones(len(pictures), 2), texts=lambda prompts: torch.ones(1, 2))
    cancel = Cancel()
    with pytest.raises(Stop):
        quality.clip_score(clip, PICTURES, ["a"] * 80, cancel)
    assert quality.clip_score(clip, PICTURES, ["a"] * 80) == 200


@pytest.fixture
def answers():
    shown = tuple(Verdict("cat" if i % 3 else "dog") for i in range(30))
    return report.Answers(("cat",) * 30, shown, shown[::-1], {"name": "a judge"})


def test_a_report_can_be_stopped_and_is_else_the_same(answers):
    cells = {"acc_e": answers, "acc_ir": answers}
    with pytest.raises(Stop):
        report.make_report("cat", cells, draws=50, check_interrupt=Cancel())
    asked = Cancel(at=10**9)
    assert report.make_report("cat", cells, draws=50, check_interrupt=asked) == report.make_report(
        "cat", cells, draws=50
    )
    assert asked.calls > 5


def test_averages_and_reading_reports_can_be_stopped(answers, tmp_path):
    made = [report.make_report(name, {"acc_e": answers}, draws=50) for name in ("cat", "dog", "cow")]
    with pytest.raises(Stop):
        comparison.macro(made, draws=50, check_interrupt=Cancel())
    for each in made:
        (tmp_path / f"{each.concept}.json").write_text(report.to_json(each), encoding="utf-8")
    with pytest.raises(Stop):
        report_files.load_reports(tmp_path, ["*"], Cancel())
    assert len(report_files.load_reports(tmp_path, ["*"])) == 3


def test_a_bootstrap_draws_the_same_while_it_asks():
    cells = {"acc_e": [[True, False, True], [False, False, True]]}
    asked = Cancel(at=10**9)
    statistic = metrics.rate_of("acc_e")
    assert metrics.clustered_bootstrap(cells, statistic, check_interrupt=asked) == metrics.clustered_bootstrap(
        cells, statistic
    )
    assert asked.calls == 4


def test_one_prompt_with_many_attacks_can_be_stopped():
    with pytest.raises(Stop):
        prompt_attacks.attack_all(["a cat"], "cat", "double", range(1000), check_interrupt=Cancel())


def test_the_first_generation_of_a_search_can_be_stopped():
    cancel = Cancel(at=10)
    text = SimpleNamespace(encode=lambda prompt: SimpleNamespace(context=torch.ones(1, 4, 2)))
    words = ["▁house", "▁tree", "▁river"]
    host = SimpleNamespace(text_encoder=lambda keep: text, vocabulary=lambda: words)
    config = GeneticConfig(words=3, population=2000, generations=5)
    with pytest.raises(Stop):
        attack_runs.run_genetic_attack(host, "cat", ["a {}"], (), config, check_interrupt=cancel)


def test_the_maps_of_many_pictures_can_be_stopped():
    maps = {"all": torch.rand(4, 2, 6, 6)}
    recording = SimpleNamespace(grids=lambda view="all": maps, spans={"cat": [1], "dog": [2]})
    with pytest.raises(Stop):
        heat_maps.recorded_maps(recording, "all", [None] * 4, Cancel())
    with pytest.raises(Stop):
        heat_maps.recorded_masks(recording, 48, 48, 0.0, Cancel())
    masks = heat_maps.recorded_masks(recording, 48, 48, 0.5)
    assert torch.equal(masks, heat_maps.masks(heat_maps.resized(maps["all"].flatten(0, 1), 48, 48), 0.5))
