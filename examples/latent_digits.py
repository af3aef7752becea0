"""Distilling in the latent space of a generator: an autoencoder's decoder, and a class-conditional GAN.

Both are trained here on the embedded digits in about a minute, offered to ddfed as a plugin would offer them, and DM
then learns latents instead of pixels. Whoever has a larger generator (GLaD's StyleGAN, a diffusion model's decoder)
does what `Decoder` and `offered` do: a module with ``latent_shape`` and ``forward(latents, classes)``, registered under
the kind ``generator``; weights come from a file named in its settings.

    python examples/latent_digits.py --ipc 1 --steps 100
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddfed.central import load_task
from ddfed.config import Layer
from ddfed.data import RealData, TaskInfo
from ddfed.distill import distill
from ddfed.evaluate import evaluate
from ddfed.gate import PlainGate
from ddfed.registry import registry
from ddfed.seeds import Streams, isolated
from ddfed.settings import DataSettings, resolve_distill
from ddfed.store import Generator

LATENT = 12


class Decoder(Generator):
    """Two layers from a latent, and the class as a one-hot, to an 8x8 digit.

    Args:
        info: public facts about the task.
        weights: safetensors file; empty for untrained ones.
        conditional: whether the class is shown.
    """

    def __init__(self, info: TaskInfo, weights: str = "", conditional: bool = False) -> None:
        super().__init__()
        self.latent_shape, self._shape, self._classes = (LATENT,), info.shape, info.num_classes if conditional else 0
        size = int(torch.tensor(info.shape).prod())
        self.body = nn.Sequential(nn.Linear(LATENT + self._classes, 128), nn.ReLU(), nn.Linear(128, size))
        if weights:
            self.load_state_dict(load_file(weights))

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        if self._classes:
            z = torch.cat([z, F.one_hot(classes, self._classes).to(z)], 1)
        return self.body(z).view(-1, *self._shape)


def batches(data: RealData, steps: int, size: int = 128) -> Iterator[tuple[Tensor, Tensor]]:
    generator = Streams(0).torch("batches")
    for _ in range(steps):
        batch = data.batch(torch.randint(len(data), (size,), generator=generator))
        yield batch.inputs, batch.classes


def autoencoder(data: RealData, steps: int) -> Decoder:
    """A decoder trained with an encoder by squared error."""
    with isolated(0):
        decoder = Decoder(data.info)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, LATENT))
    optimizer = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], 2e-3)
    for x, classes in batches(data, steps):
        optimizer.zero_grad()
        F.mse_loss(decoder(encoder(x), classes), x).backward()
        optimizer.step()
    return decoder


def gan(data: RealData, steps: int) -> Decoder:
    """A class-conditional generator trained against a discriminator, by the hinge loss."""
    classes_in_all, noise = data.info.num_classes, Streams(0).torch("noise")
    with isolated(0):
        decoder = Decoder(data.info, conditional=True)
        judge = nn.Sequential(nn.Linear(64 + classes_in_all, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
    ours = torch.optim.Adam(decoder.parameters(), 1e-3, betas=(0.5, 0.99))
    theirs = torch.optim.Adam(judge.parameters(), 1e-3, betas=(0.5, 0.99))

    def real(x: Tensor, classes: Tensor) -> Tensor:
        return judge(torch.cat([x.flatten(1), F.one_hot(classes, classes_in_all).to(x)], 1))

    for x, classes in batches(data, steps):
        made = decoder(torch.randn(len(x), LATENT, generator=noise), classes)
        theirs.zero_grad()
        (F.relu(1 - real(x, classes)) + F.relu(1 + real(made.detach(), classes))).mean().backward()
        theirs.step()
        ours.zero_grad()
        (-real(made, classes)).mean().backward()
        ours.step()
    return decoder


def offered(name: str, decoder: Decoder, folder: Path) -> dict[str, object]:
    """Store the weights, offer the generator by its name, and give the settings with which it is made again."""
    path = folder / f"{name}.safetensors"
    save_file(decoder.state_dict(), path)
    registry().add("generator", name, f"{__name__}:Decoder", summary="from an example")
    return {"generator": name, "settings": {"weights": str(path), "conditional": name == "gan"}}


def distilled(name: str, options: dict[str, object], ipc: int, steps: int, epochs: int) -> None:
    """Distil with DM, in pixels or in the latents of a generator, and print what networks learn from it."""
    domain, task = load_task(DataSettings())
    parts: dict[str, object] = {"ipc": ipc, "steps": steps}
    if options:
        parts |= {"store": "latent", "store_options": options, "optimizer": "adam", "lr": 0.02}
    settings = resolve_distill([Layer("example", {"method": "dm", "distill": parts})]).settings
    syn = distill(PlainGate(task.train), domain, settings.distill, Streams(0))
    beside = [] if options else ["random"]
    for row in evaluate(syn, task, domain, name=name, epochs=epochs, repeats=2, baselines=beside):
        print(f"{row.subject:12} {100 * row.mean:5.1f} ± {100 * row.std:.1f} %  {row.protocol}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100, help="outer steps of DM")
    parser.add_argument("--train", type=int, default=3000, help="steps that train a generator")
    parser.add_argument("--epochs", type=int, default=100, help="of the evaluation")
    args = parser.parse_args()
    train = load_task(DataSettings())[1].train
    with tempfile.TemporaryDirectory() as base:
        distilled("pixels", {}, args.ipc, args.steps, args.epochs)
        for name, teach in (("autoencoder", autoencoder), ("gan", gan)):
            options = offered(name, teach(train, args.train), Path(base))
            distilled(name, options, args.ipc, args.steps, args.epochs)


if __name__ == "__main__":
    main()
