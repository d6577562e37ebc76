"""The door to the API server: kubeconfig or the pod's own account. The only module that imports `kubernetes`."""

from typing import Any

from kubernetes import client as official
from kubernetes import config as official_config

from cluster.errors import AccessError
from cluster.k8s.client import Client


def connect(kubeconfig: str | None = None, context: str | None = None) -> Client:
    """A client for the kubeconfig's current context, else for the pod this runs in. Talks to nobody yet.

    Raises:
        AccessError: there is neither, or the file or context is wrong.
    """
    try:
        api = official_config.new_client_from_config(kubeconfig, context, persist_config=False)
        _, current = official_config.list_kube_config_contexts(kubeconfig)
        chosen = current if context is None else _context(kubeconfig, context)
        namespace = chosen["context"].get("namespace", "default")
    except (official_config.ConfigException, OSError, StopIteration) as error:
        if kubeconfig or context:
            named = " ".join(part for part in (kubeconfig, context and f"(context {context})") if part)
            raise AccessError(f"the kubeconfig {named} cannot be used: {error}") from error
        api, namespace = _inside_a_pod(error), "default"
    return Client(_without_retries(api), namespace=namespace)


def _context(kubeconfig: str | None, context: str) -> Any:
    contexts, _ = official_config.list_kube_config_contexts(kubeconfig)
    return next(row for row in contexts if row["name"] == context)


def _inside_a_pod(outside: Exception) -> Any:
    configuration = official.Configuration()
    try:
        official_config.load_incluster_config(configuration)
    except official_config.ConfigException as error:
        text = f"no Kubernetes cluster is configured ({outside}, and this is not a pod)"
        raise AccessError(text, fix="set KUBECONFIG or --kubeconfig until `kubectl get nodes` answers") from error
    return official.ApiClient(configuration)


def _without_retries(api: Any) -> Any:
    """`Client` retries; urllib3 beneath must not, or pauses multiply."""
    api.configuration.retries = False
    return official.ApiClient(api.configuration)
