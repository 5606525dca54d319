"""``python -m discloss_cuda``: what was built and what it runs on, for bug reports."""

from __future__ import annotations

import platform

import torch

from . import _C, __version__, _ops


def facts() -> dict[str, str]:
    """Versions, backends and hardware, by name."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "discloss_cuda": __version__,
        "module": str(_C.__file__),
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, built for {_C.built_for_torch}",
        "CUDA of torch": torch.version.cuda or "none",
        "backends": ", ".join(_ops.current().device_types),
        "CUDA of the build": _C.cuda_version or "none",
        "architectures": _C.cuda_architectures or "none",
        "CPU": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "GPUs": ", ".join(f"{gpu.name} {gpu.major}.{gpu.minor}" for gpu in gpus) or "none visible",
    }


if __name__ == "__main__":
    for name, fact in facts().items():
        print(f"{name:18} {fact}")
