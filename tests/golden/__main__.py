"""Write every golden trajectory anew: `python -m tests.golden`."""

import json
import platform
from pathlib import Path

import torch
import transformers

from simpo.methods import METHODS
from tests.golden.trajectory import trajectory

HERE = Path(__file__).parent


def main() -> None:
    """Overwrite the files beside this one."""
    torch.set_num_threads(1)
    for name in METHODS:
        rows = "[\n" + ",\n".join(json.dumps(row) for row in trajectory(name)) + "\n]\n"
        (HERE / f"{name}.json").write_text(rows)
        print(f"wrote {name}.json")
    environment = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    (HERE / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")


if __name__ == "__main__":
    main()
