"""Jobs on Ray: workers and a node are lost, every job is done once, and its result is that of one worker."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ray = pytest.importorskip("ray", reason="the fleet needs Ray: pip install ray")
psutil = pytest.importorskip("psutil", reason="ComfyUI's requirements have it")
from ray._private import services
from ray.cluster_utils import Cluster

from eraseanything_core.fleet import cluster as fleet
from eraseanything_core.fleet.cluster import Machines, Runner
from eraseanything_core.fleet.results import JOB_FILE, Results
from eraseanything_core.fleet.worker import Worker, code_digest
from eraseanything_core.packages import MissingPackageError
from lab.fleet.killer import Killer
from tests.unit.fleet_stand_in import PATIENCE, STATE_FILE, chain_job, patiently

HERE = Path(__file__).resolve().parent
# ComfyUI has a package `tests` as well, so a worker finds the stand-in by its own folder.
PATHS = (str(HERE.parents[1]), str(HERE))
STAND_IN = "fleet_stand_in:StandIn"
KILLS = 10
MEMORY = 80 * 2**20  # bytes of a node's object store; it holds nothing here
# However slow this machine is at the moment, a process that answers late is none that is lost: one that has ended is
# noticed by its closed connection. Nor does Ray end workers because other programs take the memory.
PATIENT = {
    "RAY_gcs_server_port_wait_time_s": str(PATIENCE),
    "RAY_health_check_timeout_ms": str(1000 * PATIENCE),
    "RAY_worker_register_timeout_seconds": str(PATIENCE),
    "RAY_memory_monitor_refresh_ms": "0",
}


class PatientCluster(Cluster):
    """Ray's emulated machines; its own gives a node 30 seconds to appear."""

    def _wait_for_node(self, node, timeout=PATIENCE):
        super()._wait_for_node(node, timeout)


@pytest.fixture(scope="module")
def two_nodes():
    """Two emulated machines with room for three workers."""
    node = {"include_dashboard": False, "object_store_memory": MEMORY}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        # Ray asks here for a node that it has started, and gives it 30 seconds.
        patch.setattr(services, "get_node", patiently(services.get_node))
        cluster = PatientCluster(initialize_head=True, head_node_args={"num_cpus": 2, **node})
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def third_node(two_nodes):
    """A third machine, which is gone again afterwards, and Ray knows it."""
    node = two_nodes.add_node(num_cpus=1, object_store_memory=MEMORY)
    two_nodes.wait_for_nodes(PATIENCE)
    yield node
    if node in two_nodes.worker_nodes:
        two_nodes.remove_node(node, allow_graceful=False)
    two_nodes.wait_for_nodes(PATIENCE)


@pytest.fixture
def results(tmp_path):
    made = Results(tmp_path / "results")
    made.make()
    return made


def run(results, jobs, workers=3, seconds=0.0, retries=50, progress=lambda *told: None):
    machines = Machines(workers=workers, gpus=0, retries=retries, paths=PATHS)
    handles = fleet.start_workers(machines, Runner(STAND_IN, {"seconds": seconds}), len(jobs))
    return fleet.run_jobs(handles, results.missing(jobs), results.folder, progress)


def values(results, jobs):
    return [json.loads((results.result(job.id) / "value.json").read_text())["value"] for job in jobs]


def attempts(results, job):
    return json.loads((results.result(job.id) / JOB_FILE).read_text())["attempts"]


