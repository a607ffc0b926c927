"""Image prompts by decoupled cross-attention (IP-Adapter, arXiv 2308.06721).

From the ground up; a room imports only rooms above it in this list:

    errors, frames     what can go wrong; weights over frames
    files              bytes and tensors, without model knowledge
    bases              what a base model is to an adapter
    attention          the paper: the equation, and when, where, how strongly it acts
    adapters           what an adapter file becomes
    pictures           references before the encoder, and what it gave
    library            the model folders, presets, the Doctor, where to download
    training           the recipe, its data and its state
    apply              what an Apply node asks for
    host               ComfyUI, and nothing else
    nodes              schemas, one call each

"The reference" is diffusers for what a model computes and how pictures are encoded, and the
paper's own code for adapter files and training:
https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/attention_processor.py#L4408
https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/ip_adapter/ip_adapter.py
"""
