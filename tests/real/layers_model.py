"""A model that Keras saved for TensorFlow.js, as a module: `model.json`, its layers, and files of weights beside it."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

MERGES = {"Add": sum, "Concatenate": lambda images: torch.cat(images, 1)}


class LayersModel(nn.Module):
    """The layers of a convolutional model of one input and one output, (N, H, W, C) there and (N, C, H, W) here."""

    def __init__(self, path):
        super().__init__()
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        config = saved["modelTopology"]["model_config"]["config"]
        ((self.input, *_),), ((self.output, *_),) = config["input_layers"], config["output_layers"]
        weights = _weights(saved["weightsManifest"], Path(path).parent)
        self.merges, self.sources, self.steps = {}, {}, nn.ModuleDict()
        for layer in config["layers"]:
            name, kind = layer["name"], layer["class_name"]
            if name == self.input:
                continue
            (nodes,) = layer["inbound_nodes"]
            self.sources[name] = [node[0] for node in nodes]
            if kind in MERGES:
                self.merges[name] = MERGES[kind]
            else:
                kernel, bias = (weights.get(f"{name}/{part}") for part in ("kernel", "bias"))
                self.steps[name] = _step(kind, layer["config"], kernel, bias)

    def forward(self, images):
        known = {self.input: images}
        for name, sources in self.sources.items():
            values = [known[source] for source in sources]
            known[name] = self.merges[name](values) if name in self.merges else self.steps[name](*values)
        return known[self.output]


def _weights(manifest, folder):
    """Read the arrays that the manifest lists, one after the other in the files of their group."""
    arrays = {}
    for group in manifest:
        data, start = b"".join((folder / path).read_bytes() for path in group["paths"]), 0
        for entry in group["weights"]:
            if "quantization" in entry:
                raise NotImplementedError(f"{entry['name']}: quantized weights")
            array = np.frombuffer(data, entry["dtype"], int(np.prod(entry["shape"])), start).reshape(entry["shape"])
            arrays[entry["name"]], start = torch.from_numpy(array.copy()), start + array.nbytes
        if start != len(data):
            raise ValueError(f"{group['paths']}: {len(data)} bytes, where their list says {start}")
    return arrays


def _step(kind, config, kernel, bias):
    if kind == "Activation" and config["activation"] == "relu":
        return nn.ReLU()
    if kind == "UpSampling2D" and config["interpolation"] == "nearest":
        return nn.Upsample(scale_factor=tuple(config["size"]), mode="nearest")
    plain = {"strides": [1, 1], "dilation_rate": [1, 1], "groups": 1, "activation": "linear", "use_bias": True}
    if kind != "Conv2D" or any(config[key] != value for key, value in plain.items()):
        raise NotImplementedError(f"{config['name']}: this {kind}")
    height, width, inputs, outputs = kernel.shape
    conv = nn.Conv2d(inputs, outputs, (height, width), padding=config["padding"])  # "same" or "valid", as there
    conv.load_state_dict({"weight": kernel.permute(3, 2, 0, 1), "bias": bias})
    return conv
