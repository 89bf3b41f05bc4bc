"""Builds `fastrnn._C`, the CUDA extension, where there is nvcc, and `fastrnn._stream` where there is a C compiler.

Without them, or where they fail, the package is installed without the extension, and the reason is kept beside it for
`python -m fastrnn` to show (`pip install -v .` shows it too). The rest of the package is described in pyproject.toml.
These environment variables are read, all but the last for the CUDA extension:

FASTRNN_CUDA        0: never build the extension; 1: fail where it cannot be built; host: build its kernels for the CPU,
                    where they run slowly, for tests: this needs a C++ compiler (CXX, else g++) and no nvcc
FASTRNN_CUDA_ARCHS  the architectures to build for, as "80;90a" or "8.0;9.0a"; else all of ARCHITECTURES that nvcc knows
MAX_JOBS            how many processes and threads compile at once; else one for each processor
CUDA_HOME           where the toolkit is; else nvcc is looked for in PATH and in /usr/local/cuda
CC                  the C compiler of `fastrnn._stream`; else the one that Python was compiled with
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
"""One for each generation; a chip runs the code of its own generation with the same or a lower minor number, while
90a, which has the instructions that only Hopper has, runs on 9.0 alone."""

CUDA, DOOR = "fastrnn._C", "fastrnn._stream"
"""The extensions: kernels for GPUs; what calls streams. A build without either is complete."""

DOOR_SOURCES = Path("csrc", "stream")
DOOR_FLAGS = ("-O2", "-fvisibility=hidden", "-Wall", "-Wextra")
"""Of its compiler, unless that is Microsoft's."""

HOST = "host"
"""The value of FASTRNN_CUDA that asks for kernels which run on the CPU."""

HOST_ARCHITECTURE = "90a"
"""Whose code the host build's kernels stand for."""

CLUSTER_SOURCES = "cluster"
"""The folder of the kernels that are compiled for architectures with clusters of blocks only."""
FIRST_WITH_CLUSTERS = 90

CUDA_ONLY = "ceilings.cu"
"""The source that the host build leaves out: it measures a device."""

KERNEL_SOURCES = (CLUSTER_SOURCES, "grid")
"""The folders of the recurrence's kernels, which take longest to compile: once for each cell, side by side."""

CELLS_FILE = Path(__file__).resolve().parent / "csrc" / "cells.h"
"""Which cells there are."""

RUN_TIME_HEADERS = ("*.h", "*.cuh", *(f"{name}/*.cuh" for name in KERNEL_SOURCES))
"""What kernels are made of, which the package takes along: `fastrnn.backends.cuda.run_time` compiles those of cells
that are not built in."""

SHOWN_LINES = 8
"""How much of nvcc's complaint the reason quotes: all of a short one, the first errors of a long one."""


def find_sources(folder: Path) -> list[str]:
    """Every source file of the extension."""
    kernels = [f"{name}/*.cu" for name in KERNEL_SOURCES]
    return sorted(str(path) for pattern in ("*.cpp", "*.cu", *kernels) for path in folder.glob(pattern))


def door() -> Extension:
    """The streams' extension."""
    sources, headers = (sorted(map(str, DOOR_SOURCES.glob(pattern))) for pattern in ("*.c", "*.h"))
    return Extension(DOOR, sources, depends=headers, optional=True)


def reason_file(name: str) -> str:
    """The file beside the package's modules which says why there is no extension of this name.

    `fastrnn.extension` reads it.
    """
    return f"{name.rpartition('.')[2]}.missing.txt"


class Unit(NamedTuple):
    """What one run of the compiler makes an object of."""

    source: str
    cell: str = ""
    """of whose kernels, by its class; of a source without any, none"""

    def __str__(self) -> str:
        return f"{self.source} for {self.cell}" if self.cell else self.source

    @property
    def flags(self) -> list[str]:
        """For the compiler."""
        return [f"-DFASTRNN_CELL={self.cell}"] if self.cell else []

    @property
    def object_name(self) -> str:
        """What the object file is called: folders have sources of the same name."""
        path = Path(self.source)
        return "-".join(filter(None, (path.parent.name, path.name, self.cell))) + ".o"


