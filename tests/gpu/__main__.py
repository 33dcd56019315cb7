"""`make gpu`: the parts one after the other, each a process of its own with a limit.

    python -m tests.gpu [--minutes 8] [--out DIR] [--only PART] [--rehearse]

Exit codes: 0 everything ran, 1 a part failed or was cut off, 2 there is no CUDA device.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.gpu.rig import Rig, imported, machine

PARTS = {"parity": 0.35, "training": 0.35, "drawing": 0.35, "compiled": 0.35}
"""Parts in the order of their worth, and the largest share of all minutes that each may take."""
SHORTEST_SECONDS = 20.0
"""Seconds left below which no further part is started."""


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    cuda = torch.cuda.is_available()
    if not cuda and not options.rehearse:
        sys.stderr.write(
            f"gpu: torch {torch.__version__} sees no CUDA device here, nothing was run; "
            "--rehearse runs every part on the CPU with tiny sizes\n"
        )
        return 2
    device = torch.device("cpu" if options.rehearse else "cuda:0")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        return one_part(options.part, options.out, device, options.rehearse)
    return all_parts(options, device)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description="Measure this checkout on a CUDA machine.")
    parser.add_argument("--minutes", type=float, default=8.0, help="wall-clock minutes for all parts (default 8)")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for at most eight JSON files")
    parser.add_argument("--only", choices=list(PARTS), help="this part alone, with all of the minutes")
    parser.add_argument("--rehearse", action="store_true", help="run everything on the CPU with tiny sizes")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g}: must be above 0")
    return options


def all_parts(options: argparse.Namespace, device: torch.device) -> int:
    """Run the parts; `summary.json` says after each what became of it."""
    deadline = time.monotonic() + 60 * options.minutes
    summary: dict[str, object] = {"machine": machine(device, options.rehearse), "minutes": options.minutes}
    ended: dict[str, str] = {}
    summary["parts"] = ended
    for part in [options.only] if options.only else PARTS:
        left = deadline - time.monotonic()
        if left < min(SHORTEST_SECONDS, 6 * options.minutes):
            ended[part] = "not run: no time was left"
        else:
            share = 1.0 if options.only else PARTS[part]
            ended[part] = in_a_process(part, options, min(left, share * 60 * options.minutes))
        (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(f"{part}: {ended[part]}", flush=True)  # noqa: T201 -- a command prints
    return 0 if all(state == "done" for state in ended.values()) else 1


def in_a_process(part: str, options: argparse.Namespace, seconds: float) -> str:
    """Run a part where neither a crash nor a spoilt context of the device reaches the next one."""
    command = [sys.executable, "-m", "tests.gpu", "--part", part, "--out", str(options.out)]
    command += ["--rehearse"] if options.rehearse else []
    try:
        done = subprocess.run(command, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"cut off after {seconds:.0f} s; the rows so far are kept"
    return "done" if done.returncode == 0 else f"ended with exit code {done.returncode}"


def one_part(part: str, out: Path, device: torch.device, rehearse: bool) -> int:
    if rehearse:
        torch.set_num_threads(1)
    rig = Rig(part, out, device, rehearse)
    importlib.import_module(f"tests.gpu.{part}").run(rig)
    rig.row("imported", packages=imported())
    return 1 if any("failed" in row for row in rig.rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
