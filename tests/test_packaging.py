"""What was built, what is shipped, and how setup.py decides."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import discloss_cuda
from build_tools import nvcc
from discloss_cuda import _C, _ops

ROOT = Path(__file__).resolve().parents[1]
OPS = ("forward", "backward", "count_instances", "batch_offsets")


# --- the compiled module --------------------------------------------------------------------------


def test_build_facts() -> None:
    assert _C.built_for_torch == torch.__version__.split("+")[0]
    assert isinstance(_C.with_cuda, bool)
    assert bool(_C.cuda_version) == bool(_C.cuda_architectures) == _C.with_cuda


def test_stub_lists_the_build_facts() -> None:
    stub = ast.parse((ROOT / "discloss_cuda" / "_C.pyi").read_text())
    listed = {ast.unparse(node.target) for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert listed == {name for name in vars(_C) if not name.startswith("__")}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("key", ["CPU", "CUDA"])
def test_ops_are_registered(op: str, key: str) -> None:
    expected = key == "CPU" or _C.with_cuda
    name = f"discloss_cuda::{op}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key) == expected


def test_backends_are_those_built() -> None:
    assert _ops.current().device_types == (("cpu", "cuda") if _C.with_cuda else ("cpu",))


def maps_after(statement: str) -> set[str]:
    """Names of the libraries that a new Python has loaded after a statement."""
    code = f"{statement}\nprint(open('/proc/self/maps').read())"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return {Path(line.split()[-1]).name for line in output.splitlines() if ".so" in line}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_brings_no_library_that_torch_does_not() -> None:
    """No second OpenMP pool, no shared CUDA runtime: nothing but the module itself."""
    new = maps_after("import torch, discloss_cuda") - maps_after("import torch")
    unwanted = ("gomp", "iomp", "libomp", "cudart", "nvrtc")
    assert any(name.startswith("_C.") for name in new)
    assert not [name for name in new if any(part in name for part in unwanted)]


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


def test_version() -> None:
    try:
        installed = importlib.metadata.version("discloss_cuda")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is built in place, not installed")
    assert discloss_cuda.__version__ == installed


def test_source_distribution_is_complete(tmp_path: Path) -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("compares with the files that git knows")
    setup = [sys.executable, "setup.py", "--quiet"]
    steps = ["egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run([*setup, *steps], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        shipped = {name.partition("/")[2] for name in opened.getnames()}
    folders = ("build_tools", "csrc", "discloss_cuda", "requirements", "tests")
    known = subprocess.run(
        ["git", "ls-files", "setup.py", "LICENSE", "README.md", *folders],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert set(known) - shipped == set()
    assert "discloss_cuda/py.typed" in shipped


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
    assert setup_script.cuda_toolkit() is None
    assert "building without the CUDA backend: found no CUDA toolkit" in capsys.readouterr().err


def test_torch_is_missing(tmp_path: Path) -> None:
    """As under pip's build isolation."""
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
    assert "pip install --no-build-isolation ." in result.stderr
