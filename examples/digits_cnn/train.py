"""A small convolutional network on scikit-learn's handwritten digits, in plain PyTorch.

It trains for --epochs epochs, saves a checkpoint after each, and goes on from the last one where it finds one. So a
search can try many settings for an epoch or two, and train only the best of them to the end:

    ems tune examples/digits_cnn/train.py --space examples/digits_cnn/space.yaml --metric val_acc \\
        --fidelity epochs=1..27 --budget 200epochs --gres gpu:1

Without --gres gpu:1 it runs on the cores of this machine, too.
"""

import argparse
import sys
from pathlib import Path

import ems

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    sys.exit("this example needs PyTorch: pip install torch, or name a Python that has it by --python")

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return training and validation images (n, 1, 8, 8) from 0 to 1, and their labels 0 to 9."""
    images, labels = load_digits(return_X_y=True)
    pictures = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    halves = train_test_split(pictures, torch.tensor(labels), test_size=0.4, random_state=0, stratify=labels)
    return halves[0], halves[1], halves[2], halves[3]


def network(width: int, dropout: float) -> nn.Module:
    """Return two convolutions and a linear layer; (batch, 1, 8, 8) to (batch, 10) logits."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * 4, 10),
    )  # fmt: skip


def optimizer_of(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """Return the optimizer that was asked for; only SGD has a momentum to set."""
    if args.opt == "sgd":
        return torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    return torch.optim.Adam(model.parameters(), lr=args.lr)


def train_epoch(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer, batch: int
) -> float:
    """Train once through the images in random order; return the mean loss."""
    model.train()
    total = 0.0
    for rows in torch.randperm(len(images), device="cpu").split(batch):
        loss = functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(images)


@torch.no_grad()
def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Return the mean loss, and the share of labels that are right."""
    model.eval()
    logits = model(images)
    right = (logits.argmax(1) == labels).float().mean()
    return functional.cross_entropy(logits, labels).item(), right.item()


def main() -> None:
    """Train from the last checkpoint on, log each epoch, and save a checkpoint after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--opt", choices=["adam", "sgd"], default="sgd")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(ems.seed())
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_x, val_x, train_y, val_y = (each.to(device) for each in load())
    model = network(args.width, args.dropout).to(device)
    optimizer = optimizer_of(model, args)

    saved, first = Path(ems.checkpoint()) / "last.pt", 1
    if saved.exists():
        state = torch.load(saved, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["chance"].cpu())
        first = state["epoch"] + 1
        print(f"going on from epoch {first}")
    for epoch in range(first, args.epochs + 1):
        loss = train_epoch(model, train_x, train_y, optimizer, args.batch)
        val_loss, val_acc = evaluate(model, val_x, val_y)
        print(f"epoch {epoch}: loss {loss:.4f}, validation {val_loss:.4f}, accuracy {val_acc:.4f} on {device}")
        ems.log(step=epoch, loss=loss, val_loss=val_loss, val_acc=val_acc)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save({**state, "chance": torch.get_rng_state()}, saved.with_suffix(".aside"))
        saved.with_suffix(".aside").rename(saved)


if __name__ == "__main__":
    main()
