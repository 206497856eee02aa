"""Builds the C++ part of mtlfast: which files, which flags, and where torch's headers are.

The tree is the build description. Every folder `csrc/<stem>/` may hold
  cpu.cpp         the torch side of an op, compiled once for the baseline of the machine's family
  cpu_kernel.cpp  the arithmetic, free of torch, compiled once per instruction set
  cuda.cu         the CUDA side of an op, compiled by nvcc
and needs no entry anywhere. Results, relative to the package folder `mtlfast/`:
  lib/libmtlfast_cpu.so   schemas and CPU ops; knows neither Python nor a torch version
  lib/libmtlfast_cuda.so  CUDA ops, where nvcc is found (MTLFAST_CUDA=auto|on|off)
  _C.<abi>.so             the thin pybind11 module

Used by setup.py; run as a program it builds and runs the C++ tests under the sanitizers, builds in
place without setuptools, or builds the CUDA sources as plain C++ for tests without a GPU:
  python csrc/native_build.py sanitize
  python csrc/native_build.py inplace
  python csrc/native_build.py emulate
It never imports torch, so that it works inside pip's build isolation.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CSRC = Path(__file__).resolve().parent
ROOT = CSRC.parent

TORCH_MINIMUM = (2, 11)
TORCH_TARGET_VERSION = "0x020b000000000000"  # the oldest torch whose stable ABI is used: 2.11
CORE_LIBRARY = "lib/libmtlfast_cpu.so"
CUDA_LIBRARY = "lib/libmtlfast_cuda.so"
CUDA_REPORT = "cuda_resources.txt"
MODULE = "_C" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")

# Contraction of a*b+c is allowed (it is how the kernels are meant to run); nothing that would let
# the compiler assume away NaN or infinity is.
COMMON_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
TORCH_FLAGS = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
# gcc 12 warns of uninitialized variables inside its own AVX-512 headers, wherever they are inlined.
AVX512 += ["-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
X86_ISAS: dict[str, list[str]] = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
}


# Machine code for compute capabilities 8.0, 9.0 and 10.0, and PTX for what comes after.
CUDA_ARCHITECTURES = ("80", "90", "100")
CUDA_FLAGS = [
    "-std=c++20",
    "-O3",
    "--threads=2",
    "-DUSE_CUDA",
    "-Werror=all-warnings",
    # A kernel that spills, or needs local memory, is an error.
    "-Xptxas=-v,-warn-spills,-warn-lmem-usage,-Werror",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden,-Wall",
]


class BuildError(SystemExit):
    """Stops the build with a message for the user instead of a traceback."""

    def __init__(self, message: str) -> None:
        bar = "-" * 88
        super().__init__(f"\n{bar}\nmtlfast: {message}\n{bar}")


# ---------------------------------------------------------------------------------- torch


@dataclass(frozen=True)
class Torch:
    """An installed torch, looked at from outside."""

    root: Path
    version: str

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


def _site_directories() -> Iterator[Path]:
    """Folders where the installing environment may keep torch, the likeliest first."""
    if override := os.environ.get("MTLFAST_TORCH_DIR"):
        yield Path(override).expanduser().resolve().parent
        return
    spec = importlib.util.find_spec("torch")  # looks, does not import
    if spec is not None and spec.submodule_search_locations:
        yield from (Path(p).parent for p in spec.submodule_search_locations)
    # pip's build isolation hides site-packages from sys.path, not from sysconfig.
    for scheme in ("platlib", "purelib"):
        yield Path(sysconfig.get_path(scheme))
    if site.ENABLE_USER_SITE or site.ENABLE_USER_SITE is None:
        yield Path(site.getusersitepackages())
    # A virtual environment made with --system-site-packages sees its parent's packages too.
    config = Path(sys.prefix) / "pyvenv.cfg"
    if config.is_file() and re.search(
        r"include-system-site-packages\s*=\s*true", config.read_text(), re.IGNORECASE
    ):
        base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
        yield Path(sysconfig.get_path("platlib", vars=base))


def find_torch() -> Torch:
    """The torch to build against; stops the build with the command to run where there is none."""
    seen: list[str] = []
    for directory in _site_directories():
        root = directory / "torch"
        if str(root) in seen:
            continue
        seen.append(str(root))
        if not (root / "include/torch/csrc/stable/library.h").is_file():
            continue
        match = re.search(r"__version__ = '([^']+)'", (root / "version.py").read_text())
        version = match.group(1) if match else "unknown"
        numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
        if numbers < TORCH_MINIMUM:
            raise BuildError(
                f"torch {version} in {directory} is too old; the ops need torch >= 2.11.\n"
                '  Run this first:  python -m pip install --upgrade "torch>=2.11"'
            )
        return Torch(root, version)
    looked = "\n".join(f"    {s}" for s in seen)
    raise BuildError(
        f"torch was not found; the build needs its headers. Looked for\n{looked}\n"
        '  Run this first:  python -m pip install "torch>=2.11"\n'
        "  and then repeat the command. Where torch is somewhere else, set MTLFAST_TORCH_DIR to\n"
        "  its package folder. MTLFAST_BUILD_EXTENSION=0 installs without the C++ ops (slow)."
    )


# ------------------------------------------------------------------------------- compiler


def find_compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "c++", "clang++"]:
        if shutil.which(name.split()[0]):
            return name
    raise BuildError(
        f"no C++ compiler found (looked for {wanted or 'g++, c++, clang++'}).\n"
        "  Install one (Debian and Ubuntu: apt-get install g++), or set CXX, or install without\n"
        "  the C++ ops (slow): MTLFAST_BUILD_EXTENSION=0 python -m pip install ."
    )


def _accepts(compiler: str, flags: list[str]) -> bool:
    command = [*compiler.split(), "-std=c++20", *flags, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input="", text=True, capture_output=True).returncode == 0


def _target_machine(compiler: str) -> str:
    """The processor family the compiler builds for, which need not be the one it runs on."""
    done = subprocess.run([*compiler.split(), "-dumpmachine"], text=True, capture_output=True)
    return (done.stdout.split("-")[0] or platform.machine()).strip().lower()


def isa_flags(compiler: str) -> dict[str, list[str]]:
    """The instruction sets to build for: those of this machine's family the compiler knows."""
    if not _accepts(compiler, []):
        raise BuildError(f"{compiler} does not accept -std=c++20 (needs gcc >= 11 or clang >= 13).")
    if _target_machine(compiler) not in ("x86_64", "amd64"):
        return {"portable": []}
    wanted = os.environ.get("MTLFAST_ISAS", ",".join(X86_ISAS)).split(",")
    return {
        isa: flags
        for isa, flags in X86_ISAS.items()
        if isa == "portable" or (isa in wanted and _accepts(compiler, flags))
    }


