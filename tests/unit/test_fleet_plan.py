"""Plans, the identity of jobs, and results that land once; without Ray and without a model."""

import dataclasses
import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from eraseanything_core.concepts.concept_set import ConceptSet
from eraseanything_core.fleet import direct_methods, run
from eraseanything_core.fleet import job as fleet_job
from eraseanything_core.fleet.expand import fusion_jobs, training_jobs, with_pictures
from eraseanything_core.fleet.gather import Gathered
from eraseanything_core.fleet.job import DRAW, TRAIN, Job, Outcome, file_name
from eraseanything_core.fleet.picture_job import judge_files
from eraseanything_core.fleet.plan import concept_sets, make_plan, read_plan
from eraseanything_core.fleet.results import Results
from eraseanything_core.fleet.session_runner import SessionRunner
from eraseanything_core.fleet.training_job import config_of, plain_config
from eraseanything_core.fleet.worker import Worker, code_digest
from eraseanything_core.training.config import EraseConfig
from lab.fleet import command
from lab.fleet.on_paper import estimate, markdown
from lab.provenance import BENCHMARKS
from tests.unit.fleet_stand_in import chain_job

BASE = {"model": {"UNETLoader": {"unet_name": "flux.safetensors"}}, "clip": {"CLIPLoader": {"clip_name": "t5"}}}
FIELDS = {"results": "out", "concepts": ["cat", "dog"], "bases": {"dev": BASE}}
DIGESTS = {"dev": {"flux.safetensors": "aa", "t5": "bb"}}


def erasers(digests=DIGESTS, judge=(), **fields):
    plan = make_plan({**FIELDS, **fields})
    return with_pictures(plan, training_jobs(plan, concept_sets(plan), digests), digests, dict(judge))


def ids(**fields) -> list[str]:
    return [eraser.training.id for eraser in erasers(**fields)]


def test_a_plan_is_concepts_times_methods_times_bases_times_seeds():
    methods = {"ours": {}, "esd": {"method": "esd", "settings": {"steps": 7}}}
    made = erasers(
        methods=methods, seeds=[0, 1], bases={"dev": BASE, "other": BASE}, digests={"dev": {}, "other": {"a": "b"}}
    )
    assert len(made) == 2 * 2 * 2 * 2 == len({eraser.training.id for eraser in made})
    configs = {eraser.method: config_of(eraser.training.spec["config"]) for eraser in made if eraser.concept == "dog"}
    assert configs["esd"].steps == 7 and configs["esd"].retain_weight == 0.0
    assert configs["ours"].concept == "dog" and configs["ours"].retain_weight > 0


def test_methods_that_are_not_trained_in_pairs_are_made_of_the_concept_set():
    methods = {
        "closed": {"method": "uce", "settings": {"rank": 4}},
        "projected": {"method": "double projection"},
        "mace": {"method": "mace", "settings": {"lam": 0.5}},
        "published": {"method": "published"},
    }
    made = erasers(concepts=["cat"], methods=methods, settings={"width": 96, "height": 96, "eta": 2.0}, seeds=[3])
    configs = {}
    for eraser in made:
        spec = json.loads(json.dumps(eraser.training.spec))  # as a worker gets it
        words = ConceptSet.from_json(json.dumps(spec["concept"]))
        configs[eraser.method] = direct_methods.config_of(spec["method"], words, spec["settings"], spec["seed"])
    assert configs["closed"].rank == 4 and configs["closed"].concept == "cat"
    assert [configs[name].method for name in ("closed", "projected")] == ["UCE", "double projection"]
    mace = configs["mace"]
    assert mace.attention.width == mace.fusion.width == 96 and mace.lam == 0.5 and mace.attention.seed == 3
    assert len(mace.erased) == len(mace.guides) > 1 and all("cat" not in guide.split() for guide, _ in mace.guides)
    published = configs["published"]
    assert published.width == 96 and published.eta == 2.0 and "cat" in published.prompt
    assert len(set(published.words)) == 3 and published.anchor
    assert len({eraser.training.id for eraser in made}) == 4


