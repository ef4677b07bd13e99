"""Is everything here that training on a GPU compiles and loads when it runs? Needs no GPU, and no network."""

import importlib.util
import os
import pathlib
import subprocess
import sysconfig
import tempfile

# What torch.compile and Triton do: build an extension module as whoever runs, on a read-only root.
SOURCE = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, 0}, {0, 0, 0, 0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "stub", 0, -1, methods};
PyMODINIT_FUNC PyInit_stub(void) { return PyModule_Create(&module); }
"""

assert os.getuid() != 0, "this check must not run as root"
assert not os.access("/usr", os.W_OK), "the root must be read-only"
include = sysconfig.get_paths("posix_prefix")["include"]
for compiler, suffix in (("cc", "c"), ("c++", "cpp")):
    place = pathlib.Path(tempfile.mkdtemp())
    source, library = place / f"stub.{suffix}", place / "stub.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("stub", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.answer() == 42
listed = subprocess.run(["/sbin/ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
assert "libc.so.6" in listed, listed

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402

assert torch.version.cuda is not None and torch.version.cuda.startswith("12."), torch.version.cuda
assert os.access(pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/ptxas", os.X_OK)
values = torch.arange(64.0)
compiled = torch.compile(lambda x: torch.sin(x) * 2 + x)  # by C++ on a processor, by Triton on a GPU
assert torch.allclose(compiled(values), torch.sin(values) * 2 + values)
print(torch.__version__, torch.version.cuda, triton.__version__, safetensors.__version__)