def find_nvcc() -> str | None:
    """nvcc, or None where CUDA is not to be built: MTLFAST_CUDA=off, or auto and no nvcc here."""
    mode = os.environ.get("MTLFAST_CUDA", "auto") or "auto"
    if mode not in ("auto", "on", "off"):
        raise BuildError(f"MTLFAST_CUDA: expected auto, on or off, found {mode!r}.")
    if mode == "off":
        return None
    home = os.environ.get("CUDA_HOME")
    found = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else None
    found = found or shutil.which("nvcc")
    if found is None and mode == "on":
        raise BuildError(
            "MTLFAST_CUDA=on, but nvcc was not found on PATH or in CUDA_HOME.\n"
            "  Install the CUDA toolkit (>= 12.8), or leave MTLFAST_CUDA unset."
        )
    return found


# ------------------------------------------------------------------------------ ninja file


def stems() -> list[str]:
    return sorted({p.parent.name for p in CSRC.glob("*/cpu*.cpp")})


def kernel_sources() -> list[Path]:
    return sorted(CSRC.glob("*/cpu_kernel.cpp"))


@dataclass
class Ninja:
    """A build.ninja in the making."""

    directory: Path
    compiler: str
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines += [
            "ninja_required_version = 1.8",
            "rule cxx",
            f"  command = {self.compiler} -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = C++ $out",
            "rule link",
            f"  command = {self.compiler} $in -o $out $flags",
            "  description = link $out",
            # ptxas reports on stderr what the kernels need; the log is kept beside the object.
            "rule nvcc",
            "  command = $nvcc -MMD -MF $out.d $flags -c $in -o $out > $out.log 2>&1"
            " || (cat $out.log; exit 1)",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = CUDA $out",
            "rule nvlink",
            "  command = $nvcc $in -o $out $flags",
            "  description = link $out",
        ]

    def compile(self, source: Path, name: str, flags: list[str]) -> str:
        self._edge("cxx", name, [str(source)], flags)
        return name

    def link(self, name: str, inputs: list[str], flags: list[str], *after: Path) -> str:
        """Links `inputs`; done again too when one of the files in `after` changes."""
        self._edge("link", name, inputs, flags, *after)
        return name

    def compile_cuda(self, source: Path, name: str, flags: list[str]) -> str:
        self._edge("nvcc", name, [str(source)], flags)
        return name

    def link_cuda(self, name: str, inputs: list[str], flags: list[str], *after: Path) -> str:
        self._edge("nvlink", name, inputs, flags, *after)
        return name

    def _edge(self, rule: str, out: str, inputs: list[str], flags: list[str], *after: Path) -> None:
        implicit = "".join(f" | {_quote(str(path))}" for path in after)
        self.lines.append(f"build {out}: {rule} {' '.join(_quote(i) for i in inputs)}{implicit}")
        self.lines.append("  flags = " + " ".join(_shell(f) for f in flags))

    def run(self, *targets: str) -> None:
        text = "\n".join(self.lines) + "\n"
        file = self.directory / "build.ninja"
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)
        command = [_ninja_program(), "-C", str(self.directory), *targets]
        if jobs := os.environ.get("MAX_JOBS"):
            command[1:1] = ["-j", jobs]
        if subprocess.run(command).returncode != 0:
            raise BuildError("the C++ build failed; the compiler's messages are above.")


