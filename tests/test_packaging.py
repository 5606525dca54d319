"""What was built, what is shipped, and how setup.py decides."""

from __future__ import annotations

import ast
import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import types
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support import ROOT

import discloss_cuda
from build_tools import nvcc, progress
from discloss_cuda import _C, _ops
from discloss_cuda.__main__ import facts

OPS = ("forward", "backward", "count_instances", "batch_offsets")


# --- the compiled module --------------------------------------------------------------------------


def test_build_facts() -> None:
    assert _C.built_for_torch == torch.__version__.split("+")[0]
    assert isinstance(_C.with_cuda, bool)
    assert bool(_C.cuda_version) == bool(_C.cuda_architectures) == _C.with_cuda


def test_stub_lists_what_the_module_has() -> None:
    stub = ast.parse((ROOT / "discloss_cuda" / "_C.pyi").read_text())
    facts = {ast.unparse(node.target) for node in stub.body if isinstance(node, ast.AnnAssign)}
    listed = facts | {node.name for node in stub.body if isinstance(node, ast.ClassDef)}
    assert listed == {name for name in vars(_C) if not name.startswith("__")}


def test_missing_compiled_module_is_explained(tmp_path: Path) -> None:
    """What a checkout that has not been built, or another torch, leads to."""
    shutil.copytree(
        ROOT / "discloss_cuda", tmp_path / "discloss_cuda", ignore=shutil.ignore_patterns("*.so")
    )
    command = [sys.executable, "-m", "discloss_cuda"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: discloss_cuda: the compiled module in {tmp_path}")
    assert "build_ext --inplace" in last


def test_printed_facts() -> None:
    """``python -m discloss_cuda`` says what a bug report needs."""
    command = [sys.executable, "-m", "discloss_cuda"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    printed = dict(re.split("  +", line, maxsplit=1) for line in output.splitlines())
    assert printed["discloss_cuda"] == discloss_cuda.__version__
    assert printed["module"] == _C.__file__
    assert printed["torch"] == f"{torch.__version__}, built for {_C.built_for_torch}"
    assert printed["CUDA of torch"] == str(torch.version.cuda or "none")
    assert printed["backends"] == ", ".join(_ops.current().device_types)
    assert printed["CUDA of the build"] == (_C.cuda_version or "none")
    assert printed["architectures"] == (_C.cuda_architectures or "none")
    assert printed["CPU"].startswith(torch.backends.cpu.get_cpu_capability())
    if not torch.cuda.is_available():
        assert printed["GPUs"] == "none visible"


def test_printed_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = types.SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    assert facts()["GPUs"] == "NVIDIA H200 9.0, NVIDIA H200 9.0"


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("key", ["CPU", "CUDA"])
def test_ops_are_registered(op: str, key: str) -> None:
    expected = key == "CPU" or _C.with_cuda
    name = f"discloss_cuda::{op}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key) == expected


def test_backends_are_those_built() -> None:
    assert _ops.current().device_types == (("cpu", "cuda") if _C.with_cuda else ("cpu",))


def libraries_after(statement: str) -> set[Path]:
    """The shared libraries in a new Python after a statement."""
    code = f"{statement}\nprint(open('/proc/self/maps').read())"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return {Path(line.split()[-1]) for line in output.splitlines() if ".so" in line}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_brings_no_runtime_of_its_own() -> None:
    """Its threads are those of torch, and it needs no shared CUDA runtime."""
    new = libraries_after("import torch, discloss_cuda") - libraries_after("import torch")
    names = {path.name for path in new}
    assert Path(str(_C.__file__)).name in names
    unwanted = ("gomp", "omp5", "libomp", "cudart", "nvrtc")
    assert not [name for name in names if any(part in name for part in unwanted)]


@pytest.mark.skipif(not _C.with_cuda, reason="needs the CUDA backend")
def test_cuda_runtime_stays_inside() -> None:
    """A visible symbol of the static runtime would be replaced by that of torch's shared one."""
    command = shutil.which("nm")
    if command is None:
        pytest.skip("needs binutils")
    module = _C.__file__
    assert module is not None
    symbols = subprocess.run(
        [command, "--dynamic", module], check=True, capture_output=True, text=True
    ).stdout
    assert "PyInit__C" in symbols
    assert not [line for line in symbols.splitlines() if " cuda" in line or "__cuda" in line]


# --- what is shipped ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarfile.TarFile]:
    """The source distribution, made outside of the source tree."""
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run(
        [
            *(sys.executable, "setup.py", "--quiet"),
            *("egg_info", "--egg-base", str(folder)),
            *("sdist", "--dist-dir", str(folder)),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        yield opened


def test_metadata(source_archive: tarfile.TarFile) -> None:
    name = next(name for name in source_archive.getnames() if name.endswith("/PKG-INFO"))
    file = source_archive.extractfile(name)
    assert file is not None
    metadata = email.message_from_bytes(file.read())
    minor = ".".join(torch.__version__.split(".")[:2])
    assert metadata["Name"] == "discloss_cuda"
    assert metadata["Version"] == discloss_cuda.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert f"torch=={minor}.*" in metadata.get_all("Requires-Dist", [])


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="asks git for the files"
)
def test_source_archive_is_complete(source_archive: tarfile.TarFile) -> None:
    folders = ("build_tools", "csrc", "discloss_cuda", "requirements", "tests")
    listed = subprocess.run(
        ["git", "ls-files", "setup.py", "LICENSE", "README.md", *folders],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    shipped = {name.partition("/")[2] for name in source_archive.getnames()}
    missing = [name for name in listed if name not in shipped and (ROOT / name).exists()]
    assert missing == []


# --- setup.py -------------------------------------------------------------------------------------


@pytest.fixture
def setup_script() -> ModuleType:
    """setup.py as a module: its functions, with nothing run."""
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nvcc.Toolkit]:
    """A toolkit that is found in CUDA_HOME, whose compiler is a shell script."""
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart_static.a"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "bin/nvcc").write_text(
        '#!/bin/sh\ncase $1 in --version) echo "Cuda compilation tools, release 12.4, V12.4.99";;\n'
        "--list-gpu-arch) echo compute_75 compute_80 compute_90 compute_90a;; esac\n"
    )
    (tmp_path / "bin/nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc.find_toolkit.cache_clear()
    yield nvcc.find_toolkit()
    nvcc.find_toolkit.cache_clear()


@pytest.fixture
def no_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An incomplete toolkit is all there is."""
    monkeypatch.setattr(nvcc, "_roots", lambda: [tmp_path])
    nvcc.find_toolkit.cache_clear()
    yield tmp_path
    nvcc.find_toolkit.cache_clear()


def test_toolkit(toolkit: nvcc.Toolkit, tmp_path: Path) -> None:
    assert toolkit.nvcc == tmp_path / "bin" / "nvcc"
    assert toolkit.include_dirs == (tmp_path / "include",)
    assert toolkit.library_dir == tmp_path / "lib64"
    assert toolkit.version == "12.4"
    assert toolkit.architectures == ("7.5", "8.0", "9.0")


def test_toolkit_of_a_script_on_the_path(
    toolkit: nvcc.Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvcc"
    script.write_text(f'#!/bin/sh\necho "#\\$ TOP={tmp_path}/bin/.."\n')
    script.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(script))
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setenv("CUDA_PATH", "")
    nvcc.find_toolkit.cache_clear()
    assert nvcc.find_toolkit() == toolkit
    script.write_text("#!/bin/sh\nexit 127\n")
    assert next(nvcc._roots()) == script  # a broken one is passed over


def test_default_architectures_are_what_nvcc_knows(
    toolkit: nvcc.Toolkit, setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup_script.cuda_architectures(toolkit) == ["7.5", "8.0", "9.0+PTX"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(9, 0), (8, 6), (9, 0)][i])
    assert setup_script.cuda_architectures(toolkit) == ["8.6", "9.0"]


@pytest.mark.parametrize("listed", ["8.0;9.0a+PTX", "8.0 9.0a+PTX", "8.0; 9.0a+PTX;"])
def test_architectures_asked_for(
    listed: str,
    toolkit: nvcc.Toolkit,
    setup_script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    architectures = setup_script.cuda_architectures(toolkit)
    assert architectures == ["8.0", "9.0a+PTX"]
    assert setup_script.gencode_flags(architectures) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


def test_other_flags_have_objects_of_their_own(
    setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ninja does not see what NVCC_APPEND_FLAGS adds to a command."""
    folders = []
    for flags in ("", "-DA=0", "-DA=1"):
        monkeypatch.setenv("NVCC_APPEND_FLAGS", flags)
        folders.append(setup_script.kernel_objects("build/x"))
    assert folders[0] == Path("build/x/nvcc")
    assert len(set(folders)) == 3
    monkeypatch.delenv("NVCC_APPEND_FLAGS")
    assert setup_script.kernel_objects("build/x") == folders[0]


def test_cuda_beside_a_torch_without_it_is_built_where_asked_for(
    toolkit: nvcc.Toolkit,
    setup_script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def found(torch_cuda: str | None, **variables: str) -> nvcc.Toolkit | None:
        for name in ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        setup_script.cuda_toolkit.cache_clear()
        return setup_script.cuda_toolkit()

    assert found("13.0") == toolkit
    assert "without" not in capsys.readouterr().err
    assert found(None) is None
    assert "building without the CUDA backend: this torch has no CUDA" in capsys.readouterr().err
    assert found(None, FORCE_CUDA="1") == toolkit
    assert found(None, TORCH_CUDA_ARCH_LIST="8.0") == toolkit
    assert found(None, TORCH_CUDA_ARCH_LIST="8.0", FORCE_CUDA="0") is None
    assert found("13.0", FORCE_CUDA="0") is None


def test_unknown_architecture(setup_script: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST: expected .*, got 'Hopper'"):
        setup_script.gencode_flags(["Hopper"])


def test_cuda_is_left_out(
    toolkit: nvcc.Toolkit, setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert setup_script.cuda_toolkit() is None


def test_cuda_is_forced(
    no_toolkit: Path, setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    message = f"FORCE_CUDA=1: found no CUDA toolkit .*; {no_toolkit} is incomplete"
    with pytest.raises(SystemExit, match=message):
        setup_script.cuda_toolkit()


def test_cuda_is_optional(
    no_toolkit: Path,
    setup_script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert setup_script.cuda_toolkit() is None
    assert "building without the CUDA backend: found no CUDA toolkit" in capsys.readouterr().err


def test_torch_is_missing(tmp_path: Path) -> None:
    """setup.py by itself, without the backend."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "No module named 'torch'" in result.stderr
    assert "Install torch, then: pip install ." in result.stderr


# --- progress -------------------------------------------------------------------------------------

LOG = "# ninja log v7\n"
OLD = "0\t1900\t17\tbuild/bindings.o\tab\n"


def test_says_what_has_been_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / ".ninja_log"
    log.write_text(LOG + OLD)
    monkeypatch.setattr(progress, "TERMINAL", tmp_path / "terminal")
    with progress.compiling(tmp_path, ["csrc/bindings.cpp", "csrc/loss/cpu/push.cpp"], seconds=60):
        # Rewritten, as ninja does now and then, with one more entry and the beginning of another.
        log.write_text(LOG + OLD + "5\t2505\t18\tbuild/csrc/loss/cpu/push.o\tcd\n" + "7\t90")
    assert capsys.readouterr().err == "discloss_cuda: compiled csrc/loss/cpu/push.cpp in 2 s\n"
    assert not (tmp_path / "terminal").exists()


def test_nothing_compiled_is_nothing_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), progress.compiling(tmp_path, ["csrc/a.cpp"]):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_sources_of_one_name_are_told_apart() -> None:
    sources = ["csrc/a/cpu/kernels.cpp", "csrc/b/cpu/kernels.cpp", "csrc/b/cuda/passes.cu"]
    for output, source in zip(
        ("/build/csrc/a/cpu/kernels.o", "/build/csrc/b/cpu/kernels.o", "/build/nvcc/passes.cu.o"),
        sources,
        strict=True,
    ):
        assert progress.source_of(output, sources) == source


def test_a_front_end_does_not_hide_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip keeps stderr to itself; where there is no terminal, nothing else happens."""
    backend = ModuleType("backend")
    backend.__file__ = str(ROOT / "build_tools" / "backend.py")
    monkeypatch.setitem(sys.modules, "backend", backend)
    monkeypatch.setattr(progress, "TERMINAL", tmp_path / "terminal")
    progress.say("half done")
    assert (tmp_path / "terminal").read_bytes() == b"\r\033[Kdiscloss_cuda: half done\n"
    monkeypatch.setattr(progress, "TERMINAL", tmp_path / "missing" / "terminal")
    progress.say("done")
    assert capsys.readouterr().err == "discloss_cuda: half done\ndiscloss_cuda: done\n"


# --- build isolation ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build environment as pip makes one, offline: a Python without torch, a folder with nothing
    but setuptools, and a ``sitecustomize.py`` that hides the packages of that Python."""
    folder = tmp_path_factory.mktemp("isolated")
    venv.create(folder / "venv", symlinks=True)
    listed = folder / "listed"
    listed.mkdir()
    for package in ("setuptools", "_distutils_hack"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        (listed / package).symlink_to(Path(spec.origin).parent)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        "import site, sys\n"
        "before = sys.path[:]\n"
        "for folder in [*site.getsitepackages(), *site.getsitepackages([sys.base_prefix])]:\n"
        "    site.addsitedir(folder, known_paths=set())\n"
        "hidden = sys.path[len(before):]  # with what .pth files add\n"
        f"sys.path = [p for p in before if p not in hidden] + [{str(listed)!r}]\n"
    )
    return folder


@pytest.fixture
def small_project(tmp_path: Path) -> Path:
    """The way of building of the package, with nothing to compile."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "build_tools", project / "build_tools")
    pyproject = (ROOT / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(pyproject[: pyproject.index("[project]")])
    (project / "setup.py").write_text(
        "import setuptools, torch\n"
        "setuptools.setup(name='small', version='1', py_modules=[], "
        "install_requires=[f'torch=={torch.__version__}'])\n"
    )
    return project


def call_hook(isolated: Path, project: Path, hook: str) -> subprocess.CompletedProcess[str]:
    """What a front end does: the backend of pyproject.toml, in a new process, in the project."""
    system = tomllib.loads((project / "pyproject.toml").read_text())["build-system"]
    assert not [name for name in system["requires"] if name.startswith("torch")]
    code = (
        f"import sys; sys.path[:0] = {system['backend-path']}; "
        f"import {system['build-backend']} as backend; print(backend.{hook})"
    )
    return subprocess.run(
        [str(isolated / "venv" / "bin" / "python"), "-c", code],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(isolated / "site"), "PYTHONNOUSERSITE": "1"},
        capture_output=True,
        text=True,
    )


def test_isolated_build_takes_the_torch_that_is_installed(
    isolated: Path, small_project: Path
) -> None:
    """Here torch is shared with this Python by a .pth file, as editable installs are."""
    shared = sysconfig.get_path("purelib", vars={"base": str(isolated / "venv")})
    (Path(shared) / "shared.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    try:
        result = call_hook(
            isolated, small_project, "get_requires_for_build_wheel(), backend.build_wheel('.')"
        )
    finally:
        (Path(shared) / "shared.pth").unlink()
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("[] ")  # nothing more is to be downloaded
    (wheel,) = small_project.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read("small-1.dist-info/METADATA").decode()
    assert f"Requires-Dist: torch=={torch.__version__}\n" in metadata


@pytest.mark.parametrize(
    "hook",
    ["get_requires_for_build_wheel()", "get_requires_for_build_editable()", "build_sdist('.')"],
)
def test_isolated_build_without_torch_fails_at_once(
    isolated: Path, small_project: Path, hook: str
) -> None:
    result = call_hook(isolated, small_project, hook)
    assert result.returncode != 0
    assert "Install torch there, then: pip install ." in result.stderr
    assert str(isolated / "venv") in result.stderr
    assert "Traceback" not in result.stderr
    assert not [*small_project.glob("*.tar.gz"), *small_project.glob("*.egg-info")]
