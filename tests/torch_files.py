"""Makes the files of tests/golden/torch with PyTorch, which the tests do without: ``python tests/torch_files.py``."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).parent / "golden" / "torch"


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 3 * 2, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class Block(nn.Module):
    """The branch that changes the width is registered last, as torchvision's networks do."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2), Block(8, 8, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.ln2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        y = self.ln1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln2(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 6, 8))
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([TransformerBlock(), TransformerBlock()])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, tokens):
        x = self.embed(tokens) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def network(kind):
    """No vector stays at its zeros or ones: whoever mixed up two of them would be seen."""
    torch.manual_seed(0)
    made = kind()
    for name, value in made.state_dict().items():
        if "running" in name or (value.ndim == 1 and value.is_floating_point()):
            value.copy_(0.5 + torch.rand(value.shape))
    return made.eval()


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    images, tokens = torch.randn(3, 3, 12, 8), torch.randint(0, 11, (3, 6))
    arrays = {"tokens": tokens.numpy().astype(np.int32), "images": images.permute(0, 2, 3, 1).numpy()}
    with torch.no_grad():
        for name, kind, inputs in (
            ("cnn", Convolutional, images),
            ("residual", Residual, images),
            ("transformer", Transformer, tokens),
        ):
            made = network(kind)
            arrays[name] = made(inputs).numpy()
            torch.save(made.state_dict(), FOLDER / f"{name}.pt")
            save_file(made.state_dict(), FOLDER / f"{name}.safetensors")
    np.savez(FOLDER / "outputs.npz", **arrays)
    # All that a reader may meet: types, a view of a larger storage, transposed strides, one storage twice, parameters.
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    kinds = ("float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
    state = {kind: torch.arange(-2, 4).to(getattr(torch, kind)) for kind in kinds}
    state |= {"view": base[1:3, 2:5], "transposed": base.T, "parameter": nn.Parameter(base[0]), "none": base[:0]}
    state["scalar"] = torch.tensor(7.0)
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"state": {}}}, FOLDER / "kinds.pt")
    save_file({name: value.contiguous().clone() for name, value in state.items()}, FOLDER / "kinds.safetensors")
    torch.save(state, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
