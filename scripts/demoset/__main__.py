"""`python scripts/python.py scripts/demoset COMMAND ...`: build, measure, or train a part again."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

COMMANDS = {
    "build": "write the models as ComfyUI's loaders take them",
    "measure": "sample captions in ComfyUI and print how well the images follow them",
    "vae": "train the autoencoder",
    "encoder": "train the image encoder",
    "base": "train the UNet",
    "adapters": "train an adapter on it",
    "control": "train the ControlNet for edges",
    "lora": "train the LoRA that makes night",
}


def main(arguments: list[str]) -> int:
    """Run one command with the rest of the command line."""
    if not arguments or arguments[0] not in COMMANDS:
        lines = [f"  {name:10}  {what}" for name, what in COMMANDS.items()]
        sys.stderr.write("\n".join(["Commands (each takes --help):", *lines, ""]))
        return 2
    sys.argv = [f"demoset {arguments[0]}", *arguments[1:]]
    folder = "" if arguments[0] == "build" else "training."
    importlib.import_module(f"demoset.{folder}{arguments[0]}").main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
