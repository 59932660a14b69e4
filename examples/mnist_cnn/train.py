"""A small convolutional network on MNIST or FashionMNIST, in plain PyTorch.

It runs by itself (``python examples/mnist_cnn/train.py --epochs 1``) and under ems, where it also reports its
metrics and picks up at the last finished epoch after a time limit or a preemption:

    ems parrun examples/mnist_cnn/train.py --set lr=0.05,0.02,0.01 --set seed=0..2 --gres gpu:1 -- --epochs 5
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import datasets, transforms

import ems

SETS = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}


def load(name: str, folder: str) -> tuple[Dataset, Dataset]:
    """Return the training and the test set: images (1, 28, 28), standardised; labels 0 to 9."""
    augment = (
        transforms.RandomAffine(degrees=10, translate=(0.1, 0.1))
        if name == "mnist"
        else transforms.RandomHorizontalFlip()
    )
    standardise = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    train, test = transforms.Compose([augment, *standardise]), transforms.Compose(standardise)
    if name != "digits":
        try:
            return (
                SETS[name](folder, train=True, download=True, transform=train),
                SETS[name](folder, train=False, download=True, transform=test),
            )
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(":")
            print(f"notice: {name} cannot be had here ({reason}); training on scikit-learn's digits instead")
    return load_digits()


def load_digits() -> tuple[Dataset, Dataset]:
    """Return scikit-learn's 1,797 handwritten digits, scaled from 8 x 8 up to 28 x 28."""
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    images, labels = bundled(return_X_y=True)
    pictures = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    pictures = (functional.interpolate(pictures, size=28, mode="bilinear") - 0.1307) / 0.3081
    halves = train_test_split(pictures, torch.tensor(labels), test_size=0.25, random_state=0, stratify=labels)
    return TensorDataset(halves[0], halves[2]), TensorDataset(halves[1], halves[3])


def network(dropout: float) -> nn.Module:
    """Return two convolutions and two linear layers; (batch, 1, 28, 28) to (batch, 10) logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 10),
    )  # fmt: skip


def train_epoch(model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer, device: str) -> float:
    """Train once through ``batches``; return the mean loss."""
    model.train()
    total, count = 0.0, 0
    for images, labels in batches:
        loss = functional.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + loss.item() * len(labels), count + len(labels)
    return total / count


@torch.no_grad()
def accuracy(model: nn.Module, batches: DataLoader, device: str) -> float:
    """Return the share of ``batches`` that ``model`` labels right."""
    model.eval()
    right, count = 0, 0
    for images, labels in batches:
        right += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
        count += len(labels)
    return right / count


def main() -> None:
    """Train, log each epoch, and save a checkpoint after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", choices=[*SETS, "digits"])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_set, test_set = load(args.data, args.data_dir)
    train = DataLoader(train_set, batch_size=args.batch, shuffle=True)
    test = DataLoader(test_set, batch_size=512)
    model = network(args.dropout).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)

    saved = Path(ems.checkpoint()) / "last.pt"
    first = 1
    if saved.exists():
        state = torch.load(saved, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
        print(f"going on from epoch {first}")
    for epoch in range(first, args.epochs + 1):
        loss = train_epoch(model, train, optimizer, device)
        acc = accuracy(model, test, device)
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {acc:.4f} on {device}")
        ems.log(step=epoch, loss=loss, acc=acc)
        aside = saved.with_suffix(".aside")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, aside)
        aside.rename(saved)


if __name__ == "__main__":
    main()