def cells() -> list[str]:
    """The class of every cell."""
    return re.findall(r"\bX\((\w+), \w+\)", CELLS_FILE.read_text())


def units(sources: list[str]) -> list[Unit]:
    """What there is to compile of these sources."""
    return [Unit(source, cell) for source in sources for cell in (cells() if holds_kernels(source) else [""])]


class NotBuilt(Exception):
    """Why the extension cannot be built here, as a clause."""


def wanted() -> bool | None:
    """FASTRNN_CUDA: True if it requires the extension, False if it forbids it, None if it leaves it open."""
    value = os.environ.get("FASTRNN_CUDA", "")
    if value not in ("", "0", "1", HOST):
        raise SystemExit(f"FASTRNN_CUDA must be 0, 1, {HOST} or unset, got {value!r}")
    return None if value == "" else value != "0"


def for_host() -> bool:
    """Whether FASTRNN_CUDA asks for kernels that run on the CPU."""
    return os.environ.get("FASTRNN_CUDA") == HOST


def jobs() -> int:
    """How many threads may compile at once."""
    value = os.environ.get("MAX_JOBS", "")
    if not value:
        return len(os.sched_getaffinity(0))
    if not value.isdecimal() or int(value) < 1:
        raise SystemExit(f"MAX_JOBS must be a number from 1 on, got {value!r}")
    return int(value)


def find_compiler() -> str:
    """The path of nvcc, or of a C++ compiler for the host build. Raises NotBuilt where anything is missing."""
    if not sys.platform.startswith("linux"):
        raise NotBuilt(f"it is built on Linux only, this is {sys.platform}")
    compiler = find_cxx() if for_host() else find_nvcc()
    require_headers()
    return compiler


def require_headers() -> None:
    """Raises NotBuilt where Python's headers are missing."""
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        raise NotBuilt(f"Python's headers are not installed (no Python.h in {include})")


def find_cxx() -> str:
    """The path of CXX, or of g++. Raises NotBuilt where there is none."""
    name = os.environ.get("CXX") or "g++"
    found = shutil.which(name)
    if found is None:
        raise NotBuilt(f"no C++ compiler ({name}) in PATH")
    return found


def find_nvcc() -> str:
    """The path of nvcc. Raises NotBuilt where there is none."""
    home = os.environ.get("CUDA_HOME")
    if home:
        nvcc = shutil.which("nvcc", path=str(Path(home, "bin")))
        looked = f"CUDA_HOME ({home})"
    else:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        looked = "PATH or /usr/local/cuda"
    if nvcc is None:
        raise NotBuilt(f"no nvcc (CUDA's compiler) in {looked}")
    return nvcc


def run(command: list[str], what: str) -> str:
    """What `command` prints. Raises NotBuilt, naming `what` it was to do and quoting what it said."""
    print(" ".join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout, flush=True)
        said = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in said if "error" in line or "fatal" in line]
        quoted = "\n".join((said if len(said) <= SHOWN_LINES else errors or said)[:SHOWN_LINES])
        raise NotBuilt(f"{what} failed with exit status {done.returncode}:\n{quoted}")
    return done.stdout


def architectures(nvcc: str) -> list[str]:
    """What to compile for: FASTRNN_CUDA_ARCHS, else those of ARCHITECTURES that this nvcc knows."""
    known = re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"], "nvcc --list-gpu-arch"))
    asked = os.environ.get("FASTRNN_CUDA_ARCHS", "").replace(".", "")
    if not asked.strip(" ,;"):
        usual = [architecture for architecture in ARCHITECTURES if architecture.rstrip("a") in known]
        if not usual:
            raise NotBuilt(f"nvcc compiles for {', '.join(known)} but for none of {', '.join(ARCHITECTURES)}")
        return usual
    chosen = list(dict.fromkeys(re.findall(r"[^\s,;]+", asked)))
    for architecture in chosen:
        if not re.fullmatch(r"\d+[af]?", architecture) or architecture.rstrip("af") not in known:
            raise SystemExit(
                f'FASTRNN_CUDA_ARCHS: nvcc cannot compile for {architecture!r}; expected a list such as "80;90a" of '
                f"{', '.join(known)}, each with an a or f after it where the chip has its own instructions"
            )
    return chosen


