"""Builds the extension `undivided._C`: C++ kernels for CPUs always, CUDA kernels where an nvcc is found.

The build needs no torch. This file writes a build.ninja under build/ and drives ninja, so that a second build
compiles only what changed. A part that cannot be built is left out and the reason is written down, in
`undivided/_build_info.json` and in the extension itself, for `undivided info` to show; it never fails the install.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / f"undivided-{sysconfig.get_config_var('SOABI') or sys.implementation.cache_tag}"

# The wider sets contain the narrower ones. -mprefer-vector-width: GCC would use half of a 512-bit register.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
VARIANTS = {"portable": [], "avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}

# No -ffast-math: infinities and NaN mean something here. The three -f options change no value.
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wall", "-Wextra"]
KERNEL = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
# GCC 12 warns about its own _mm512_undefined_ps
KERNEL += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
BINDING = ["-O2", "-DNDEBUG"]
# For `build_ext --sanitize=...`, which tests/sanitize.sh uses.
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
CUDA = ["-std=c++17", "-O3", "-gencode", "arch=compute_90a,code=sm_90a", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
CUDA += ["--split-compile=0"]  # the kernels of a file on all cores


class CannotBuild(Exception):
    """The text says what is missing or what failed."""


def run(command: list[str], **keywords) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, **keywords)


def find_compiler() -> list[str]:
    """The C++ compiler: CXX, else the one Python was built with, else the usual names."""
    asked = os.environ.get("CXX")
    names = [asked] if asked else [sysconfig.get_config_var("CXX") or "", "c++", "g++", "clang++"]
    for name in names:
        words = name.split()
        if words and shutil.which(words[0]):
            return words[:1] if not asked else words
    raise CannotBuild(
        f"no C++ compiler found (tried {', '.join(filter(None, names))}); install g++ or clang++, or set CXX"
    )


def find_ninja() -> str:
    found = shutil.which("ninja")
    if found:
        return found
    try:
        import ninja
    except ImportError as error:
        raise CannotBuild("ninja is not installed; pip install ninja") from error
    return str(Path(ninja.BIN_DIR) / "ninja")


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    return shutil.which("nvcc")


def compiles(compiler: list[str], flags: list[str], text: str = "int main() { return 0; }\n") -> str | None:
    """None when the compiler accepts these flags and this text, else its message."""
    source = BUILD / "probe.cpp"
    source.write_text(text)
    result = run([*compiler, *flags, "-c", str(source), "-o", str(BUILD / "probe.o")])
    return None if result.returncode == 0 else result.stderr.strip()[-2000:]


def find_variants(compiler: list[str]) -> tuple[list[str], dict[str, str]]:
    """The variants to compile, and for each one left out the reason."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    built, skipped = [], {}
    for name, flags in VARIANTS.items():
        if name != "portable" and not x86:
            skipped[name] = f"for x86-64 only, this machine is {platform.machine()}"
        elif name != "portable" and (message := compiles(compiler, flags)):
            skipped[name] = f"the compiler does not accept {' '.join(flags)}: {message.splitlines()[0]}"
        else:
            built.append(name)
    return built, skipped


def find_cuda(nvcc: str | None) -> tuple[str | None, str, list[str]]:
    """(nvcc or None, its version or the reason for None, link flags)."""
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    if not sources:
        return None, "there are no CUDA sources in this version", []
    if nvcc is None:
        return None, "no nvcc found on PATH, in CUDA_HOME or in /usr/local/cuda; install the CUDA toolkit (13.0)", []
    version = run([nvcc, "--version"])
    if version.returncode != 0:
        return None, f"{nvcc} does not run: {version.stderr.strip()[-500:]}", []
    # nvcc itself says where its libraries are, wherever a wrapper script or a package has put them.
    dryrun = run([nvcc, "-dryrun", "-o", "out", str(sources[0])]).stderr
    folders = [word for line in dryrun.splitlines() if "LIBRARIES=" in line for word in line.replace('"', " ").split()]
    folders = [word for word in folders if word.startswith("-L")]
    links = [*folders, "-lcudart_static", "-lpthread", "-ldl", "-lrt", "-Wl,--exclude-libs,ALL"]
    return nvcc, version.stdout.strip().splitlines()[-1], links


def quoted(words: list[str]) -> str:
    return " ".join(f"'{word}'" if any(c in word for c in ' ()"\\') else word for word in words).replace("$", "$$")


