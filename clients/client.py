"""Runs a graph on a ComfyUI from a program.

    python client.py GRAPH.json --image cat.jpg --out cat_prompted.png
    python client.py GRAPH.json --image a.jpg b.jpg --out FOLDER --set 8.weight=0.6

GRAPH.json is in API format: one of workflows/api, or in ComfyUI Workflow > Export (API). The images
go into its Load Image nodes in turn. Needs aiohttp, which ComfyUI brings.
"""

import argparse
import asyncio
import json
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import aiohttp

SERVER = "http://127.0.0.1:8188"


class GraphError(Exception):
    """The server refuses the graph or a node fails: a line per node and input."""


async def run(graph: dict, images: Sequence[Path], out: Path, server: str = SERVER) -> list[Path]:
    """Upload the images, queue the graph, follow it, save its pictures; returns their paths."""
    client = uuid.uuid4().hex
    async with aiohttp.ClientSession(server, raise_for_status=False) as session:
        uploaded = [await upload(session, image) for image in images]
        loaders = [node for node in graph.values() if node["class_type"] == "LoadImage"]
        for number, node in enumerate(loaders if uploaded else ()):
            node["inputs"]["image"] = uploaded[number % len(uploaded)]
        async with session.ws_connect("/ws", params={"clientId": client}) as events:
            body = {"prompt": graph, "client_id": client}
            async with session.post("/prompt", json=body) as answer:
                queued = await answer.json()
            if "prompt_id" not in queued:
                raise GraphError(refusal(queued))
            await follow(events, graph, queued["prompt_id"])
        entries: dict = {}
        while queued["prompt_id"] not in entries:  # written just after the last event
            await asyncio.sleep(0.02)
            async with session.get(f"/history/{queued['prompt_id']}") as answer:
                entries = await answer.json()
        outputs = entries[queued["prompt_id"]]["outputs"].values()
        saved = [image for output in outputs for image in output.get("images", ())]
        saved = [image for image in saved if image["type"] == "output"]
        paths = places(out, [image["filename"] for image in saved])
        for image, path in zip(saved, paths, strict=True):
            async with session.get("/view", params=image) as answer:
                path.write_bytes(await answer.read())
        return paths


async def upload(session: aiohttp.ClientSession, image: Path) -> str:
    """Put a picture into ComfyUI's input folder; returns the name that Load Image takes."""
    form = aiohttp.FormData()
    form.add_field("image", image.read_bytes(), filename=image.name)
    async with session.post("/upload/image", data=form) as answer:
        return (await answer.json())["name"]


async def follow(
    events: "aiohttp.ClientWebSocketResponse[bool]", graph: dict, prompt_id: str
) -> None:
    """Print what happens until the graph has ended; GraphError if a node fails."""
    async for message in events:
        event = message.json() if message.type is aiohttp.WSMsgType.TEXT else {}
        data = event.get("data", {})
        if data.get("prompt_id") != prompt_id:
            continue
        if event["type"] == "executing" and data["node"]:
            print(graph[data["node"]]["class_type"])
        elif event["type"] == "progress":
            print(f"  {data['value']} of {data['max']}")
        elif event["type"] == "execution_interrupted":
            raise GraphError("interrupted")
        elif event["type"] == "execution_error":
            message = " ".join(data["exception_message"].split())
            raise GraphError(f"{data['node_id']} {data['node_type']}: {message}")
        elif event["type"] == "execution_success":
            return


def refusal(answer: dict) -> str:
    """Why the server does not take a graph: a line per node and input."""
    lines = [
        f"{number} {node['class_type']}: {error['message']}: {error['details']}"
        for number, node in (answer.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    error = answer.get("error", answer)
    plain = f"{error['message']} {error['details']}" if isinstance(error, dict) else str(error)
    return "\n".join(lines) or plain.strip()


def places(out: Path, names: Sequence[str]) -> list[Path]:
    """Where pictures go: into a folder under their names; a file name gets a number for more."""
    if not out.suffix:
        out.mkdir(parents=True, exist_ok=True)
        return [out / name for name in names]
    out.parent.mkdir(parents=True, exist_ok=True)
    others = [out.with_stem(f"{out.stem}_{number}") for number in range(2, len(names) + 1)]
    return [out, *others][: len(names)]


def change(graph: dict, setting: str) -> None:
    """Set an input: NODE.INPUT=VALUE, NODE being a number of the graph or a class in it."""
    place, equals, text = setting.partition("=")
    node, _, name = place.partition(".")
    found = [one for key, one in graph.items() if node in (key, one["class_type"])]
    if not equals or not found or any(name not in one["inputs"] for one in found):
        known = [
            f"{key} {one['class_type']}: {', '.join(one['inputs'])}" for key, one in graph.items()
        ]
        raise GraphError("\n".join([f"--set {setting}: expected NODE.INPUT=VALUE of", *known]))
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    for one in found:
        one["inputs"][name] = value


def main(arguments: Sequence[str]) -> int:
    """The command line; 0 if the pictures are saved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("graph", type=Path, help="the graph in API format")
    parser.add_argument("--image", type=Path, nargs="+", default=[], help="your pictures")
    parser.add_argument("--out", type=Path, default=Path(), help="a file, or a folder")
    parser.add_argument("--server", default=SERVER, help=f"its address (default: {SERVER})")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE")
    given = parser.parse_args(arguments)
    try:
        graph = json.loads(given.graph.read_text("utf-8"))
        for setting in given.set:
            change(graph, setting)
        print(*asyncio.run(run(graph, given.image, given.out, given.server)), sep="\n")
    except (GraphError, OSError, aiohttp.ClientError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