class BuildPackage(build_py):
    """Copies the package, and into it what kernels are compiled from while a program runs."""

    def run(self) -> None:
        """As said; an editable install finds the sources in the checkout."""
        super().run()
        if self.editable_mode:
            return
        for source in run_time_sources():
            target = Path(self.build_lib, "fastrnn", source)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(source), str(target))


def run_time_sources() -> list[Path]:
    """The headers of csrc that kernels include, from the folder of this file."""
    return sorted(path for pattern in RUN_TIME_HEADERS for path in Path("csrc").glob(pattern))


class BuildExtension(build_ext):
    """Compiles an extension, or leaves the reason why not where it would be."""

    def run(self) -> None:
        """Builds the extensions, and in an editable install moves the outcome into the checkout."""
        super().run()
        if self.inplace:
            build_py = self.get_finalized_command("build_py")
            for extension in self.extensions:
                here = Path(self.get_ext_fullpath(extension.name))
                built = Path(self.build_lib, self.get_ext_filename(extension.name))
                reason = reason_file(extension.name)
                for source, target in ((built, here), (built.with_name(reason), here.with_name(reason))):
                    target.unlink(missing_ok=True)
                    if source.exists():
                        build_py.copy_file(str(source), str(target))

    def build_extension(self, extension: Extension) -> None:
        """Compiles and links `extension`. Exits where it cannot and FASTRNN_CUDA requires it."""
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        reason_path = target.with_name(reason_file(extension.name))
        target.unlink(missing_ok=True)
        reason_path.unlink(missing_ok=True)
        try:
            if extension.name == DOOR:
                self.build_door(extension)
            else:
                self.build_cuda(extension, target)
        except NotBuilt as reason:
            if extension.name == CUDA and wanted():
                raise SystemExit(required(reason)) from None
            reason_path.write_text(f"{reason}\n")
            print(f"fastrnn is built without {extension.name}: {reason}", flush=True)

    def build_cuda(self, extension: Extension, target: Path) -> None:
        """Makes the CUDA extension by nvcc, or for the CPU. Raises NotBuilt."""
        if wanted() is False:
            raise NotBuilt("FASTRNN_CUDA=0 forbade it")
        build = compile_and_link_for_host if for_host() else compile_and_link
        build(extension.sources, find_compiler(), Path(self.build_temp), target)

    def build_door(self, extension: Extension) -> None:
        """Makes the streams' extension as setuptools makes any. Raises NotBuilt."""
        require_headers()
        if self.compiler.compiler_type != "msvc":
            extension.extra_compile_args = list(DOOR_FLAGS)
        try:
            super().build_extension(extension)
        except (BaseError, CCompilerError) as error:
            raise NotBuilt(str(error)) from None


def includes() -> list[str]:
    """The flags for Python's and pybind11's headers. Raises NotBuilt."""
    try:
        import pybind11
    except ImportError:
        raise NotBuilt("pybind11 is not installed, which a build without isolation needs") from None
    return [f"-I{folder}" for folder in (sysconfig.get_paths()["include"], pybind11.get_include())]