def _quote(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _shell(flag: str) -> str:
    quoted = flag if re.fullmatch(r"[\w@%+=:,./$-]+", flag) else "'" + flag + "'"
    return quoted.replace("$", "$$")


def _ninja_program() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        if program := shutil.which("ninja"):
            return program
    raise BuildError("ninja was not found.\n  Run this first:  python -m pip install ninja")


# --------------------------------------------------------------------------------- library


def _defines(isas: dict[str, list[str]]) -> list[str]:
    return [f"-DMTLFAST_HAS_{isa.upper()}=1" for isa in isas if isa != "portable"]


def _include(torch: Torch) -> list[str]:
    return ["-I", str(CSRC), "-isystem", str(torch.include)]


def _kernel_objects(n: Ninja, isas: dict[str, list[str]], extra: list[str]) -> list[str]:
    return [
        n.compile(
            source,
            f"{source.parent.name}.{isa}.o",
            [*COMMON_FLAGS, *flags, f"-DMTLFAST_ISA={isa}", "-I", str(CSRC), *extra],
        )
        for source in kernel_sources()
        for isa, flags in isas.items()
    ]


def _library_objects(
    n: Ninja, torch: Torch, isas: dict[str, list[str]], extra: list[str]
) -> list[str]:
    """Everything in libmtlfast_cpu.so."""
    baseline = [*COMMON_FLAGS, *_defines(isas), *extra]
    objects = [
        n.compile(CSRC / f"common/{name}.cpp", f"{name}.o", [*baseline, "-I", str(CSRC)])
        for name in ("huge_pages", "isa")
    ]
    with_torch = [*baseline, *TORCH_FLAGS, *_include(torch)]
    objects.append(n.compile(CSRC / "schemas.cpp", "schemas.o", with_torch))
    for source in sorted(CSRC.glob("*/cpu.cpp")):
        objects.append(n.compile(source, f"{source.parent.name}.cpu.o", with_torch))
    return objects + _kernel_objects(n, isas, extra)


def _module_flags(isas: dict[str, list[str]]) -> list[str]:
    import pybind11

    return [
        *COMMON_FLAGS,
        *_defines(isas),
        f"-DMTLFAST_VERSION={_version()}",
        f"-DMTLFAST_TORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        "-I",
        str(CSRC),
        "-isystem",
        pybind11.get_include(),
        "-isystem",
        sysconfig.get_path("include"),
    ]


def _version() -> str:
    match = re.search(r'"([^"]+)"', (ROOT / "mtlfast/_version.py").read_text())
    assert match
    return match.group(1)


def output_names() -> list[str]:
    return [CORE_LIBRARY, *([CUDA_LIBRARY] if find_nvcc() else []), MODULE]


# ------------------------------------------------------------------------------------ CUDA


def cuda_sources() -> list[Path]:
    return sorted(CSRC.glob("*/cuda.cu"))


def _cuda_library(n: Ninja, torch: Torch, nvcc: str) -> list[str]:
    """Adds libmtlfast_cuda.so to the build; the names of its objects."""
    host = f" -ccbin={n.compiler.split()[0]}" if os.environ.get("CXX") else ""
    n.lines.insert(0, f"nvcc = {nvcc}{host}")
    flags = [*CUDA_FLAGS, *_code_for(nvcc), *TORCH_FLAGS]
    flags += ["-I", str(CSRC), "-isystem", str(torch.include)]
    objects = [n.compile_cuda(s, f"{s.parent.name}.cuda.o", flags) for s in cuda_sources()]
    # A CPU build of torch has no libtorch_cuda.so to link against, but the one of a machine with a
    # GPU has; all of it that is needed is the current stream.
    stub = n.link(
        "stub/libtorch_cuda.so",
        [n.compile(CSRC / "common/torch_cuda_stub.cpp", "torch_cuda_stub.o", ["-fPIC"])],
        ["-shared", "-Wl,-soname,libtorch_cuda.so"],
    )
    library, exports = Path(CUDA_LIBRARY).name, CSRC / "exports.map"
    n.link_cuda(
        library,
        [*objects, stub],
        [
            "-shared",
            "-cudart=static",  # no libcudart of one version has to be there
            f"-Xlinker=-soname={library},--version-script={exports},-z,defs",
            f"-L{torch.lib}",
            f"-Xlinker=-rpath-link={torch.lib}",
            "-ltorch_cpu",
            "-ldl",
            "-lrt",
            "-lpthread",
        ],
        exports,
    )
    return objects


def _code_for(nvcc: str) -> list[str]:
    """Flags for those architectures that this nvcc knows (10.0 came with CUDA 12.8)."""
    done = subprocess.run([nvcc, "--list-gpu-arch"], text=True, capture_output=True)
    known = [a for a in CUDA_ARCHITECTURES if f"compute_{a}" in done.stdout.split()]
    if done.returncode != 0 or not known:
        raise BuildError(
            f"{nvcc} is too old for CUDA C++20 (needs CUDA >= 12.8 for all GPUs, 12.0 at least).\n"
            "  Install a newer toolkit, or build without CUDA ops: MTLFAST_CUDA=off"
        )
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in known]
    return [*code, f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}"]


