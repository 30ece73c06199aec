"""Text from a finished run of a language model, from the last head or an earlier exit."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_local.configfile import configfile
from pipeline_local.data.tokens.entry import tokenizer_of
from pipeline_local.errors import UserError
from pipeline_local.finished.exits.network import check
from pipeline_local.finished.finished import CPU, load, relocated
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.tasks import Logits, NextToken
from pipeline_local.learning.wire_format import WireFormat


class Generator:
    """Continues texts by the newest complete checkpoint of a run of a language model.

    Every token runs through the modules with the whole text so far, the last T tokens of it: there
    is no cache of keys and values. For much text, export the run and use a library for inference.

    Args:
        run: its folder.
        device: where to compute.
        exit: the number of the module, from 1, whose head speaks; None: the last. The modules
            behind it are not run.
        overrides: `key=value`: where its tokenizer is now.

    Raises:
        UserError: no run, no complete checkpoint, no language model, no such module, or its
            tokenizer is not where it was.

    Example:
        >>> short = ["data.limit=64", "train.tokens=9999", "run.dir=runs/text"]
        >>> config = load_config("configs/lm-tiny.yaml", short)
        >>> summary = train(config)
        >>> text = "".join(Generator(Path("runs/text")).text("It is a truth", tokens=4))
    """

    def __init__(
        self,
        run: str | Path,
        device: torch.device = CPU,
        exit: int | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        folder = configfile.path("run", run)
        # each token makes another length, and each length would be compiled anew
        blueprint, modules, _ = load(folder, device, compiled=False)
        blueprint = relocated(blueprint, folder, overrides)
        if not isinstance(blueprint.task, NextToken):
            raise UserError(
                f"run: {run} is no run of a language model, but of task.name="
                f"{blueprint.config.task.name}; Predictor predicts by it"
            )
        count = check("--exit", exit, len(modules))
        self.tokenizer = tokenizer_of(blueprint.config.data, blueprint.info)
        self._modules: list[LocalModule] = modules[:count]
        self._wire_format: WireFormat = blueprint.wire_format
        (self._length,) = blueprint.info.sample_shape
        self._device = device

    def text(
        self, prompt: str, tokens: int = 100, temperature: float = 1.0, seed: int = 0
    ) -> Iterator[str]:
        """Yield the continuation of a prompt, piece by piece, up to the end of the document.

        Args:
            prompt: may be empty, for the beginning of a document.
            tokens: at most so many.
            temperature: of the distribution that is drawn from; 0: the most probable token.
            seed: of what is drawn.

        Raises:
            UserError: the prompt is no text.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # bytes of a command line that are no UTF-8
            raise UserError(
                f"--prompt: is no UTF-8 at character {error.start + 1}, got {prompt!r}; correct it"
            ) from None
        (encoded,) = self.tokenizer.encode([prompt])
        ids = [self.tokenizer.end_token, *map(int, encoded)]
        # a decoder may strip the space that begins a text
        said = so_far = self.tokenizer.decode(ids[1:])
        generator = torch.Generator().manual_seed(seed)
        for _ in range(tokens):
            ids.append(_drawn(self.logits(torch.tensor([ids])), temperature, generator))
            if ids[-1] == self.tokenizer.end_token:
                break
            so_far = self.tokenizer.decode(ids[1:])
            if not so_far.endswith(_UNFINISHED):
                yield so_far[len(said) :]
                said = so_far
        if rest := so_far[len(said) :]:  # a character was never finished
            yield rest

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits [B, V] of the next token after ids [B, T]; the last ones count."""
        x = ids[:, -self._length :].to(self._device)
        for module in self._modules:
            if module.index > 0:
                x = self._wire_format.widen(self._wire_format.round_activations(x))
            x = module.activations(x)
        outputs = self._modules[-1].answers(x)
        if isinstance(outputs, Logits):
            last = outputs.hidden[:, -1]
            return functional.linear(last, outputs.weight.to(last.dtype)).float().cpu()
        logits: Tensor = outputs[:, -1]
        return logits.float().cpu()


_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder shows for the first bytes of a character, until the others come."""


def _drawn(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits[0].argmax())
    # the largest is 0, whatever it is divided by
    probabilities = ((logits[0] - logits[0].max()).double() / temperature).softmax(0)
    return int(torch.multinomial(probabilities, 1, generator=generator))