def test_a_fusion_is_a_job_of_all_erasers_of_a_method(tmp_path):
    made = erasers(methods={"a": {}, "b": {"preset": "quick"}}, merge={"mode": "closed-form fusion"})
    plan = make_plan(
        {**FIELDS, "methods": {"a": {}, "b": {"preset": "quick"}}, "merge": {"mode": "closed-form fusion"}}
    )
    jobs = fusion_jobs(plan, made)
    assert list(jobs) == [("dev", "a", 0), ("dev", "b", 0)]
    assert jobs["dev", "a", 0].spec["trainings"] == [eraser.training.id for eraser in made if eraser.method == "a"]
    assert not fusion_jobs(make_plan({**FIELDS, "merge": {}}), made)
    # It waits for its trainings.
    results = Results(tmp_path)
    results.make()
    fusion = jobs["dev", "a", 0]
    assert run._ready([fusion], results) == ([], [fusion])
    for eraser in made:
        results.begin(eraser.training, {})
        results.land(eraser.training, {})
    assert run._ready([fusion], results) == ([fusion], [])


def test_what_decides_a_job_is_its_identity_and_nothing_else():
    same = ids()
    assert ids(workers={"gpus": 2, "count": 7}, merge={}, results="elsewhere") == same
    changes = [
        {"seeds": [1]},
        {"settings": {"eta": 3.0}},
        {"methods": {"eraseanything": {"preset": "quick"}}},
        {"methods": {"eraseanything": {"method": "esd"}}},
        {"digests": {"dev": {"flux.safetensors": "other", "t5": "bb"}}},
    ]
    changed = [ids(**change) for change in changes]
    assert all(not set(other) & set(same) for other in changed)
    # The words of a concept are its own, so another list leaves it as it is.
    assert ids(concepts=["dog", "horse"])[0] == same[1]
    job = Job(TRAIN, "a", {"x": 1}, {})
    assert job.id == Job(TRAIN, "b", {"x": 1}, {"eraser": "/somewhere"}).id
    assert len({job.id, Job(DRAW, "a", {"x": 1}, {}).id, Job(TRAIN, "a", {"x": 2}, {}).id}) == 3


def test_other_code_makes_other_jobs(monkeypatch):
    job = Job(TRAIN, "a", {"x": 1}, {})
    before = job.id
    monkeypatch.setattr(fleet_job, "code_digest", lambda: "other")
    assert job.id != before


def test_the_code_is_all_that_the_core_ships(tmp_path, monkeypatch):
    """Modules, tables of words, and the weights of TinyFlux's judge; not what Python compiles of them."""
    monkeypatch.setattr(fleet_job, "CORE", tmp_path)
    digest = fleet_job.code_digest.__wrapped__
    seen = [digest()]
    for name in ("a.py", "words.json", "judge.safetensors"):
        (tmp_path / name).write_text("1")
        seen.append(digest())
    (tmp_path / "a.pyc").write_text("1")
    assert len(set(seen)) == 4 and digest() == seen[-1]


@pytest.fixture
def clip_judge(tmp_path):
    """The settings of a CLIP, and the folder in which it has its files."""
    folder = tmp_path / "judges"
    (folder / "clip").mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors", "README.md"):
        (folder / "clip" / name).write_text("1")
    return {"name": "CLIP", "weights": "clip"}, folder


def test_a_judge_is_known_by_its_files(clip_judge, tmp_path):
    settings, folder = clip_judge
    before = judge_files(settings, folder)
    assert sorted(before) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    (folder / "clip" / "model.safetensors").write_text("2")
    after = judge_files(settings, folder)
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]
    assert judge_files({"name": "TinyFlux CNN", "weights": ""}, folder) == {}, "it is part of the pack"
    with pytest.raises(ValueError, match="there is no 'other'"):
        judge_files({"name": "CLIP", "weights": "other"}, folder)
    # They are in the identity of what is judged, and of nothing else.
    (tmp_path / "named.csv").write_text("prompt,seed\na {},1\n")
    sets = {"named": {"file": tmp_path / "named.csv", "cell": "acc_e"}}
    plans = [erasers(judge=files, pictures={"sets": sets, "judge": settings}) for files in (before, after)]
    trained, drawn = [], []
    for eraser in (plan[0] for plan in plans):
        trained.append(eraser.training.id)
        drawn += [job.id for job in (*eraser.shares["named"].before, *eraser.shares["named"].after)]
    assert len(set(trained)) == 1 and len(set(drawn)) == 4
    blind = [erasers(judge=files, pictures={"sets": sets})[0].shares["named"].before[0].id for files in (before, after)]
    assert blind[0] == blind[1]


