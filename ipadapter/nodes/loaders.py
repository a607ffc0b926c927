"""Nodes that open model files."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import files
from . import inputs


class IPAdapterModelLoader(io.ComfyNode):
    """Load an adapter file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterModelLoader",
            display_name="IPAdapter Model Loader",
            category="ipadapter/loaders",
            description="Loads an adapter file from models/ipadapter. Which kind it is is read "
            "from its content.",
            inputs=[
                io.Combo.Input(
                    "ipadapter_file",
                    options=files.adapter_names(),
                    tooltip="A file in models/ipadapter, for example "
                    "ip-adapter-plus_sd15.safetensors.",
                )
            ],
            outputs=[inputs.IPAdapterWire.Output(display_name="IPADAPTER")],
        )

    @classmethod
    def fingerprint_inputs(cls, ipadapter_file: str) -> object:
        return files.fingerprint(files.ADAPTERS, ipadapter_file)

    @classmethod
    def execute(cls, ipadapter_file: str) -> io.NodeOutput:
        return io.NodeOutput(files.load_adapter(ipadapter_file))


LOADERS: list[type[io.ComfyNode]] = [IPAdapterModelLoader]
