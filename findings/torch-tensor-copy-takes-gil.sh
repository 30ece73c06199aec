#!/usr/bin/env bash
# torch 2.14.1: copying an `at::Tensor` in C++ can wait for Python's global lock. A tensor's Python object lives as long as
# its C++ object has other owners; so the second owner, and the last but one to leave, count a reference of Python's.
# A thread that copies or drops a tensor under a lock of its own deadlocks with one that has Python's lock and wants that
# one: a device's backend, an allocator, a queue of pending copies. Views made in C++ have no Python object, and never wait.
# Guess before running: a copy is an atomic increment; both threads take microseconds, whoever has Python's lock.
# Seen 2026-11-28, Python 3.11, CPU: the copy waits for the half second that the main thread keeps Python's lock.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 ninja==1.13.0 setuptools==80.9.0

cd "$folder"
PATH="$folder/venv/bin:$PATH" TORCH_EXTENSIONS_DIR="$folder/built" python - <<'PYTHON'
import torch
from torch.utils.cpp_extension import load_inline

SOURCE = """
#include <torch/csrc/autograd/python_variable.h>
#include <chrono>
#include <thread>

using Clock = std::chrono::steady_clock;

double seconds_of_a_copy(py::handle of_python, bool view) {
  const at::Tensor& tensor = THPVariable_Unpack(of_python.ptr());
  const at::Tensor other = view ? tensor.detach() : at::Tensor();
  const at::Tensor& source = view ? other : tensor;
  double seconds = 0;
  std::thread copies([&] {
    const auto start = Clock::now();
    const at::Tensor copy = source;
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // with Python's lock
  py::gil_scoped_release without;
  copies.join();
  return seconds;
}
"""
built = load_inline("copies", SOURCE, functions="seconds_of_a_copy")
x = torch.ones(3)
of_python, of_view = built.seconds_of_a_copy(x, False), built.seconds_of_a_copy(x, True)
print(f"a copy of Python's tensor: {of_python:.1f} s; of a view made in C++: {of_view:.1f} s")
assert of_python > 0.4 > 0.1 > of_view, "the behaviour has changed"
PYTHON
