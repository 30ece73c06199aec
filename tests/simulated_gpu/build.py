"""Compile the simulated GPU and lay it out such that torch finds it: `python build.py FOLDER`.

Afterwards `PYTHONPATH=FOLDER SIMGPU_DEVICES=2 python ...` runs any program of torch on two of them.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent


def build(folder: Path, cache: Path | None = None) -> None:
    """Install the modules `simgpu` and `simccl` into a folder.

    Args:
        folder: gets them.
        cache: a folder that keeps the compiled library, as the compiler takes long.

    Raises:
        subprocess.CalledProcessError: the compiler refused; it has said why.
    """
    about = folder / "simgpu-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: simgpu\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[torch.backends]\nsimgpu = simgpu:load\n")
    for module in ("simgpu.py", "simccl.py"):
        shutil.copy(HERE / module, folder)
    command = ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", "-w", f"-I{TORCH}/include"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"{HERE}/simgpu.cpp", f"-L{TORCH}/lib", "-ltorch_cpu", "-lc10"]
    sources = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.[ch]pp")))
    key = hashlib.sha256(sources + f"{torch.__version__} {command}".encode()).hexdigest()
    library, kept = folder / "libsimgpu.so", (cache or folder) / f"{key[:16]}.so"
    if not kept.exists():
        subprocess.run([*command, "-o", library], check=True)
        shutil.copy(library, kept.with_suffix(".partial"))
        kept.with_suffix(".partial").rename(kept)
    shutil.copy(kept, library)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
