"""The command `augserve train`: a network, trained into the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augserve.cli import show


def train(
    data: Annotated[str, typer.Option(help="Data set: digits, cifar10, fashion-mnist.")] = "digits",
    model: Annotated[
        str,
        typer.Option(
            help="Network: resnet20, resnet38, resnet50-cifar, resnet18, vgg11, vgg16, vgg19, mobilenet-v2, "
            "densenet121, efficientnet-b0."
        ),
    ] = "resnet20",
    norm: Annotated[
        str,
        typer.Option(
            help="Norm: aug, aug-learned, batch, batch-untracked, group, instance, layer, median, none, oni, "
            "robust, robust-tracked, spectral."
        ),
    ] = "aug",
    phi: Annotated[
        float | None,
        typer.Option(
            help="AugNorm's exponent: 1 median .. 2 mean .. inf midrange (learned: at first). [default: 1.5]"
        ),
    ] = None,
    p: Annotated[float | None, typer.Option(help="RobustNorm's power of the range. [default: 0.2]")] = None,
    conv_norm: Annotated[
        bool, typer.Option("--conv-norm", help="Normalize every convolution by its spectrum as well.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 128,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="Of SGD, at its highest. [default: 0.1 for digits, else 0.2]"),
    ] = None,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.")] = 5e-4,
    schedule: Annotated[
        str, typer.Option(help="Learning rate over time: cosine (with warm-up) or step.")
    ] = "cosine",
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: runs/DATA-MODEL-NORM-DATE-TIME]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
) -> None:
    """Train a network; the run is kept in its folder, and runs/latest points to it.

    \b
    Examples:
      augserve train
      augserve train --data digits --norm aug --phi 1.25 --epochs 3 --out runs/first
      augserve train --data cifar10 --data-dir data --norm batch --epochs 20
    """
    from augserve.training import TrainConfig
    from augserve.training import train as run_training
    from augserve.training.allocator import keep_freed_memory
    from augserve.training.run import default_folder, point_latest

    config = TrainConfig(
        data=data,
        data_dir=None if data_dir is None else str(data_dir),
        model=model,
        norm=norm,
        phi=phi,
        p=p,
        conv_norm=conv_norm,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        seed=seed,
        device=device,
    )
    folder = out or default_folder(config)
    keep_freed_memory()
    try:
        with show.TrainingDisplay() as display:
            result = run_training(config, folder, overwrite=overwrite, progress=display)
    except KeyboardInterrupt:
        point_latest(folder)
        show.show_error(f"stopped; {folder} keeps the last finished epoch, if there was one")
        raise typer.Exit(130) from None
    latest = point_latest(folder)
    show.out.print(f"validation accuracy {result.val_accuracy:.2%}")
    for mode, accuracy in result.test_accuracy.items():
        show.out.print(f"test accuracy, {mode} statistics: {accuracy:.2%}")
    show.out.print(f"{result.images_per_second:.0f} images per second in training")
    show.out.print(f"run kept in {folder}" + (f" ({latest} points to it)" if latest else ""))