def test_a_worker_is_killed_ten_times_and_every_job_is_done_once_with_the_bits_of_one_worker(
    two_nodes, results, tmp_path
):
    all_killed = tmp_path / "all killed"
    # However fast this machine is, one job is left for the last kill.
    jobs = [*(chain_job(seed, 50) for seed in range(8)), chain_job(8, 50, until=str(all_killed))]
    killer = Killer(results, KILLS, (0.1, 0.8), STATE_FILE)
    killer.start()

    def end(*told):
        if not killer.left:
            all_killed.touch()

    outcomes = run(results, jobs, seconds=0.04, progress=end)
    assert sorted(outcome.job for outcome in outcomes) == sorted(job.id for job in jobs)
    assert not [outcome for outcome in outcomes if outcome.error]
    killer.join()
    killer.look()
    assert len(killer.killed) == KILLS
    assert set(killer.landed) == {job.id for job in jobs} and not killer.replaced
    assert not list(results.work.iterdir()) and not list(results.failed.iterdir())
    # One worker that nobody kills.
    alone = Results(tmp_path / "alone")
    alone.make()
    worker = Worker(code_digest(), f"tests.unit.{STAND_IN}", {"seconds": 0.0})
    assert not any(worker.run(job.as_dict(), str(alone.folder))["error"] for job in jobs)
    assert values(results, jobs) == values(alone, jobs)
    tried = [attempts(results, job) for job in jobs]
    # A worker may be killed just after its result has landed, which is no further attempt.
    assert len(jobs) + KILLS // 2 < sum(map(len, tried)) <= len(jobs) + KILLS
    # What was lost was taken by another process, which went on from the run state.
    assert all(len({attempt["pid"] for attempt in each}) == len(each) for each in tried)
    began = [json.loads((results.result(job.id) / "began.json").read_text()) for job in jobs]
    assert any(began)


def test_a_second_run_does_what_is_missing(two_nodes, results):
    jobs = [chain_job(seed, 5) for seed in range(3)]
    run(results, jobs[:2], workers=1)
    told = []
    outcomes = run(results, jobs, workers=1, progress=lambda done, total, outcome: told.append((done, total, outcome)))
    assert [outcome.job for outcome in outcomes] == [jobs[2].id]
    assert [entry[:2] for entry in told if entry[2]] == [(1, 1)]
    assert not run(results, jobs)


def test_what_failed_is_named_and_does_not_hold_up_the_others(two_nodes, results):
    """One raises, and one ends its worker whenever it is tried."""
    wrong = chain_job(0, fails=True)
    deadly = chain_job(1, crashes=True)
    fine = [chain_job(seed, 5) for seed in (2, 3)]
    outcomes = {outcome.job: outcome for outcome in run(results, [deadly, wrong, *fine], workers=2, retries=1)}
    assert outcomes[wrong.id].error == "the model is of another family: connect FLUX.1"
    assert outcomes[deadly.id].error.startswith("its worker was lost again and again: ")
    assert results.missing([deadly, wrong, *fine]) == [deadly, wrong]
    kept = json.loads((results.failed / f"{wrong.id}.json").read_text())
    assert kept["label"] == "chain 0" and "fleet_stand_in.py" in kept["details"]
    assert len(results.attempts(deadly.id)) == 2


def ended(pid) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(holds) -> None:
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_job_of_a_lost_machine_is_taken_by_another(two_nodes, third_node, results, tmp_path):
    """No job ends before the machine is gone, and with it the process of the worker that it had."""
    lost = tmp_path / "lost"
    jobs = [chain_job(seed, 10, until=str(lost)) for seed in range(4)]

    def lose(*told):
        begun = [results.attempts(job.id) for job in jobs]
        if lost.exists() or not all(begun):
            return
        two_nodes.remove_node(third_node, allow_graceful=False)
        two_nodes.wait_for_nodes(PATIENCE)
        wait_for(lambda: any(ended(each[0]["pid"]) for each in begun))
        lost.touch()

    outcomes = run(results, jobs, workers=4, progress=lose)
    assert lost.exists() and not [outcome.error for outcome in outcomes if outcome.error]
    assert not results.missing(jobs)
    tried = [attempts(results, job) for job in jobs]
    assert sorted(map(len, tried)) == [1, 1, 1, 2]
    (taken,) = [each for each in tried if len(each) == 2]
    assert taken[0]["pid"] != taken[1]["pid"]


def test_the_files_of_a_base_are_asked_of_a_worker(two_nodes, results):
    machines = Machines(workers=1, gpus=0, paths=PATHS)
    workers = fleet.start_workers(machines, Runner(STAND_IN, {"seconds": 0.0}), 1)
    ask = lambda base, folder: fleet.digests(workers, {"dev": base}, folder, lambda: None)  # noqa: E731
    assert ask({"model": {}}, results.folder) == {"dev": {"file": "1234"}}
    with pytest.raises(ValueError, match="the base dev: there is no such file"):
        ask({}, results.folder)
    with pytest.raises(ValueError, match="does not see the results folder .*: choose a folder that all machines share"):
        ask({"model": {}}, Path("/nowhere"))
    fleet.run_jobs(workers, [], results.folder, lambda *told: None)