def _write_cuda_report(directory: Path, objects: list[str]) -> None:
    """What ptxas said of every kernel: registers, spills, local and shared memory."""
    log = "".join((directory / f"{name}.log").read_text() for name in objects)
    (directory / CUDA_REPORT).write_text(log)


def emulate() -> Path:
    """Builds the CUDA sources as plain C++ that runs on CPU tensors (csrc/common/cuda.h).

    With MTLFAST_EMULATE_SANITIZED=1 under AddressSanitizer and UndefinedBehaviorSanitizer.
    """
    torch, compiler = find_torch(), find_compiler()
    sanitized = os.environ.get("MTLFAST_EMULATE_SANITIZED", "0") == "1"
    directory = _build_directory("sanitized" if sanitized else "emulated", compiler, torch)
    extra = SANITIZER_FLAGS if sanitized else ["-O1"]
    flags = [f for f in COMMON_FLAGS if f != "-O3"] + [*extra, *TORCH_FLAGS, *_include(torch)]
    flags += ["-DMTLFAST_EMULATE_CUDA", "-DMTLFAST_LIBRARY=mtlfast_emulated"]
    with _locked(directory):
        n = Ninja(directory, compiler)
        objects = [n.compile(CSRC / "schemas.cpp", "schemas.o", flags)]
        for source in cuda_sources():
            objects.append(n.compile(source, f"{source.parent.name}.o", ["-x", "c++", *flags]))
        library = n.link(
            "libmtlfast_emulated.so",
            objects,
            ["-shared", *(SANITIZER_FLAGS if sanitized else []), f"-L{torch.lib}", "-ltorch_cpu"],
        )
        n.run()
    return directory / library


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One build at a time in one folder; a second one waits and then finds everything done."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build_directory(kind: str, compiler: str, torch: Torch | None = None) -> Path:
    # Another torch, compiler or Python gets another folder, so that switching between two
    # environments does not compile everything anew each time.
    key = f"{compiler}|{torch.root if torch else ''}|{sysconfig.get_config_var('EXT_SUFFIX')}"
    tag = hashlib.sha256(key.encode()).hexdigest()[:8]
    return ROOT / "build" / f"{kind}-{sysconfig.get_platform()}-{tag}"