def test_another_judge_under_the_same_name_is_refused(clip_judge, tmp_path):
    settings, folder = clip_judge
    runner = SessionRunner("", {})
    runner.opened = SimpleNamespace(judges=folder, digest=lambda base: {})
    assert runner.digest({fleet_job.JUDGE: settings}) == judge_files(settings, folder)
    spec = {"base": {"loaders": {}, "files": {}}, "judge": settings, "judge_files": {"model.safetensors": "aa"}}
    with pytest.raises(ValueError, match="model.safetensors.* differs here from the file that the plan was started"):
        runner.run(Job(DRAW, "a", spec, {}), tmp_path, Results(tmp_path))


def test_a_configuration_survives_json():
    config = EraseConfig("cat", synonyms=("kitty",), tiers=(("a", "b"), ("c",)), attention_blocks=(-1,))
    assert config_of(json.loads(json.dumps(plain_config(config)))) == config


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"concept": ["cat"]}, "the plan, concept: extra inputs are not permitted"),
        ({"settings": {"stepz": 3}}, "there is no setting 'stepz'"),
        ({"methods": {"a": {"method": "ucee"}}}, "the method 'ucee' is none of eraseanything, "),
        ({"methods": {"a": {"method": "uce", "settings": {"steps": 3}}}}, "uce has no setting 'steps'; it has kept, "),
        ({"methods": {"a": {"preset": "fast"}}}, "the preset 'fast' is none of quick"),
        ({"bases": {"dev": {"model": BASE["model"]}}}, "the base 'dev' needs `model` and `clip`"),
        ({"merge": {"mode": "mean"}}, "the mode of `merge` 'mean' is none of normalised sum"),
        ({"concepts": []}, "`concepts`, `bases`, `methods` and `seeds` must not be empty"),
        ({"workers": {"cpus": 0}}, "the plan, workers.cpus: input should be greater than 0, and not 0"),
        ({"pictures": {"sets": {"a": {"file": "a.csv", "cell": "acc"}}}}, "the cell 'acc' is none of acc_e"),
    ],
)
def test_a_wrong_plan_is_one_sentence(fields, message):
    with pytest.raises(ValueError) as error:
        make_plan({**FIELDS, **fields})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_settings_that_cannot_work_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="cat, eraseanything, dev, seed 0: the resolution must be a multiple of 16"):
        erasers(settings={"width": 100})


def test_the_plan_of_a_file_lies_where_the_file_lies(tmp_path):
    (tmp_path / "words.csv").write_text("concept,category,synonyms\nJack,person,\ncat,,kitty\ncat,,kitty\n")
    (tmp_path / "named.csv").write_text("prompt,seed\na {} here,1\na house,2\n")
    text = "results: out\nconcepts: words.csv\nbases:\n  dev: {model: {A: {}}, clip: {B: {}}}\n"
    text += "pictures: {sets: {named: {file: named.csv, cell: acc_e}}, rows: 1}\n"
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    plan = read_plan(path)
    assert plan.results == tmp_path / "out"
    words = concept_sets(plan)
    assert [word.concept for word in words] == ["Jack", "cat"]
    assert words[0].category == "person" and "kitty" in words[1].synonyms
    (shares,) = (
        eraser.shares["named"] for eraser in with_pictures(plan, training_jobs(plan, words[1:], DIGESTS), DIGESTS, {})
    )
    assert [row.prompt for row in shares.rows] == ["a cat here", "a house"]
    assert shares.after[0].spec["rows"] == [["a cat here", 1, 3.5]] and shares.before[0].spec["eraser"] is None
    for wrong, message in (("a: [", "plan.yaml is no YAML"), ("- 1", "plan.yaml is no plan")):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            read_plan(path)


