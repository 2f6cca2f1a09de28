"""What tests of Triton kernels need where no GPU is: the interpreter, and compilation ahead of time.

::

    with interpreter() as call:
        out = call(module.function_that_launches, *tensors)

    made = compile_ahead(module.kernel, pointers, known, capability=90)
    record_property("compiled", ("name of the operator", "bf16", "sm_90"))

A ``conftest.py`` that hands ``pytest_terminal_summary`` on to :func:`write_compiled` then says what
was compiled. Triton is imported where it is needed; a machine without it fails there.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any

import torch
from attrs import field, frozen

TYPES: Mapping[torch.dtype, str] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
}
"""What Triton calls the dtypes of a kernel."""

ROUNDING: Mapping[torch.dtype, float] = {
    torch.float32: 1e-5,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
    torch.float64: 1e-12,
}
"""How far a result may be off, as a share of the largest one: the interpreter truncates where a GPU rounds."""

CAPABILITIES = (80, 90)
"""Architectures that every kernel is compiled for: A100 and H100."""

_INTERPRET = "TRITON_INTERPRET"


@frozen(kw_only=True)
class Compiled:
    """A kernel as it would be loaded.

    Attributes:
        ptx: its assembly.
        cubin: its machine code, an ELF file.
        shared: bytes of shared memory that a program takes.
    """

    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    shared: int


@contextmanager
def interpreter() -> Iterator[Callable[..., Any]]:
    """Lend ``call(function, *given)``, which runs a function where Triton interprets its kernels.

    That is a process of its own: ``TRITON_INTERPRET`` is read when triton is imported, and only that
    process ever has it. Tensors are shared with it, so what it writes into them is written here.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        before = os.environ.get(_INTERPRET)
        os.environ[_INTERPRET] = "1"
        try:
            process.submit(abs, 0).result()  # starts it
        finally:
            if before is None:
                del os.environ[_INTERPRET]
            else:
                os.environ[_INTERPRET] = before
        yield lambda function, *given: process.submit(function, *given).result()


def compile_ahead(
    kernel: Any,
    pointers: Mapping[str, str],
    known: Mapping[str, object],
    capability: int,
    *,
    aligned: Collection[str] = (),
    options: Mapping[str, int] | None = None,
) -> Compiled:
    """Return a kernel compiled as a launch would compile it; no GPU is needed.

    Arguments that are neither have the type of their annotation, and without one are 32-bit integers.

    Args:
        kernel: what ``triton.jit`` returned.
        pointers: per argument that is one, the type of what it points to.
        known: arguments that are known when compiling: constants, and strides and sizes of 1.
        capability: 80 or 90.
        aligned: arguments, beside all pointers, that are multiples of 16.
        options: ``num_warps``, ``num_stages``.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        one.name: "constexpr" if one.name in known else one.annotation_type or "i32"
        for one in kernel.params
    }
    signature |= {name: f"*{kind}" for name, kind in pointers.items()}
    divisible = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in pointers or (name in aligned and name not in known)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(known), attrs=divisible)
    with TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        target = GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options=dict(options or {}))
    return Compiled(ptx=made.asm["ptx"], cubin=made.asm["cubin"], shared=made.metadata.shared)


def run_alone(program: str) -> str:
    """Run a program in a process of its own and return what it wrote to stderr.

    Args:
        program: Python; with ``sys.modules["triton"] = None`` in it, triton is as if not installed.

    Returns:
        Empty when it succeeded without a word.
    """
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return ran.stderr if ran.returncode == 0 else f"exit code {ran.returncode}\n{ran.stderr}"


def write_compiled(terminalreporter: Any, package: str, folder: str) -> None:
    """Say at the end of a test run what was compiled ahead of time, so that nobody has to count dots.

    Args:
        terminalreporter: pytest's.
        package: to name in the line.
        folder: whose tests are meant, relative to where pytest runs.
    """
    found: set[Sequence[str]] = {
        tuple(value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "compiled" and report.fspath.startswith(folder)
    }
    if not found:
        return
    kinds: dict[str, set[str]] = {}
    for kernel, dtype, _ in found:
        kinds.setdefault(kernel, set()).add(dtype)
    named = " + ".join(f"{one} ({', '.join(sorted(kinds[one]))})" for one in sorted(kinds))
    architectures = sorted({architecture for *_, architecture in found})
    terminalreporter.write_line(
        f"{package}: {len(found)} compiled ahead of time = {named} x {', '.join(architectures)}"
    )