def test_workers_that_fit_nowhere_are_refused(two_nodes):
    assert fleet.workers_that_fit(Machines(gpus=0, cpus=1)) == 3
    assert fleet.workers_that_fit(Machines(gpus=0, cpus=2)) == 1
    with pytest.raises(ValueError, match="no machine of the cluster has 1 GPUs and 1 CPUs for a worker"):
        fleet.start_workers(Machines(), Runner(STAND_IN, {}), 1)


def test_a_missing_ray_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match="a fleet of workers needs the package ray: run `pip install ray`"):
        with fleet.connected(Machines()):
            pass


BY_ADDRESS = """
import json, sys
from pathlib import Path
from eraseanything_core.fleet import cluster
from fleet_stand_in import chain_job
address, results, *paths = sys.argv[1:]
machines = cluster.Machines(address, workers=1, gpus=0, paths=tuple(paths))
with cluster.connected(machines):
    workers = cluster.start_workers(machines, cluster.Runner("fleet_stand_in:StandIn", {"seconds": 0.0}), 1)
    outcomes = cluster.run_jobs(workers, [chain_job(0, 5)], Path(results), lambda *told: None)
print(json.dumps([outcome.error for outcome in outcomes]))
"""


def in_another_process(script, *arguments):
    """What a script prints last, as JSON; a process has one connection to Ray, and this one has its own."""
    environment = {**os.environ, **PATIENT, "PYTHONPATH": os.pathsep.join(PATHS)}
    ran = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_cluster_that_runs_already_is_used_by_its_address(two_nodes, results):
    assert in_another_process(BY_ADDRESS, two_nodes.address, str(results.folder), *PATHS) == [""]
    assert not results.missing([chain_job(0, 5)])


def test_another_cluster_than_the_one_that_is_joined_is_refused(two_nodes):
    for address in ("", "auto", two_nodes.address):
        with fleet.connected(Machines(address=address)) as dashboard:
            assert dashboard == ""
    message = f"is connected to Ray at {two_nodes.address} already, and not at 10.0.0.1:6379: restart it"
    with pytest.raises(ValueError, match=message):
        with fleet.connected(Machines(address="10.0.0.1:6379")):
            pass
    assert ray.is_initialized()


@pytest.mark.parametrize("url, expected", (("10.0.0.1:8265", "10.0.0.1:8265"), (None, "")))
def test_the_address_of_the_dashboard_is_known(monkeypatch, url, expected):
    calls = []

    def init(address, **given):
        calls.append((address, given))
        return SimpleNamespace(dashboard_url=url)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    with fleet.connected(Machines(address="auto")) as dashboard:
        assert dashboard == expected
    assert calls == [("auto", {"log_to_driver": False}), "shutdown"]


def test_a_cluster_that_does_not_start_is_one_sentence(monkeypatch):
    """Ray raises a plain exception where a node takes longer than it waits."""

    def init(address, **given):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match="cannot reach Ray at this machine: The current node timed out"):
        with fleet.connected(Machines()):
            pass


LISTENERS = """
import json
import psutil
from ray._private import services
from eraseanything_core.fleet.cluster import Machines, connected
from fleet_stand_in import patiently
services.get_node = patiently(services.get_node)
with connected(Machines()):
    found = []
    for process in psutil.Process().children(recursive=True):
        for each in process.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN:
                found.append([process.name(), each.laddr.ip])
print(json.dumps(found))
"""
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_control_ports_of_an_own_cluster_listen_on_this_machine_only():
    """Whoever reaches the control service runs code here."""
    addresses = {}
    for name, address in in_another_process(LISTENERS):
        addresses.setdefault(name, set()).add(address)
    assert "gcs_server" in addresses and "raylet" in addresses
    assert not {name: found for name, found in addresses.items() if found - LOOPBACK}
