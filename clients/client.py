"""Runs a workflow on a ComfyUI from a program: python client.py GRAPH.json REFERENCE.png [FOLDER]

GRAPH.json is in API format (in ComfyUI: Workflow > Export (API)). The reference goes into every
Load Image node; what the graph saves is written to FOLDER. Needs aiohttp, which ComfyUI brings.
"""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import aiohttp

SERVER = "http://127.0.0.1:8188"


async def run(graph: dict, reference: Path, folder: Path, server: str = SERVER) -> list[Path]:
    """Upload the reference, queue the graph, follow it, save its pictures; returns their paths."""
    client = uuid.uuid4().hex
    async with aiohttp.ClientSession(server, raise_for_status=False) as session:
        form = aiohttp.FormData()
        form.add_field("image", reference.read_bytes(), filename=reference.name)
        async with session.post("/upload/image", data=form) as answer:
            uploaded = (await answer.json())["name"]
        for node in graph.values():
            if node["class_type"] == "LoadImage":
                node["inputs"]["image"] = uploaded
        async with session.ws_connect("/ws", params={"clientId": client}) as events:
            body = {"prompt": graph, "client_id": client}
            async with session.post("/prompt", json=body) as answer:
                queued = await answer.json()
            if "prompt_id" not in queued:
                raise RuntimeError(json.dumps(queued, indent=1))  # names each node and input
            await follow(events, graph, queued["prompt_id"])
        entries: dict = {}
        while queued["prompt_id"] not in entries:  # written just after the last event
            await asyncio.sleep(0.02)
            async with session.get(f"/history/{queued['prompt_id']}") as answer:
                entries = await answer.json()
        outputs = entries[queued["prompt_id"]]["outputs"]
        images = [image for output in outputs.values() for image in output.get("images", ())]
        return [await save(session, image, folder) for image in images]


async def follow(events: aiohttp.ClientWebSocketResponse, graph: dict, prompt_id: str) -> None:
    """Print what happens until the graph has ended; RuntimeError if a node fails."""
    async for message in events:
        event = message.json() if message.type is aiohttp.WSMsgType.TEXT else {}
        data = event.get("data", {})
        if data.get("prompt_id") != prompt_id:
            continue
        if event["type"] == "executing" and data["node"]:
            print(graph[data["node"]]["class_type"])
        elif event["type"] == "progress":
            print(f"  {data['value']} of {data['max']}")
        elif event["type"] in ("execution_error", "execution_interrupted"):
            raise RuntimeError(data.get("exception_message", "interrupted"))
        elif event["type"] == "execution_success":
            return


async def save(session: aiohttp.ClientSession, image: dict, folder: Path) -> Path:
    """Write one picture that the graph has saved."""
    path = folder / image["filename"]
    async with session.get("/view", params=image) as answer:
        path.write_bytes(await answer.read())
    return path


if __name__ == "__main__":
    where = Path(sys.argv[3] if len(sys.argv) > 3 else ".")
    what = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    print(*asyncio.run(run(what, Path(sys.argv[2]), where)), sep="\n")
