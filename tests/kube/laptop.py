"""The shipped laptop configuration with the places of this machine, for tests with real Ray in the pods."""

from pathlib import Path

from tests.e2e.server import MODEL

CONFIG = Path(__file__).parents[2] / "configs" / "cluster" / "smollm2-135m-tp2-kind-cpu.yaml"
SETTINGS = (
    f"storage.model.mount_path={MODEL.parent}",
    f"storage.model.host_path={MODEL.parent}",
    f"serving.model.path={MODEL}",
    "nodes.head_selector={role: head}",
    "nodes.selector={role: ranks}",
    "serving.model.dtype=float32",
    "timeouts.ready_s=600",
)
"""In float32 a text that is computed in two parts can differ by a fault alone."""
QUESTION = {"inputs": "What is the capital of France?", "parameters": {"temperature": 0, "max_tokens": 16}}
