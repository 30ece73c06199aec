"""What is compiled, and what the user is told where torch.compile does not work."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor import exc

from pipeline_local.cli import main
from pipeline_local.errors import UserError
from pipeline_local.learning.compiler import (
    check_cache_folder,
    compile_part,
    compiler_failure,
    try_compiler,
)
from pipeline_local.learning.heads.head import Head

OUTPUT = "\nheader.i\n<built-in>: fatal error: writing header.i: No space left on device\nended"


def test_the_compilers_own_words_are_told():
    told = str(compiler_failure(exc.CppCompileError(["g++"], OUTPUT)))
    assert "(<built-in>: fatal error: writing header.i: No space left on device)" in told
    assert "\n" not in told


def test_triton_without_a_compiler_is_told():
    missing = "Failed to find C compiler. Please specify via CC environment variable."
    told = str(compiler_failure(exc.InductorError(RuntimeError(missing), {})))
    assert "Failed to find C compiler" in told
    assert "compile=false does without" in told


@pytest.mark.parametrize("error", [RuntimeError("CompileError"), exc.CppWrapperCodegenError("x")])
def test_other_errors_keep_their_traceback(error):
    assert compiler_failure(error) is None


def test_a_cache_folder_that_cannot_be_made(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "error: TORCHINDUCTOR_CACHE_DIR: [Errno 20]" in capsys.readouterr().err
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    check_cache_folder()
    assert (tmp_path / "cache").is_dir()


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    def refuse(_):
        raise exc.InvalidCxxCompiler

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.cpp_builder.cpp_compiler_search", refuse)
    torch._dynamo.reset()
    with inductor.patch(compile_threads=1):
        yield


def test_a_host_without_a_compiler(no_compiler):
    with pytest.raises(UserError, match=r"No working C\+\+ compiler found.*compile=false"):
        try_compiler(torch.device("cpu"))


def test_nothing_is_made_without_a_compiler(no_compiler, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("data: {name: digits, batch_size: 8}\nmodel: {name: mlp}")
    run = ["train", str(tmp_path / "c.yaml"), "compile=true", "train.steps=1"]
    assert main([*run, "modules.count=2", "parallel.threads=1", f"run.dir={tmp_path / 'run'}"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "torch.compile does not work here" in line
    assert not (tmp_path / "run").exists()


class Twice(nn.Module):
    """A block of the user's own."""

    def forward(self, x):
        return 2 * x


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_every_part_is_compiled():
    """Whatever its class: torch passes over modules whose forward is torch.nn's own."""
    own = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    for part in (own, nn.Linear(3, 3), nn.Dropout(0.1), Twice(), Head(own)):
        torch.compiler.reset()
        counters.clear()
        compile_part(part, backend="aot_eager")
        part(torch.randn(2, 3))
        assert counters["stats"]["unique_graphs"] == 1, type(part).__name__