def build_into(package: Path) -> None:
    """Compiles what changed and puts the libraries into `package` (a folder named mtlfast)."""
    torch = find_torch()
    compiler = find_compiler()
    isas = isa_flags(compiler)
    print(f"mtlfast: torch {torch.version} in {torch.root}")
    nvcc = find_nvcc()
    print(f"mtlfast: {compiler} for {', '.join(isas)}; stems: {', '.join(stems()) or 'none yet'}")
    print(f"mtlfast: CUDA with {nvcc}" if nvcc else "mtlfast: no CUDA ops (no nvcc, or not wanted)")

    directory = _build_directory("native", compiler, torch)
    with _locked(directory):
        n = Ninja(directory, compiler)
        library = Path(CORE_LIBRARY).name
        exports = CSRC / "exports.map"
        n.link(
            library,
            _library_objects(n, torch, isas, []),
            [
                "-shared",
                f"-Wl,-soname,{library}",
                f"-Wl,--version-script={exports}",
                "-Wl,--as-needed",
                "-Wl,-z,defs",
                # Before torch, whose libraries export copies of some C++ runtime functions: those
                # are no part of its stable ABI.
                "-lstdc++",
                f"-L{torch.lib}",
                f"-Wl,-rpath-link,{torch.lib}",
                "-ltorch_cpu",
            ],
            exports,
        )
        n.compile(CSRC / "bindings.cpp", "bindings.o", _module_flags(isas))
        # The Python symbols come from the interpreter, so undefined ones are expected here.
        n.link(
            MODULE,
            ["bindings.o", library],
            ["-shared", "-Wl,-rpath,$ORIGIN/lib", f"-Wl,-rpath-link,{torch.lib}"],
        )
        cuda_objects = _cuda_library(n, torch, nvcc) if nvcc else []
        n.run()
        if nvcc:
            _write_cuda_report(directory, cuda_objects)
        else:
            (package / CUDA_LIBRARY).unlink(missing_ok=True)  # an older build may have left one
        for name in output_names():
            _install(directory / Path(name).name, package / name)