def test_pictures_without_an_eraser_are_drawn_once_for_all(tmp_path):
    (tmp_path / "i2p.csv").write_text("prompt,seed\na house,1\na tree,2\na road,3\n")
    eraser = tmp_path / "old.safetensors"
    eraser.write_bytes(b"1")
    pictures = {"sets": {"i2p": {"file": tmp_path / "i2p.csv", "cell": "acc_e"}}, "rows": 2, "files": {"old": eraser}}
    made = erasers(pictures=pictures)
    assert [each.method for each in made] == ["eraseanything", "eraseanything", "old"]
    before = {job.id for each in made for job in each.shares["i2p"].before}
    after = {job.id for each in made for job in each.shares["i2p"].after}
    assert len(before) == 2 and len(after) == 3 * 2
    # The eraser's bytes are what counts, wherever it lies.
    eraser.write_bytes(b"2")
    changed = {job.id for each in erasers(pictures=pictures) for job in each.shares["i2p"].after}
    assert len(after & changed) == 4


def test_a_result_lands_once(tmp_path):
    results = Results(tmp_path)
    results.make()
    job = Job(TRAIN, "a", {"x": 1}, {})
    assert results.missing([job, job]) == [job]
    for content in ("first", "second"):
        work = results.begin(job, {"pid": 1})
        (work / "result" / "file").write_text(content)
        assert results.land(job, {"pid": 1}) == (content == "first")
        assert (results.result(job.id) / "file").read_text() == "first"
    assert not results.missing([job]) and not list(results.work.iterdir())


def test_what_an_attempt_left_is_found_by_the_next(tmp_path):
    results = Results(tmp_path)
    results.make()
    job = Job(TRAIN, "a", {}, {})
    (results.begin(job, {"pid": 1}) / "state").write_text("7")
    results.fail(job, "no room")
    work = results.begin(job, {"pid": 2})
    assert (work / "state").read_text() == "7" and len(results.attempts(job.id)) == 2
    (work / "result" / "file").write_text("done")
    results.land(job, {"pid": 2})
    assert not list(results.failed.iterdir())


def test_what_a_worker_could_not_clear_up_is_cleared_by_the_next(tmp_path, monkeypatch):
    """It is lost between the moment its result has landed and the end of its job; Ray then asks another."""
    results = Results(tmp_path)
    results.make()
    worker = Worker(code_digest(), "tests.unit.fleet_stand_in:StandIn", {"seconds": 0.0})
    job = chain_job(0, 1)

    def lost(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Results, "clear", lost)
        with pytest.raises(KeyboardInterrupt):
            worker.run(job.as_dict(), str(tmp_path))
    assert results.is_done(job.id) and list(results.work.iterdir())
    assert worker.run(job.as_dict(), str(tmp_path))["error"] == "" and not list(results.work.iterdir())


def test_a_machine_with_another_state_of_the_pack_does_nothing(tmp_path):
    results = Results(tmp_path)
    results.make()
    worker = Worker("0" * 64, "tests.unit.fleet_stand_in:StandIn", {"seconds": 0.0})
    job = chain_job(0, 1)
    error = worker.run(job.as_dict(), str(tmp_path))["error"]
    assert "has another state of this pack than the machine that started the plan" in error
    assert worker.digest({"model": {}}, str(tmp_path))["error"] == error
    assert results.missing([job]) and not list(results.work.iterdir())


