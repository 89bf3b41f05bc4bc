"""Builds `fastrnn._C`, the CUDA extension, where there is nvcc; the rest of the package is described in pyproject.toml.

Without nvcc, or where it fails, the package is installed without the extension, and the reason is kept beside it for
`python -m fastrnn` to show (`pip install -v .` shows it too). These environment variables are read:

FASTRNN_CUDA        0: never build the extension; 1: fail where it cannot be built
FASTRNN_CUDA_ARCHS  the architectures to build for, as "80;90a" or "8.0;9.0a"; else all of ARCHITECTURES that nvcc knows
MAX_JOBS            how many processes and threads compile at once; else one for each processor
CUDA_HOME           where the toolkit is; else nvcc is looked for in PATH and in /usr/local/cuda
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
"""One for each generation; a chip runs the code of its own generation with the same or a lower minor number, while
90a, which has the instructions that only Hopper has, runs on 9.0 alone."""

REASON_FILE = "_C.missing.txt"
"""Beside the package's modules: why there is no extension. `fastrnn.extension` reads it."""

SHOWN_LINES = 8
"""How much of nvcc's complaint the reason quotes: all of a short one, the first errors of a long one."""


class NotBuilt(Exception):
    """Why the extension cannot be built here, as a clause."""


def wanted() -> bool | None:
    """FASTRNN_CUDA: True if it requires the extension, False if it forbids it, None if it leaves it open."""
    value = os.environ.get("FASTRNN_CUDA", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"FASTRNN_CUDA must be 0, 1 or unset, got {value!r}")
    return None if value == "" else value == "1"


def jobs() -> int:
    """How many threads may compile at once."""
    value = os.environ.get("MAX_JOBS", "")
    if not value:
        return len(os.sched_getaffinity(0))
    if not value.isdecimal() or int(value) < 1:
        raise SystemExit(f"MAX_JOBS must be a number from 1 on, got {value!r}")
    return int(value)


def find_nvcc() -> str:
    """The path of nvcc. Raises NotBuilt where the extension cannot be built for want of something."""
    if not sys.platform.startswith("linux"):
        raise NotBuilt(f"it is built on Linux only, this is {sys.platform}")
    home = os.environ.get("CUDA_HOME")
    if home:
        nvcc = shutil.which("nvcc", path=str(Path(home, "bin")))
        looked = f"CUDA_HOME ({home})"
    else:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        looked = "PATH or /usr/local/cuda"
    if nvcc is None:
        raise NotBuilt(f"no nvcc (CUDA's compiler) in {looked}")
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        raise NotBuilt(f"Python's headers are not installed (no Python.h in {include})")
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


class BuildExtension(build_ext):
    """Compiles every source of an extension by nvcc, or leaves the reason why not where the extension would be."""

    def run(self) -> None:
        """Builds the extension, and in an editable install moves the outcome into the checkout."""
        super().run()
        if self.inplace:
            build_py = self.get_finalized_command("build_py")
            for extension in self.extensions:
                here = Path(self.get_ext_fullpath(extension.name))
                built = Path(self.build_lib, self.get_ext_filename(extension.name))
                for source, target in ((built, here), (built.with_name(REASON_FILE), here.with_name(REASON_FILE))):
                    target.unlink(missing_ok=True)
                    if source.exists():
                        build_py.copy_file(str(source), str(target))

    def build_extension(self, extension: Extension) -> None:
        """Compiles and links `extension`. Exits where it cannot and FASTRNN_CUDA requires it."""
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        reason_file = target.with_name(REASON_FILE)
        target.unlink(missing_ok=True)
        reason_file.unlink(missing_ok=True)
        try:
            if wanted() is False:
                raise NotBuilt("FASTRNN_CUDA=0 forbade it")
            compile_and_link(extension, find_nvcc(), Path(self.build_temp), target)
        except NotBuilt as reason:
            if wanted():
                raise SystemExit(f"FASTRNN_CUDA=1 requires the CUDA extension: {reason}") from None
            reason_file.write_text(f"{reason}\n")
            print(f"fastrnn is built without its CUDA extension: {reason}", flush=True)


def compile_and_link(extension: Extension, nvcc: str, temporary: Path, target: Path) -> None:
    """Makes the shared library `target`, with objects in the folder `temporary`. Raises NotBuilt."""
    try:
        import pybind11
    except ImportError:
        raise NotBuilt("pybind11 is not installed, which a build without isolation needs") from None
    temporary.mkdir(parents=True, exist_ok=True)
    chosen = architectures(nvcc)
    threads = max(1, jobs() // len(extension.sources))
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", f"--threads={threads}"]
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in chosen]
    flags += [f"-I{folder}" for folder in (sysconfig.get_paths()["include"], pybind11.get_include())]
    flags += [f"-DFASTRNN_ARCHITECTURES={':'.join(chosen)}"]  # nvcc takes what follows a comma for another macro

    def compile_one(source: str) -> str:
        compiled = str(temporary / f"{Path(source).name}.o")
        run([nvcc, *targets, *flags, "-c", source, "-o", compiled], f"nvcc on {source}")
        return compiled

    with ThreadPoolExecutor(jobs()) as pool:
        objects = list(pool.map(compile_one, extension.sources))
    # The static runtime needs no libcudart.so and stays apart from the one that torch loads.
    link = [nvcc, *targets, "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL"]
    run([*link, *objects, "-o", str(target)], "linking by nvcc")
    print(f"fastrnn is built with its CUDA extension for {', '.join(chosen)}", flush=True)


def fail_early() -> None:
    """Exits before anything is downloaded or compiled if FASTRNN_CUDA=1 cannot be fulfilled."""
    if wanted():
        try:
            find_nvcc()
        except NotBuilt as reason:
            raise SystemExit(f"FASTRNN_CUDA=1 requires the CUDA extension: {reason}") from None


if __name__ == "__main__":
    fail_early()
    sources = sorted(str(path) for pattern in ("*.cpp", "*.cu") for path in Path("csrc").glob(pattern))
    setup(
        # Optional: a build without the extension is complete.
        ext_modules=[Extension("fastrnn._C", sources, optional=True)],
        cmdclass={"build_ext": BuildExtension},
    )