def _install(source: Path, target: Path) -> None:
    """Replaces `target` in one step: a process that has the old library mapped keeps it whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    os.close(handle)
    shutil.copyfile(source, temporary)
    os.chmod(temporary, 0o755)
    os.replace(temporary, target)


# ------------------------------------------------------------------------------ sanitizers

# -O1 keeps stack traces readable and the run short; a NaN or an infinity is no error to UBSan.
SANITIZER_FLAGS = [
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


def sanitize(pattern: str = "") -> None:
    """Builds the C++ tests with AddressSanitizer and UBSan and runs them on every instruction set.

    Two programs: the torch-free kernels alone, and the whole library inside a plain C++ process
    with libtorch. `pattern` runs only the tests whose name contains it.
    """
    torch = find_torch()
    compiler = find_compiler()
    isas = isa_flags(compiler)
    extra = [*SANITIZER_FLAGS, "-Wno-unused-function"]
    directory = _build_directory("sanitize", compiler, torch)
    programs = ["kernel_tests"]
    with _locked(directory):
        n = Ninja(directory, compiler)
        flags = [*COMMON_FLAGS, *_defines(isas), *extra, "-I", str(CSRC)]
        runner = n.compile(CSRC / "tests/main.cpp", "main.o", flags)
        library = _library_objects(n, torch, isas, extra)
        # What is left without torch: what the ops share, and the kernels.
        common = ("huge_pages.o", "isa.o")
        torch_free = [o for o in library if o in common or o.rsplit(".", 2)[-2] in isas]
        tests = [n.compile(p, f"{p.stem}.o", flags) for p in sorted(CSRC.glob("tests/test_*.cpp"))]
        n.link("kernel_tests", [runner, *tests, *torch_free], SANITIZER_FLAGS)
        if sources := sorted(CSRC.glob("tests/torch/test_*.cpp")):
            with_torch = [*flags, *TORCH_FLAGS, *_include(torch)]
            tests = [n.compile(p, f"torch.{p.stem}.o", with_torch) for p in sources]
            n.link(
                "op_tests",
                [runner, *tests, *library],
                [
                    *SANITIZER_FLAGS,
                    f"-L{torch.lib}",
                    f"-Wl,-rpath,{torch.lib}",
                    "-ltorch_cpu",
                    "-lc10",
                ],
            )
            programs.append("op_tests")
        n.run()
    matched = [_run_sanitized(directory / program, list(isas), pattern) for program in programs]
    if not any(matched):
        raise BuildError(f"No C++ test has {pattern!r} in its name.")


_NOTHING_MATCHED = 5  # exit status of csrc/tests/main.cpp


def _run_sanitized(program: Path, isas: list[str], pattern: str) -> bool:
    """Whether any test of the program matched; BuildError where one failed."""
    print(f"{program.name}, with AddressSanitizer and UndefinedBehaviorSanitizer:", flush=True)
    # Leaks are looked for where only our code runs; libtorch keeps what its static objects own.
    leaks = "detect_leaks=" + ("0" if program.name == "op_tests" else "1")
    for isa in _runnable(isas):
        environment = {
            **os.environ,
            "MTLFAST_CPU_CAPABILITY": isa,
            # gcc 11 to 13 misalign 64-byte vectors on the fake stack of that check.
            "ASAN_OPTIONS": f"strict_string_checks=1:detect_stack_use_after_return=0:{leaks}",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        command = [str(program), *([pattern] if pattern else [])]
        status = subprocess.run(command, env=environment).returncode
        if status == _NOTHING_MATCHED:
            return False
        if status != 0:
            raise BuildError(f"{program.name} failed on {isa}; the report is above.")
    return True


def _run_emulated_sanitized(compiler: str) -> None:
    """The tests of the emulated CUDA kernels: an access out of bounds of a tensor ends them."""
    preload = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [*compiler.split(), f"-print-file-name={name}"]
        found = subprocess.run(command, text=True, capture_output=True).stdout.strip()
        preload += [found] if Path(found).is_absolute() else []
    if len(preload) < 2 or importlib.util.find_spec("pytest") is None:
        print("emulated CUDA kernels: skipped, they need gcc's libasan.so and pytest")
        return
    print("emulated CUDA kernels, with both sanitizers:", flush=True)
    environment = {
        **os.environ,
        "MTLFAST_EMULATE_SANITIZED": "1",
        "LD_PRELOAD": ":".join(preload),
        # Python and libtorch keep memory until they end; kernels run on stacks of their own.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    # A row 2**31 elements away needs memory that a sanitizer does not have.
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
    command += sorted(
        str(file) for file in (ROOT / "tests/kernels").glob("test_cuda_emulation*.py")
    )
    command += ["-k", "not 64_bits"]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode != 0:
        raise BuildError("the emulated CUDA kernels failed; the report is above.")


def _runnable(isas: list[str]) -> list[str]:
    """Those of `isas` that this CPU has."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.is_file() else set()
    needs = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512vl", "avx512bw"}}
    needs["avx512_bf16"] = needs["avx512"] | {"avx512_bf16"}
    return [isa for isa in isas if needs.get(isa, set()) <= words]


if __name__ == "__main__":
    if sys.argv[1:2] == ["sanitize"]:
        sanitize(*sys.argv[2:3])
    elif sys.argv[1:2] == ["inplace"]:
        build_into(ROOT / "mtlfast")
    elif sys.argv[1:2] == ["emulate"]:
        print(emulate())
    else:
        raise SystemExit(__doc__)