def test_a_summary_names_what_failed_and_why():
    jobs = [Job(TRAIN, f"job {number}", {"number": number}, {}) for number in range(3)]
    picture = Job(DRAW, "pictures of job 0", {}, {})
    outcomes = [Outcome(jobs[0].id, error="no room"), Outcome(jobs[1].id), Outcome(jobs[2].id)]
    failed = run.failures([*jobs, picture], outcomes, [picture])
    result = run.FleetResult(4, 0, failed, Gathered([], [], [], [], ["a note"]))
    assert result.summary().splitlines() == [
        "2 of 4 jobs are done, 0 of them before; 2 failed",
        "failed: job 0: no room",
        "failed: pictures of job 0: the training of its eraser failed",
        "a note",
    ]
    many = dataclasses.replace(result, failed=["job: no room"] * 25)
    assert many.summary().splitlines()[-2] == "and 5 more failed; the folder `failed` has all"


@pytest.mark.parametrize(
    "url, message",
    [("127.0.0.1:8265", "Ray's dashboard: http://127.0.0.1:8265"), ("", 'pip install "ray[default]"')],
)
def test_where_the_dashboard_is_is_told(tmp_path, monkeypatch, url, message):
    @contextmanager
    def connected(machines):
        yield url

    nothing = {"start_workers": [], "digests": DIGESTS, "run_jobs": []}
    monkeypatch.setattr(run, "connected", connected)
    for name, value in nothing.items():
        monkeypatch.setattr(run, name, lambda *given, value=value: value)
    told = []
    plan = make_plan({**FIELDS, "results": tmp_path})
    result = run.run_plan(plan, None, None, tmp_path / "out", tmp_path / "loras", None, None, told.append)
    assert len(told) == 1 and message in told[0] and result.jobs == 2


def test_the_command_counts_jobs_and_says_what_failed(tmp_path, monkeypatch, capsys):
    seen = []

    def run_plan(plan, machines, runner, folder, loras, progress, look, tell):
        seen.append((machines.address, runner.settings["settings"]["arguments"][:1], folder))
        progress(0, 2, None)
        progress(1, 2, Outcome("a"))
        progress(2, 2, Outcome("b", error="no room"))
        return run.FleetResult(2, 0, ["b: no room"], Gathered([], [], [], [], []))

    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(FIELDS))
    monkeypatch.setenv("COMFYUI_PATH", "/comfyui")
    monkeypatch.setattr(command, "run_plan", run_plan)
    monkeypatch.setattr(sys, "argv", ["fleet", str(path), "--cpu", "--address", "10.0.0.1:6379"])
    assert command.main() == 1
    told = capsys.readouterr()
    assert seen == [("10.0.0.1:6379", ["--cpu"], tmp_path / "out" / "gathered")]
    assert "1 of 2 jobs are done, 0 of them before; 1 failed" in told.out and "failed: b: no room" in told.out
    assert "2/2" in told.err and "failed: no room" in told.out + told.err
    path.write_text("concepts: [cat]")
    assert command.main() == 1
    assert capsys.readouterr().err.startswith("plan.yaml, results: field required")


def test_names_of_files_are_plain():
    assert file_name("Van Gogh's style", "ours/1", "", "../x") == "Van_Gogh_s_style.ours_1.x"


def test_the_estimate_on_paper_is_flops_over_the_assumed_rate():
    paper = estimate()
    minutes = 13 * paper["counted_pflop"]["balanced"] * 1e15 / (989e12 * 0.5) / 60
    assert paper["trainings_a_card"] == 13
    assert paper["minutes"]["balanced"]["H100 SXM"][1] == pytest.approx(minutes, rel=0.02)


def test_the_benchmark_lost_nothing_and_its_page_says_what_was_measured():
    report = json.loads((BENCHMARKS / "fleet.json").read_text(encoding="utf-8"))
    assert report["killed"] == 10 and report["done"] == report["jobs"] and not report["replaced"]
    assert report["equal"] is True
    assert sum(report["attempts"]) > report["jobs"]
    rates = [report[f"jobs_per_cpu_second_{workers}"] for workers in (1, 2)]
    assert report["efficiency_2"] == pytest.approx(rates[1] / rates[0], abs=0.01)
    assert (BENCHMARKS / "fleet.md").read_text(encoding="utf-8") == markdown(report)