def path_text(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaFile:
    """A build.ninja under construction: the rules, one edge for each object, then the link."""

    def __init__(self, compiler: list[str], nvcc: str | None, links: list[str]) -> None:
        shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        compile_ = f"{quoted(compiler)} $flags -MMD -MF $out.d -c $in -o $out"
        self.lines = [
            "ninja_required_version = 1.5",
            *self.rule("cxx", compile_, "CXX $out"),
            *self.rule("nvcc", f"{quoted([nvcc or 'nvcc'])} $flags -MD -MF $out.d -c $in -o $out", "NVCC $out"),
            "rule link",
            f"  command = {quoted([*compiler, *shared])} $in {quoted(links)} -o $out",
            "  description = LINK $out",
        ]
        self.objects: list[str] = []

    @staticmethod
    def rule(name: str, command: str, description: str) -> list[str]:
        return [
            f"rule {name}",
            f"  command = {command}",
            f"  description = {description}",
            "  depfile = $out.d",
            "  deps = gcc",
        ]

    def add(self, rule: str, source: Path, folder: str, flags: list[str]) -> None:
        target = f"{folder}/{source.stem}.o"
        self.lines += [f"build {target}: {rule} {path_text(source)}", f"  flags = {quoted(flags)}"]
        self.objects.append(target)

    def write(self, output: str) -> None:
        text = "\n".join([*self.lines, f"build {output}: link {' '.join(self.objects)}", f"default {output}", ""])
        (BUILD / "build.ninja").write_text(text)


def write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def ninja_edges(file: NinjaFile, info: dict, cuda: bool, sanitizer: list[str]) -> None:
    import pybind11

    common = [*COMMON, *sanitizer, "-g"] if sanitizer else COMMON
    kernel = [*KERNEL, "-O1"] if sanitizer else KERNEL

    has = [f"-DUNDIVIDED_HAS_{name.upper()}=1" for name in info["variants"] if name != "portable"]
    has.append(f"-DUNDIVIDED_HAS_CUDA={int(cuda)}")
    # Build isolation puts pybind11 at another path each time: through a link the commands, and so the objects,
    # stay the same; the version in the flags rebuilds them when it is really another one.
    link = BUILD / "pybind11_include"
    link.unlink(missing_ok=True)
    link.symlink_to(pybind11.get_include())
    python = [f"-DUNDIVIDED_PYBIND11={pybind11.__version__}", "-isystem", "pybind11_include"]
    python += ["-isystem", sysconfig.get_paths()["include"], "-I.", f"-I{CSRC}"]
    for source in [CSRC / "bindings.cpp", *sorted((CSRC / "bindings").glob("*.cpp"))]:
        file.add("cxx", source, "bindings", [*common, *BINDING, *has, *python])
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        if "UNDIVIDED_VARIANT" in source.read_text():  # a kernel, as against threads.cpp and the like
            for name in info["variants"]:
                flags = [*common, *kernel, *VARIANTS[name], f"-DUNDIVIDED_VARIANT={name}", *has, f"-I{CSRC}"]
                file.add("cxx", source, name, flags)
        else:
            file.add("cxx", source, "cpu", [*common, *kernel, *has, f"-I{CSRC}"])
    for source in sorted((CSRC / "cuda").glob("*.cu")) if cuda else []:
        file.add("nvcc", source, "cuda", [*CUDA, f"-I{CSRC}"])


def build_extension(info: dict, sanitizer: list[str]) -> Path:
    """Builds undivided._C and completes `info`; raises CannotBuild. `sanitizer`: further flags, or none."""
    if not CSRC.is_dir():
        raise CannotBuild(f"the C++ sources are missing: {CSRC} is not there")
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler, ninja = find_compiler(), find_ninja()
    if message := compiles(compiler, ["-std=c++17"]):
        raise CannotBuild(f"{compiler[0]} does not compile C++17: {message}")
    info["compiler"] = run([*compiler, "--version"]).stdout.splitlines()[0]
    info["variants"], info["variants_skipped"] = find_variants(compiler)
    nvcc, version, links = find_cuda(find_nvcc())
    output = "_C" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
    for use_cuda in [True, False] if nvcc else [False]:
        info["cuda"] = version if use_cuda else None
        info["cuda_skipped"] = None if use_cuda else info.get("cuda_skipped") or version
        literal = json.dumps(info, sort_keys=True)
        write_if_changed(BUILD / "build_info.h", f'#pragma once\n#define UNDIVIDED_BUILD_INFO R"json({literal})json"\n')
        file = NinjaFile(compiler, nvcc, ["-pthread", *sanitizer, *(links if use_cuda else [])])
        ninja_edges(file, info, use_cuda, sanitizer)
        file.write(output)
        result = subprocess.run([ninja, "-C", str(BUILD)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout, flush=True)
        if result.returncode == 0:
            return BUILD / output
        if use_cuda:
            info["cuda_skipped"] = "the CUDA sources do not compile here: " + result.stdout.strip()[-2000:]
    raise CannotBuild("the C++ sources do not compile here: " + result.stdout.strip()[-4000:])


class BuildExtension(build_ext):
    """Puts `_C` (if it can be built) and `_build_info.json` (always) into the package."""

    user_options = [*build_ext.user_options, ("sanitize=", None, f"build with a sanitizer: {', '.join(SANITIZERS)}")]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.sanitize: str | None = None

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.sanitize is not None and self.sanitize not in SANITIZERS:
            raise SystemExit(f"--sanitize={self.sanitize} is unknown; allowed: {', '.join(SANITIZERS)}")

    def run(self) -> None:
        info: dict = {"platform": sysconfig.get_platform(), "python": platform.python_version(), "error": None}
        built = None
        try:
            built = build_extension(info, SANITIZERS.get(self.sanitize or "", []))
        except (CannotBuild, OSError, ImportError) as error:
            info["error"] = f"{type(error).__name__}: {error}" if not isinstance(error, CannotBuild) else str(error)
            print(f"undivided: no compiled extension in this install: {info['error']}", file=sys.stderr, flush=True)
        self.extensions = []  # nothing is left for setuptools to build
        folders = [Path(self.build_lib) / "undivided"]
        if self.inplace:
            folders.append(ROOT / "python" / "undivided")
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("_C.*"):
                if old.suffix in (".so", ".pyd"):
                    old.unlink()
            if built is not None:
                shutil.copy2(built, folder / built.name)
            (folder / "_build_info.json").write_text(json.dumps(info, indent=2, sort_keys=True) + "\n")


class BuildPython(build_py):
    """Starts from an empty folder: a file that left the sources must not live on in a wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "undivided", ignore_errors=True)
        super().run()


setup(
    ext_modules=[Extension("undivided._C", sources=[])],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
)
