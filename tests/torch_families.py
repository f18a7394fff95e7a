"""The families of kdjax.models in PyTorch, with the names of layers that RepDistiller's checkpoints have."""

import torch
from torch import nn

relu = torch.relu


def conv(inputs, width, size=1, stride=1, groups=1, bias=False):
    return nn.Conv2d(inputs, width, size, stride, size // 2, groups=groups, bias=bias)


def mixed(x, groups):
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def numbered(module, *layers):
    """As conv1, bn1, conv2, bn2, …"""
    for number, layer in enumerate(layers, 1):
        module.add_module(f"conv{number}", layer)
        module.add_module(f"bn{number}", nn.BatchNorm2d(layer.out_channels))


class ResidualBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        numbered(self, conv(inputs, width, 3, stride), conv(width, width, 3))
        if stride > 1 or inputs != width:
            self.downsample = nn.Sequential(conv(inputs, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x):
        x = relu(x)
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return y + (self.downsample(x) if hasattr(self, "downsample") else x)


class ResNet(nn.Module):
    def __init__(self, depth, widths, classes):
        super().__init__()
        numbered(self, conv(3, widths[0], 3))
        for stage in (1, 2, 3):
            shapes = [(widths[stage - 1], 1 if stage == 1 else 2)] + [(widths[stage], 1)] * ((depth - 2) // 6 - 1)
            blocks = [ResidualBlock(inputs, widths[stage], stride) for inputs, stride in shapes]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x):
        x1 = self.layer1(self.bn1(self.conv1(x)))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        embedding = relu(x3).mean((2, 3))
        return [relu(x1), relu(x2), relu(x3)], embedding, self.fc(embedding)


class WideBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3)
        if inputs != width:
            self.convShortcut = conv(inputs, width, 1, stride)

    def forward(self, x):
        first = relu(self.bn1(x))
        y = self.conv2(relu(self.bn2(self.conv1(first))))
        return y + (self.convShortcut(first) if hasattr(self, "convShortcut") else x)


class WideStage(nn.Module):
    def __init__(self, inputs, width, count, stride):
        super().__init__()
        shapes = [(inputs, stride)] + [(width, 1)] * (count - 1)
        self.layer = nn.Sequential(*(WideBlock(inputs, width, stride) for inputs, stride in shapes))

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, width, classes):
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = conv(3, 16, 3)
        for stage in (1, 2, 3):
            part = WideStage(widths[stage - 1], widths[stage], (depth - 4) // 6, 1 if stage == 1 else 2)
            self.add_module(f"block{stage}", part)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)

    def forward(self, x):
        x1 = self.block1(self.conv1(x))
        x2 = self.block2(x1)
        x3 = self.block3(x2)
        embedding = relu(self.bn1(x3)).mean((2, 3))
        return [x1, x2, x3], embedding, self.fc(embedding)


