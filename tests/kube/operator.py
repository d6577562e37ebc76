"""A KubeRay operator, v1.7.0 as read in its source: RayJob to RayCluster to pods, statuses and events.

Left out: autoscaling, upgrades, ingress, Redis, RayService, submitter pods (a RayJob is as in HTTPMode).
Status `ready` and RayClusterProvisioned are sticky, as in the real one: they stay when pods die.
"""

import copy
import uuid
from collections import Counter
from typing import Any

from tests.kube.clock import ManualClock
from tests.kube.errors import StatusError
from tests.kube.pods import deletion, head_pod, replica_pods, services, token_secret, token_wanted, worker_groups
from tests.kube.rules import cluster_faults, job_faults
from tests.kube.scene import add_event, condition, condition_is, set_status
from tests.kube.store import Change, Store, Write
from tests.kube.write_back import JOB_FINALIZER, finalized, released

Object = dict[str, Any]
SCHEDULERS = {"scheduler-plugins": "scheduler-plugins-scheduler"}
"""What it writes into pods, where that is not the name it was started with."""
JOBS, CLUSTERS = "rayjobs.ray.io", "rayclusters.ray.io"


class Operator:
    """One reconcile loop over all RayJobs and RayClusters."""

    def __init__(self, store: Store, clock: ManualClock, *, batch_scheduler: str = "") -> None:
        self.store = store
        self.clock = clock
        self.batch_scheduler = batch_scheduler
        self.stop_s = 8.0
        """From a job's being told to stop to its end."""
        self._told_to_stop: dict[str, float] = {}

    def reconcile_all(self) -> None:
        for job in self.store.select(JOBS):
            if "deletionTimestamp" in job["metadata"]:
                self._write_back(job, released)
            else:
                self._reconcile_job(job)
        for cluster in self.store.select(CLUSTERS):
            if "deletionTimestamp" not in cluster["metadata"]:
                self._reconcile_cluster(cluster)

    # RayJob.

    def _reconcile_job(self, job: Object) -> None:
        fault = job_faults(job)
        if fault:
            add_event(self.store, self.clock, job, "InvalidRayJobSpec", fault)
            self._job_status(job, jobDeploymentStatus="ValidationFailed", reason="ValidationFailed", message=fault)
            return
        if JOB_FINALIZER not in job["metadata"].get("finalizers", []):
            job = self._write_back(job, finalized)
        if job["spec"].get("suspend"):
            self._suspend_job(job)
            return
        status = job.get("status", {})
        if status.get("jobDeploymentStatus") in ("Complete", "Failed"):
            return
        selected = job["spec"].get("clusterSelector", {}).get("ray.io/cluster")
        if self.batch_scheduler == "scheduler-plugins" or (self.batch_scheduler == "volcano" and selected):
            return  # An error in its log, again and again: neither an event nor a status.
        name = selected or status.get("rayClusterName", "")
        cluster = self.store.find(CLUSTERS, name, job["metadata"]["namespace"])
        if cluster is None:
            self._start_job(job, selected)
        elif cluster.get("status", {}).get("state") == "ready":
            self._run_job(job, cluster)

    def _write_back(self, job: Object, change: Change) -> Object:
        """An update of the whole object: what it changes is the operator's own from then on."""
        meta = job["metadata"]
        return self.store.change(JOBS, meta["name"], meta["namespace"], change, Write(manager="kuberay-operator"))

    def _run_job(self, job: Object, cluster: Object) -> None:
        """Submit the command, then follow it; here it is only made believe."""
        status = job.get("status", {})
        if status.get("jobStatus") != "RUNNING":
            self._job_status(job, jobDeploymentStatus="Running", jobStatus="RUNNING", jobId=job["metadata"]["uid"])
        elif self.clock.now - self._told_to_stop.get(status["jobId"], self.clock.now) >= self.stop_s:
            self._complete_job(job)

    def stop_job(self, job_id: str) -> None:
        """What its dashboard does when asked; the job takes its time."""
        self._told_to_stop[job_id] = self.clock.now

    def _complete_job(self, job: Object) -> None:
        """A job that was stopped is not tried again, and takes its own cluster along."""
        self._job_status(job, jobDeploymentStatus="Complete", jobStatus="STOPPED")
        if job["spec"].get("shutdownAfterJobFinishes"):
            self.store.delete(CLUSTERS, job["status"]["rayClusterName"], job["metadata"]["namespace"])

    def _start_job(self, job: Object, selected: str | None) -> None:
        meta = job["metadata"]
        if selected:
            self._job_status(job, jobDeploymentStatus="Initializing", rayClusterName=selected, jobStatus="")
            return
        name = f"{meta['name']}-{uuid.uuid4().hex[:5]}"
        cluster = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": {**meta.get("labels", {}), "ray.io/originated-from-cr-name": meta["name"]},
                "annotations": meta.get("annotations", {}),
                "ownerReferences": [owner(job)],
            },
            "spec": copy.deepcopy(job["spec"]["rayClusterSpec"]),
        }
        self.store.create(CLUSTERS, cluster)
        self._job_status(job, jobDeploymentStatus="Initializing", rayClusterName=name, jobStatus="")

    def _suspend_job(self, job: Object) -> None:
        meta, name = job["metadata"], job.get("status", {}).get("rayClusterName")
        if name and self.store.find(CLUSTERS, name, meta["namespace"]):
            self.store.delete(CLUSTERS, name, meta["namespace"])
        self._job_status(job, jobDeploymentStatus="Suspended", rayClusterName="")

    def _job_status(self, job: Object, **fields: Any) -> None:
        set_status(self.store, job, JOBS, **fields, observedGeneration=job["metadata"]["generation"])

    def finish_job(self, name: str, namespace: str) -> None:
        """The job's command has ended with 0: KubeRay takes its cluster away."""
        job = self.store.get(JOBS, name, namespace)
        self._job_status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
        self.store.delete(CLUSTERS, job["status"]["rayClusterName"], namespace)

    def retry_job(self, name: str, namespace: str) -> None:
        """The command has ended otherwise, within the backoffLimit: KubeRay begins again, with pods of its own."""
        job = self.store.get(JOBS, name, namespace)
        head = next(iter(self.store.select("pods", namespace)))
        self._job_status(job, jobDeploymentStatus="Retrying", jobStatus="FAILED", failed=1)
        add_event(self.store, self.clock, head, "DeletedHeadPod", "the job is tried again")
        self.store.delete(CLUSTERS, job["status"]["rayClusterName"], namespace)

    def fail_job(self, name: str, namespace: str, *, reason: str, message: str) -> None:
        """The job itself ended: its driver exited, or nobody answered its dashboard."""
        job = self.store.get(JOBS, name, namespace)
        self._job_status(job, jobDeploymentStatus="Failed", jobStatus="FAILED", reason=reason, message=message)
        if job["spec"].get("shutdownAfterJobFinishes"):
            self.store.delete(CLUSTERS, job["status"]["rayClusterName"], namespace)

    # RayCluster.

    def _reconcile_cluster(self, cluster: Object) -> None:
        fault = cluster_faults(cluster)
        if fault:
            # The status stays as it was, empty at first: only the event tells.
            add_event(self.store, self.clock, cluster, "InvalidRayClusterSpec", fault)
            return
        if cluster["spec"].get("suspend"):
            self._suspend_cluster(cluster)
            return
        self._ensure_services(cluster)
        self._recycle(cluster)
        denied = self._ensure_pods(cluster)
        self._cluster_status(self.store.get(CLUSTERS, *self._place(cluster)), denied)

    def _place(self, cluster: Object) -> tuple[str, str]:
        return cluster["metadata"]["name"], cluster["metadata"]["namespace"]

    def _pods(self, cluster: Object) -> list[Object]:
        name, namespace = self._place(cluster)
        return self.store.select("pods", namespace, f"ray.io/cluster={name}")

    def _suspend_cluster(self, cluster: Object) -> None:
        for pod in self._pods(cluster):
            self.store.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])
        rows = condition(cluster, "RayClusterSuspended", "True", "", "", self.clock.stamp())
        set_status(self.store, cluster, CLUSTERS, state="suspended", conditions=rows)

    def _ensure_services(self, cluster: Object) -> None:
        if token_wanted(cluster) and self.store.find("secrets", *self._place(cluster)) is None:
            self.store.create("secrets", token_secret(cluster, owner(cluster)))
        for service in services(cluster, owner(cluster)):
            if self.store.find("services", service["metadata"]["name"], service["metadata"]["namespace"]) is None:
                self.store.create("services", service)

    def _recycle(self, cluster: Object) -> None:
        """A dead pod is deleted, with its whole replica where that has several hosts; another is made in its place."""
        pods = self._pods(cluster)
        dead = [pod for pod in pods if pod["status"].get("phase") in ("Failed", "Succeeded")]
        replicas = {_replica(pod) for pod in dead} | self._incomplete(cluster, pods)
        for pod in pods:
            if pod in dead or (_replica(pod) is not None and _replica(pod) in replicas):
                role = pod["metadata"]["labels"]["ray.io/node-type"].capitalize()
                if "deletionTimestamp" in pod["metadata"]:
                    continue
                add_event(self.store, self.clock, cluster, f"Deleted{role}Pod", deletion(pod), "Normal")
                self.store.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])

    def _incomplete(self, cluster: Object, pods: list[Object]) -> set[str | None]:
        """Replicas that lack a host: one was deleted, or could not be created."""
        hosts = {group["groupName"]: group.get("numOfHosts", 1) for group in worker_groups(cluster)}
        counts = Counter((_replica(pod), pod["metadata"]["labels"]["ray.io/group"]) for pod in pods if _replica(pod))
        return {replica for (replica, group), count in counts.items() if count < hosts[group]}

    def _ensure_pods(self, cluster: Object) -> StatusError | None:
        """Create what is missing; the first denial is returned and told as an event."""
        there = [pod["metadata"]["labels"] for pod in self._pods(cluster)]
        wanted = [] if any(row["ray.io/node-type"] == "head" for row in there) else [head_pod(cluster, owner(cluster))]
        for group in worker_groups(cluster):
            # A pod that is Terminating still counts, so none is made in its place.
            rows = [row for row in there if row["ray.io/group"] == group["groupName"]]
            taken = {int(row["ray.io/worker-group-replica-index"]) for row in rows}
            free = [index for index in range(group.get("replicas", 0)) if index not in taken]
            for index in free:
                wanted += replica_pods(cluster, group, index, owner(cluster))
        for pod in wanted:
            self._schedule_by(pod)
            try:
                created = self.store.create("pods", pod)
            except StatusError as error:
                add_event(self.store, self.clock, cluster, _denial(pod), f"Failed to create Pod: {error.message}")
                return error
            set_status(self.store, created, "pods", phase="Pending")
        return None

    def _schedule_by(self, pod: Object) -> None:
        if self.batch_scheduler:
            pod["spec"]["schedulerName"] = SCHEDULERS.get(self.batch_scheduler, self.batch_scheduler)

    def _cluster_status(self, cluster: Object, denied: StatusError | None) -> None:
        pods = self._pods(cluster)
        workers = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"]
        head = next((pod for pod in pods if pod not in workers), None)
        head_ready = head is not None and condition_is(head, "Ready")
        ready = sum(condition_is(pod, "Ready") for pod in workers)
        desired = sum(group.get("replicas", 0) * group.get("numOfHosts", 1) for group in worker_groups(cluster))
        stamp, rows = self.clock.stamp(), {"status": dict(cluster.get("status", {}))}
        reason = "HeadPodRunningAndReady" if head_ready else "HeadPodNotReady"
        rows["status"]["conditions"] = condition(rows, "HeadPodReady", str(head_ready), reason, "", stamp)
        rows["status"]["conditions"] = self._denied(rows, denied, stamp)
        fields: Object = {}
        if head_ready and ready == desired:
            rows["status"]["conditions"] = condition(
                rows, "RayClusterProvisioned", "True", "AllPodRunningAndReadyFirstTime", "", stamp
            )
            fields["state"] = "ready"
        set_status(
            self.store,
            cluster,
            CLUSTERS,
            **fields,
            head={"serviceName": f"{cluster['metadata']['name']}-head-svc"},
            conditions=rows["status"]["conditions"],
            observedGeneration=cluster["metadata"]["generation"],
            desiredWorkerReplicas=desired,
            readyWorkerReplicas=ready,
            availableWorkerReplicas=sum(pod["status"].get("phase") == "Running" for pod in workers),
        )

    def _denied(self, cluster: Object, denied: StatusError | None, stamp: str) -> list[Object]:
        if denied is not None:
            return condition(cluster, "ReplicaFailure", "True", "FailedCreateWorkerPod", denied.message, stamp)
        return [row for row in cluster["status"]["conditions"] if row["type"] != "ReplicaFailure"]


def owner(obj: Object) -> Object:
    """The reference by which deleting `obj` deletes what it owns."""
    meta = obj["metadata"]
    named = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {**named, "controller": True, "blockOwnerDeletion": True}


def _replica(pod: Object) -> str | None:
    labels: dict[str, str] = pod["metadata"]["labels"]
    return labels.get("ray.io/worker-group-replica-name")


def _denial(pod: Object) -> str:
    role = pod["metadata"]["labels"]["ray.io/node-type"].capitalize()
    return f"FailedCreate{role}Pod"
