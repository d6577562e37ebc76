"""The batch job's documents: what the head runs and mounts, and which places no pod would find."""

import pytest

from cluster.errors import SpecError
from cluster.k8s.names import MAX_JOB_NAME
from cluster.manifests.batch_job import batch_documents, batch_spec
from cluster.manifests.kuberay_validation import refusal
from tests.cluster.conftest import MakeSpec
from tests.cluster.definitions import Definition

BATCH = {"mount_path": "/work", "claim": "rows"}


def test_a_batch_job_is_a_gang_of_its_own_that_ends(make: MakeSpec, definitions: dict[str, Definition]) -> None:
    documents = batch_documents(make(storage__batch=BATCH), ["/work/in.jsonl", "/work/o ut.jsonl", "--resume"])
    job = documents[-1]
    assert "Service" not in {document["kind"] for document in documents}
    assert job["metadata"]["name"] == "gang-batch"
    assert job["spec"]["entrypoint"].endswith("/work/in.jsonl '/work/o ut.jsonl' --resume --address auto")
    assert (job["spec"]["shutdownAfterJobFinishes"], job["spec"]["backoffLimit"]) == (True, 3)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in head["containers"][0]["volumeMounts"]}
    assert mounts == {"/etc/gangway": True, "/models": True, "/etc/gangway-keys": True, "/work": False}
    assert definitions["RayJob"].problems(job) == []
    assert refusal(job) is None


@pytest.mark.parametrize("place", ["in.jsonl", "/elsewhere/in.jsonl", "/work/../in.jsonl", "s3://rows/in.jsonl"])
def test_a_place_that_no_pod_reaches_is_refused(make: MakeSpec, place: str) -> None:
    with pytest.raises(SpecError, match=r"no pod would find|NetworkPolicy"):
        batch_documents(make(storage__batch=BATCH), [place, "/work/out.jsonl"])


def test_addresses_need_no_volume_where_the_network_is_open(make: MakeSpec) -> None:
    places = ["s3://rows/in.jsonl", "s3://rows/out.jsonl"]
    job = batch_documents(make(network_policy__enabled=False), places)[-1]
    assert " ".join(places) in job["spec"]["entrypoint"]


@pytest.mark.parametrize(
    "more",
    [
        ["s3://KEY:SECRET@rows/in.jsonl", "s3://rows/out.jsonl"],
        ["s3://rows/in.jsonl", "https://rows.example.com/out.jsonl?X-Amz-Signature=SECRET"],
        ["s3://rows/in.jsonl", "s3://rows/out.jsonl?secret_key=SECRET"],
        ["s3://rows/in.jsonl", "s3://rows/out.jsonl", "--set", "observe.otlp_endpoint=http://user:SECRET@host"],
    ],
)
def test_a_credential_that_the_manifest_would_show_is_refused_without_showing_it(
    make: MakeSpec, more: list[str]
) -> None:
    with pytest.raises(SpecError, match=r"holds a credential.* secret_env, such as AWS_ACCESS_KEY_ID") as caught:
        batch_documents(make(network_policy__enabled=False), more)
    assert "SECRET" not in str(caught.value).replace("AWS_SECRET_ACCESS_KEY", "")


def test_keys_for_an_object_store_reach_the_command_by_reference(make: MakeSpec) -> None:
    secret = {"AWS_SECRET_ACCESS_KEY": {"secret": "bucket", "key": "secret"}}
    places = ["s3://rows/in.jsonl?region=here", "s3://rows/out.jsonl?region=here"]
    job = batch_documents(make(network_policy__enabled=False, secret_env=secret), places)[-1]
    env = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    (found,) = (variable for variable in env if variable["name"] == "AWS_SECRET_ACCESS_KEY")
    assert found["valueFrom"] == {"secretKeyRef": {"name": "bucket", "key": "secret"}}


@pytest.mark.parametrize("call", [[], ["/work/in.jsonl"], ["/work/in.jsonl", "--resume"]])
def test_a_missing_output_is_refused(make: MakeSpec, call: list[str]) -> None:
    with pytest.raises(SpecError, match="needs an INPUT and an OUTPUT"):
        batch_documents(make(storage__batch=BATCH), call)


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        ({"mount_path": "/work"}, "needs a claim or a host_path"),
        (BATCH | {"mount_path": "/models"}, "a mount_path each"),
    ],
)
def test_a_volume_that_keeps_no_rows_is_refused(make: MakeSpec, volume: dict[str, str], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        make(storage__batch=volume)


def test_a_long_name_leaves_room_for_the_ending(make: MakeSpec) -> None:
    job = batch_spec(make(name="g" * MAX_JOB_NAME))
    assert len(job.name) == MAX_JOB_NAME
    assert job.name.endswith("-batch")
