"""The set-up of scripts/dev.py, without a network."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from scripts import base, comfyui, existing, lint, server
from scripts.dev import COMMANDS, QUICK, parse
from scripts.steps import StepFailed, Steps, content_hash, interrupted, python_in

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def steps(tmp_path):
    return Steps(tmp_path / "stamps", tmp_path / "setup.log")


def python(code: str) -> list:
    return [sys.executable, "-c", code]


def append(path: Path) -> list:
    return python(f"open({str(path)!r}, 'a').write('x')")


def test_a_step_is_done_once_and_again_when_its_input_changes(steps, tmp_path):
    done, requirements = tmp_path / "done", tmp_path / "requirements.txt"
    requirements.write_text("one")
    for text in ("one", "one", "two", "two"):
        requirements.write_text(text)
        steps.once("install", [append(done)], "advice", inputs=(requirements,))
    assert done.read_text() == "xx"


def test_a_step_that_failed_is_tried_again_and_says_what_to_do(steps):
    broken = [python("print('no space left'); raise SystemExit(3)")]
    for _ in range(2):
        with pytest.raises(StepFailed) as failure:
            steps.once("torch", broken, "Free some space.")
        assert all(text in str(failure.value) for text in ("torch", "no space left", "Free some space."))


@pytest.mark.parametrize("complaint, runs", [("IncompleteRead(3 bytes read)", 2), ("No matching distribution", 1)])
def test_only_an_interrupted_download_is_tried_once_more(steps, tmp_path, complaint, runs):
    done = tmp_path / "done"
    code = f"open({str(done)!r}, 'a').write('x'); print({complaint!r}); raise SystemExit(1)"
    with pytest.raises(StepFailed):
        steps.run("download", [python(code)], "advice")
    assert done.read_text() == "x" * runs
    assert interrupted(complaint) == (runs == 2)


def test_content_hash_tells_a_path_from_its_name(tmp_path):
    file = tmp_path / "file"
    file.write_text("content")
    assert content_hash(file) == content_hash("content") != content_hash(str(file))
    assert content_hash("ab", "c") != content_hash("a", "bc")


def test_the_command_line_passes_arguments_on():
    assert parse(["test", "-k", "graph", "--maxfail=1"]) == ("test", ["-k", "graph", "--maxfail=1"])
    assert parse(["demo", "--images", "4"]) == ("demo", ["--images", "4"])
    assert parse(["demo"]) == ("demo", [])


def test_the_whole_suite_runs_in_two_processes():
    assert parse(["test"]) == ("test", ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations", "25"])


def test_the_quick_tests_take_further_arguments():
    command, arguments = parse(["test", "--quick", "-x"])
    assert command == "test" and arguments == [*QUICK, "-x"] and "--quick" not in arguments


def test_what_the_quick_tests_name_exists():
    """pytest would end with an error for a file that is gone."""
    paths = [argument.partition("::")[0] for argument in QUICK if argument.startswith("tests/")]
    assert len(paths) > 2 and all((ROOT / path).exists() for path in paths)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_module(command):
    module = ROOT / COMMANDS[command][0].replace(".", "/")
    assert command == "test" or module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()


def test_lint_says_which_check_failed_and_the_end_of_its_output(capsys):
    assert lint.run("fine", ["platform"])
    assert not lint.run("broken", ["no_module_of_this_name"])
    output = capsys.readouterr().out
    assert "fine: passed" in output and "broken: FAILED" in output and "no_module_of_this_name" in output


def test_a_step_that_fails_ends_without_a_traceback(tmp_path):
    environment = {**os.environ, "COMFYUI_PATH": str(tmp_path)}
    command = [sys.executable, "scripts/dev.py", "test"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert str(tmp_path) in result.stderr and "Traceback" not in result.stderr


# --- ComfyUI's source


def sdist(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


VERSION_FILE = f'__version__ = "{comfyui.VERSION}"\n'
SOURCE = {
    "package-1/setup.py": "",
    "package-1/vendor/ComfyUI/main.py": "print()",
    "package-1/vendor/ComfyUI/comfy/ops.py": "",
    "package-1/vendor/ComfyUI/comfyui_version.py": VERSION_FILE,
}


def test_comfyui_is_taken_out_of_the_sdist(tmp_path):
    target = tmp_path / "ComfyUI"
    comfyui.unpack(sdist(tmp_path / "a.tar.gz", SOURCE), target)
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert files == {"main.py", "comfy/ops.py", "comfyui_version.py"}
    assert comfyui.version_of(target) == comfyui.VERSION


@pytest.mark.parametrize(
    "change, message",
    [
        ({"package-1/vendor/ComfyUI/../../../evil.py": ""}, "outside"),
        ({"package-1/vendor/ComfyUI/comfyui_version.py": "__version__ = '0.1.0'"}, "0.1.0"),
    ],
)
def test_another_sdist_is_refused(tmp_path, change, message):
    target = tmp_path / "deep" / "ComfyUI"
    target.parent.mkdir()
    with pytest.raises(StepFailed, match=message):
        comfyui.unpack(sdist(tmp_path / "a.tar.gz", {**SOURCE, **change}), target)
    assert not target.exists() and not list(tmp_path.rglob("evil.py"))


def test_versions_are_compared_as_numbers():
    assert comfyui.at_least("0.30.0", "0.30.0") and comfyui.at_least("0.100.0", "0.30.0")
    assert not comfyui.at_least("0.4.0", "0.30.0")


# --- an existing installation


@pytest.fixture
def installation(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    folder = tmp_path / "place" / "ComfyUI"
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text(VERSION_FILE)
    return folder


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_interpreter_of_an_installation_is_found(installation, monkeypatch):
    assert existing.find_python(installation) == Path(sys.executable)
    portable = touch(installation.parent / "python_embeded" / "python.exe")
    assert existing.find_python(installation) == portable
    inside = touch(python_in(installation / "venv"))
    assert existing.find_python(installation) == inside
    monkeypatch.setenv("COMFYUI_PYTHON", str(portable))
    assert existing.find_python(installation) == portable
    monkeypatch.setenv("COMFYUI_PYTHON", str(installation / "gone"))
    with pytest.raises(StepFailed, match="COMFYUI_PYTHON"):
        existing.find_python(installation)


def test_an_embedded_python_is_refused_with_what_to_do(installation, tmp_path):
    portable = touch(installation.parent / "python_embeded" / "python.exe")
    touch(portable.with_name("python313._pth"))
    with pytest.raises(StepFailed, match="(?s)embedded Python.*Unset COMFYUI_PATH.*COMFYUI_PYTHON"):
        existing.use_existing(installation, tmp_path / "overlay", tmp_path / "log", [])


def test_an_installation_without_further_requirements_is_used_as_it_is(installation, tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# nothing\n\n")
    found = existing.use_existing(installation, tmp_path / "overlay", tmp_path / "log", [requirements])
    assert found == (Path(sys.executable), installation)
    assert not (tmp_path / "overlay").exists()


def test_an_older_comfyui_is_refused(installation, tmp_path):
    (installation / "comfyui_version.py").write_text('__version__ = "0.3.64"')
    with pytest.raises(StepFailed, match="0.3.64"):
        existing.use_existing(installation, tmp_path / "overlay", tmp_path / "log", [])


def test_an_overlay_sees_the_packages_below_it(tmp_path):
    venv, packages = tmp_path / "venv", tmp_path / "packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    touch(packages / "only_below.py")
    existing.link_packages([str(packages)], existing.site_packages(python_in(venv))[-1])
    subprocess.run([python_in(venv), "-c", "import only_below"], check=True)


# --- the base directory


def test_the_base_directory_has_the_pack_and_its_weights(tmp_path):
    root = tmp_path / "pack"
    source = touch(root / "eraseanything_core" / "tinyflux" / "weights" / "tinyflux_vae.safetensors")
    folder = base.prepare_base(tmp_path / "base", root)
    assert (folder / "custom_nodes" / base.PACK).samefile(root)
    copied = folder / "models" / "vae" / source.name
    source.write_text("new")
    base.prepare_base(folder, root)
    assert copied.read_text() == "new"


def test_a_link_to_another_place_is_replaced_and_the_place_kept(tmp_path):
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    touch(old / "file")
    new.mkdir()
    base.link_pack(old, link)
    base.link_pack(new, link)
    assert link.samefile(new) and (old / "file").exists()


def test_a_copy_of_the_pack_gives_way_to_a_link(tmp_path):
    touch(tmp_path / "pack" / "__init__.py")
    touch(tmp_path / "link" / "nodes" / "old.py")
    base.link_pack(tmp_path / "pack", tmp_path / "link")
    assert not (tmp_path / "link" / "nodes").exists()


# --- what the server says


def test_a_refusal_names_the_nodes():
    error = {"message": "Value not in list", "details": "file: 'x' not in []"}
    answer = {"error": {"message": "Prompt failed", "details": ""}, "node_errors": {"4": {"errors": [error]}}}
    message = server.refusal(answer, {"4": {"class_type": "UNETLoader"}})
    assert message == "UNETLoader (node 4): Value not in list: file: 'x' not in []"
    assert server.refusal({**answer, "node_errors": {}}, {}) == "Prompt failed: "


def test_a_server_that_ends_at_once_says_what_it_printed(tmp_path):
    (tmp_path / "main.py").write_text("raise SystemExit('this ComfyUI is broken')")
    with pytest.raises(server.ServerError, match="this ComfyUI is broken"):
        server.ComfyServer(tmp_path, tmp_path, tmp_path / "log").start()