class VGG(nn.Module):
    def __init__(self, counts, classes):
        super().__init__()
        inputs = 3
        for stage, (count, width) in enumerate(zip(counts, (64, 128, 256, 512, 512), strict=True)):
            layers = []
            for _ in range(count):
                layers += [conv(inputs, width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            self.add_module(f"block{stage}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(512, classes)

    def forward(self, x):
        features = []
        poolings = 4 if x.shape[2] == 64 else 3
        for stage in range(5):
            x = relu(getattr(self, f"block{stage}")(x))
            features.append(x)
            if stage < poolings:
                x = nn.functional.max_pool2d(x, 2)
        embedding = x.mean((2, 3))
        return features, embedding, self.classifier(embedding)


class InvertedBlock(nn.Module):
    def __init__(self, inputs, width, stride, widened):
        super().__init__()
        inner = inputs * widened
        first = [conv(inputs, inner), nn.BatchNorm2d(inner), nn.ReLU()]
        second = [conv(inner, inner, 3, stride, groups=inner), nn.BatchNorm2d(inner), nn.ReLU()]
        self.conv = nn.Sequential(*first, *second, conv(inner, width), nn.BatchNorm2d(width))
        self.added = stride == 1 and inputs == width

    def forward(self, x):
        return x + self.conv(x) if self.added else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        groups = [(16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)]
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(conv(3, inputs, 3, 2), nn.BatchNorm2d(inputs), nn.ReLU())
        self.blocks = nn.ModuleList()
        for place, (channels, count, stride) in enumerate(groups):
            layers = []
            for number in range(count):
                shape = int(channels * width), stride if number == 0 else 1, 1 if place == 0 else 6
                layers.append(InvertedBlock(inputs, *shape))
                inputs = int(channels * width)
            self.blocks.append(nn.Sequential(*layers))
        self.conv2 = nn.Sequential(conv(inputs, 1280), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x):
        x, features = self.conv1(x), []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        embedding = self.conv2(x).mean((2, 3))
        return [features[place] for place in (1, 2, 4, 6)], embedding, self.classifier(embedding)


class GroupedBlock(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.stride, self.groups = stride, 1 if inputs == 24 else 3
        inner = width // 4
        layers = conv(inputs, inner, groups=self.groups), conv(inner, inner, 3, stride, inner)
        numbered(self, *layers, conv(inner, width, groups=3))

    def forward(self, x):
        x = relu(x)
        y = mixed(relu(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(relu(self.bn2(self.conv2(y)))))
        return y + x if self.stride == 1 else torch.cat([y, nn.functional.avg_pool2d(x, 3, 2, 1)], 1)


class ShuffleNetV1(nn.Module):
    def __init__(self, classes):
        super().__init__()
        numbered(self, conv(3, 24))
        inputs = 24
        for stage, (width, count) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
            blocks = [GroupedBlock(inputs, width - inputs, 2)] + [
                GroupedBlock(width, width, 1) for _ in range(count - 1)
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inputs = width
        self.linear = nn.Linear(960, classes)

    def forward(self, x):
        x1 = self.layer1(self.bn1(self.conv1(x)))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        embedding = relu(x3).mean((2, 3))
        return [relu(x1), relu(x2), relu(x3)], embedding, self.linear(embedding)


class HalvingBlock(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        half = width // 2
        left = conv(inputs, inputs, 3, 2, inputs), conv(inputs, half)
        numbered(self, *left, conv(inputs, half), conv(half, half, 3, 2, half), conv(half, half))

    def forward(self, x):
        left = relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = relu(self.bn5(self.conv5(self.bn4(self.conv4(relu(self.bn3(self.conv3(x))))))))
        return mixed(torch.cat([left, right], 1), 2)


class HalfBlock(nn.Module):
    def __init__(self, half):
        super().__init__()
        numbered(self, conv(half, half), conv(half, half, 3, 1, half), conv(half, half))

    def forward(self, x):
        kept, x = x.chunk(2, 1)
        x = relu(self.bn3(self.conv3(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))))
        return mixed(torch.cat([kept, x], 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24), nn.BatchNorm2d(24)
        inputs = 24
        for stage, (width, count) in enumerate(((116, 3), (232, 7), (464, 3)), 1):
            blocks = [HalvingBlock(inputs, width)] + [HalfBlock(width // 2) for _ in range(count)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inputs = width
        self.conv2, self.bn2 = conv(464, 1024), nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward(self, x):
        x1 = self.layer1(relu(self.bn1(self.conv1(x))))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        embedding = relu(self.bn2(self.conv2(x3))).mean((2, 3))
        return [x1, x2, x3], embedding, self.linear(embedding)


class AttentionBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.attn = nn.LayerNorm(width, 1e-6), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.mlp = nn.LayerNorm(width, 1e-6), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        query, key, value = self.attn.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.attn.proj(seen)
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    """With the names of timm."""

    def __init__(self, patch, width, depth, heads, classes, size=32):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(AttentionBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        embedding = self.norm(x)[:, 0]
        return features, embedding, self.head(embedding)