def compile_and_link(sources: list[str], nvcc: str, temporary: Path, target: Path) -> None:
    """Makes the shared library `target` by nvcc, with objects in the folder `temporary`. Raises NotBuilt."""
    flags = includes()
    chosen = architectures(nvcc)
    clustered = [name for name in chosen if int(name.rstrip("af")) >= FIRST_WITH_CLUSTERS]
    sources = [source for source in sources if not replaces_cuda(source)]
    if not clustered:
        sources = [source for source in sources if not needs_clusters(source)]
        flags.append("-DFASTRNN_NO_CLUSTERS")
    parts = units(sources)
    threads = max(1, jobs() // len(parts))
    flags += ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", f"--threads={threads}"]
    flags += [f"-DFASTRNN_ARCHITECTURES={':'.join(chosen)}"]  # nvcc takes what follows a comma for another macro

    def targets(names: list[str]) -> list[str]:
        return [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]

    def compile_one(unit: Unit) -> str:
        compiled = str(temporary / unit.object_name)
        own = targets(clustered if needs_clusters(unit.source) else chosen)
        run([nvcc, *own, *flags, *unit.flags, "-c", unit.source, "-o", compiled], f"nvcc on {unit}")
        return compiled

    objects = compile_all(parts, compile_one, temporary)
    # The static runtime needs no libcudart.so and stays apart from the one that torch loads.
    link = [nvcc, *targets(chosen), "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL"]
    run([*link, *objects, "-o", str(target)], "linking by nvcc")
    print(f"fastrnn is built with its CUDA extension for {', '.join(chosen)}", flush=True)


def compile_and_link_for_host(sources: list[str], compiler: str, temporary: Path, target: Path) -> None:
    """Makes the shared library `target` of kernels that run on the CPU. Raises NotBuilt."""
    flags = [*includes(), "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    flags += ["-Wno-unknown-pragmas"]  # nvcc's own
    flags += ["-DFASTRNN_HOST", f"-DFASTRNN_ARCHITECTURES={HOST_ARCHITECTURE}"]
    left_out = {source.replace("_host.cpp", ".cu") for source in sources if replaces_cuda(source)}
    left_out |= {source for source in sources if Path(source).name == CUDA_ONLY}

    def compile_one(unit: Unit) -> str:
        compiled = str(temporary / unit.object_name)
        run([compiler, *flags, *unit.flags, "-x", "c++", "-c", unit.source, "-o", compiled], f"{compiler} on {unit}")
        return compiled

    parts = units([source for source in sources if source not in left_out])
    objects = compile_all(parts, compile_one, temporary)
    run([compiler, "-shared", *objects, "-o", str(target)], f"linking by {compiler}")
    print("fastrnn is built with its CUDA extension's kernels for the CPU", flush=True)


def holds_kernels(source: str) -> bool:
    """Whether a source instantiates the recurrence's kernels."""
    return Path(source).parent.name in KERNEL_SOURCES


def needs_clusters(source: str) -> bool:
    """Whether a source is for architectures with clusters of blocks only."""
    return Path(source).parent.name == CLUSTER_SOURCES


def replaces_cuda(source: str) -> bool:
    """Whether a source takes the place, in the host build, of the .cu file of that name."""
    return source.endswith("_host.cpp")


def compile_all(parts: list[Unit], compile_one: Callable[[Unit], str], temporary: Path) -> list[str]:
    """The object files of all parts, those that take longest begun first."""
    temporary.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs()) as pool:
        return list(pool.map(compile_one, sorted(parts, key=lambda unit: bool(unit.cell), reverse=True)))


def required(reason: NotBuilt) -> str:
    """What is said where FASTRNN_CUDA cannot be fulfilled."""
    return f"FASTRNN_CUDA={os.environ['FASTRNN_CUDA']} requires the CUDA extension: {reason}"


def fail_early() -> None:
    """Exits before anything is downloaded or compiled if FASTRNN_CUDA requires what cannot be built."""
    if wanted():
        try:
            find_compiler()
        except NotBuilt as reason:
            raise SystemExit(required(reason)) from None


if __name__ == "__main__":
    fail_early()
    setup(
        ext_modules=[Extension(CUDA, find_sources(Path("csrc")), optional=True), door()],
        cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage},
    )
