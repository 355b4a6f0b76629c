"""A small classifier in the manner of VGG, and the handwritten digits that scikit-learn ships."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from genstab import antialias

SIDE, MARGIN = 24, 4  # of the window in the middle of an image, and what lies around it


def digits():
    """1797 digits of 16×16 pixels on a canvas of 32×32, in [−1, 1], and their classes."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    images = F.interpolate(images, scale_factor=2, mode="bicubic").clamp(-1, 1)
    return F.pad(images, (8, 8, 8, 8), value=-1.0), torch.from_numpy(data.target)


def middle(images):
    return images[..., MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE].contiguous(memory_format=torch.channels_last)


def vgg(channels=(16, 16, 32)):
    """Twice convolution, norm and ReLU, then max pooling, for each width; periodic as in the paper."""
    layers, before = [], 1
    for width in channels:
        for _ in range(2):
            conv = nn.Conv2d(before, width, 3, padding=1, padding_mode="circular", bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def train(images, labels, filter="none", seed=0, epochs=4, batch_size=64):
    """Train without augmentation; the same first weights and batches for every filter."""
    torch.manual_seed(seed)
    model = vgg()
    if filter != "none":
        antialias(model, filter, padding_mode="circular")
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    steps = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: steps * batch_size].split(batch_size):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model
