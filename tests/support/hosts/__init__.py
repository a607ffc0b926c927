"""ComfyUI in the test process, as a server and as a page, and scenes on it."""
