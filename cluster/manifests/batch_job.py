"""`gangway batch` on a gang of its own, as the documents of a RayJob. Pure.

It is the serving gang under the name NAME-batch, made by the same builders, without a Service. The command on the head
reads the rows, tokenizes them and writes the output, so the head mounts `storage.batch` as well.
KubeRay itself submits it (HTTPMode), as the serving command: a submitter pod that loses contact would end the job.
"""

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from cluster.config.loader import checked
from cluster.config.spec import CONFIG_FILE, ClusterSpec
from cluster.errors import SpecError
from cluster.k8s.kinds import Manifest
from cluster.manifests.render import render
from cluster.manifests.volumes import batch_volumes
from serving.addresses import has_credentials, shown_in

TTL_S = 300
"""The pods stay so long after the end, in seconds, for their logs to be read."""


def batch_spec(spec: ClusterSpec) -> ClusterSpec:
    """The same gang under the name of its batch job, always as a RayJob with pods of its own. Raises `SpecError`."""
    ray = spec.ray.model_copy(update={"kind": "job"})
    job = spec.model_copy(update={"name": f"{spec.name[:41]}-batch", "ray": ray}, deep=True)
    return checked(job, f"batch job {job.name}")


def batch_documents(spec: ClusterSpec, call: Sequence[str], *, allow_single_node: bool = False) -> list[Manifest]:
    """What is applied. `call`: input, output, and what else goes to `gangway batch` as it is.

    A command that is started again (`ray.backoff_limit`) goes on from its own checkpoint. Raises `SpecError` where
    input or output is missing, or is a place that the pods could not reach, and as `loader.checked` does.
    """
    if len(call) < 2 or any(place.startswith("-") for place in call[:2]):
        raise SpecError("--batch needs an INPUT and an OUTPUT, and options after `--`")
    _require_no_credentials(call)
    for place in call[:2]:
        _require_reach(spec, place)
    job = batch_spec(spec)
    *others, resource = render(job, allow_single_node=allow_single_node)
    resource["spec"]["entrypoint"] = shlex.join(["gangway", "batch", str(CONFIG_FILE), *call, "--address", "auto"])
    resource["spec"]["ttlSecondsAfterFinished"] = TTL_S
    pod = resource["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    pod["volumes"] += [mounted.volume for mounted in batch_volumes(job)]
    pod["containers"][0]["volumeMounts"] += [mounted.mount for mounted in batch_volumes(job)]
    return [*(document for document in others if document["kind"] != "Service"), resource]


def _require_no_credentials(call: Sequence[str]) -> None:
    for argument in call:
        if has_credentials(argument):
            raise SpecError(
                f"{shown_in(argument)} holds a credential, which the manifest, `ps` and Ray's dashboard would show",
                fix="give it in secret_env, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://",
            )


def _require_reach(spec: ClusterSpec, place: str) -> None:
    if "://" in place:
        if spec.network_policy.enabled:
            raise SpecError(
                f"{place}: the NetworkPolicy lets pods reach each other and DNS only",
                fix="set network_policy.enabled=false, or use a path in storage.batch",
            )
        return
    volume, path = spec.storage.batch, PurePosixPath(place)
    if volume is None or ".." in path.parts or not path.is_relative_to(volume.mount_path):
        where = "and storage.batch is not set" if volume is None else f"as it is not in {volume.mount_path}"
        raise SpecError(f"no pod would find {place}, {where}", fix="name a path in the mount_path of storage.batch")
