"""The twin in PyTorch of a network of kdjax.models, and its weights; run as a script, it keeps the families' values."""

import json
from pathlib import Path

import numpy as np
import torch
import torch_families


def twin(module, size=32):
    """The same network in PyTorch, of one of kdjax.models."""
    settings = {"classes": module.classes}
    kind = type(module).__name__
    if kind == "ResNet":
        settings |= {"depth": module.depth, "widths": module.widths}
    elif kind == "WideResNet":
        settings |= {"depth": module.depth, "width": module.width}
    elif kind == "VGG":
        counts = {8: (1,) * 5, 11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
        settings["counts"] = counts[module.depth]
    elif kind == "MobileNetV2":
        settings["width"] = module.width
    elif kind == "ViT":
        settings |= {name: getattr(module, name) for name in ("patch", "width", "depth", "heads")} | {"size": size}
    return getattr(torch_families, kind)(**settings).eval()


def drawn_again(network):
    """Statistics and weights away from their start, as of a network that was trained."""
    with torch.no_grad():
        for name, array in network.state_dict().items():
            if array.is_floating_point():
                away = torch.randn_like(array) * 0.3
                near_one = name.endswith("running_var") or (name.endswith("weight") and array.ndim == 1)
                array.copy_(1 + away.abs() if near_one else away if array.ndim == 1 else array)
    return network


def filled_like(network, weights, report):
    """The network with Flax's weights: each leaf at the name that `weights_from` would take it from."""
    from kdjax import _trees

    state, leaves = network.state_dict(), _trees.by_path(weights)
    with torch.no_grad():
        for entry in report:
            if entry.name:
                array = torch.tensor(np.asarray(leaves[entry.name]))
                if entry.name.endswith("kernel"):
                    array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T
                state[entry.source].copy_(array)
    return network


def main():
    import families

    from kdjax.networks import weights_from

    kept = {}
    for name, (module, shape) in families.SMALL.items():
        network, inputs = twin(module, shape[1]), families.images(*shape)
        _, report = weights_from(network.state_dict(), module, inputs)
        network = filled_like(network, families.filled(module, shape), report).double()
        with torch.no_grad():
            features, embedding, logits = network(torch.tensor(inputs).double().permute(0, 3, 1, 2))
        names = [f"{'block' if name == 'vit' else 'stage'}{number}" for number in range(1, len(features) + 1)]
        squares = {one: x.square().flatten(1).mean(1) for one, x in zip(names, features, strict=True)}
        squares |= {"embedding": embedding.square().mean(1), "logits": logits}
        kept[name] = {one: np.round(x.numpy(), 9).tolist() for one, x in squares.items()}
    path = Path(__file__).parent / "golden" / "torch" / "families.json"
    lines = (f"{json.dumps(name)}: {json.dumps(values)}" for name, values in kept.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
