"""Cluster configurations: what is refused, with which words, and what the pods read."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from cluster.config.loader import dump_spec, load_spec, make_spec
from cluster.config.rules import warnings
from cluster.config.spec import KEYS_FILE, ClusterSpec
from cluster.errors import SpecError
from serving.config import load_config
from serving.errors import ConfigError
from tests.cluster.conftest import CONFIGS, ROOT, MakeSpec, changed_tree


def refusal(**changes: object) -> str:
    with pytest.raises(SpecError) as caught:
        make_spec(changed_tree(**changes))
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("cluster configuration: ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_whole_and_named_as_its_serving_configuration(path: Path) -> None:
    spec = load_spec(path)
    assert spec.serving == load_config(ROOT / "configs" / path.name)


def test_a_serving_configuration_is_found_from_the_file_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_spec(CONFIGS[0].absolute()).serving.model.name == "llama-3.1-405b-instruct"


def test_an_override_reaches_into_the_serving_configuration() -> None:
    spec = load_spec(CONFIGS[0], ["serving.engine.max_running=3", "nodes.head_selector.pool=cpu"])
    assert spec.serving.engine.max_running == 3
    assert spec.nodes.head_selector == {"pool": "cpu"}


def test_a_dump_makes_an_equal_configuration(make: MakeSpec) -> None:
    spec = make(gang={"scheduler": "kai", "queue": "q"}, env={"A": "1"})
    assert make_spec(dump_spec(spec)) == spec


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    assert refusal(nodes={"cuont": 2}) == "unknown key nodes.cuont; did you mean count?"
    assert (
        refusal(serving__engine={"max_runing": 2}) == "unknown key serving.engine.max_runing; did you mean max_running?"
    )
    assert refusal(nodes={"tolerations": [{"kee": "a"}]}) == "unknown key nodes.tolerations.0.kee; did you mean key?"
    assert refusal(storage__model={"clam": "x"}) == "unknown key storage.model.clam; did you mean claim?"


def test_a_serving_configuration_that_is_wrong_or_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("name: gang\nserving: serving.yaml\n")
    with pytest.raises(SpecError, match="serving: there is no file"):
        load_spec(path)
    (tmp_path / "serving.yaml").write_text("model: {path: x}\nengin: {}\n")
    with pytest.raises(SpecError, match=r"serving\.yaml: unknown key engin; did you mean engine\?"):
        load_spec(path)


def test_a_wrong_cluster_configuration_counts_as_a_wrong_configuration() -> None:
    assert issubclass(SpecError, ConfigError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Gang"}, "name: 'Gang' must be lower-case letters"),
        ({"name": "g" * 48}, "name: " + "g" * 48 + " has 48 characters; KubeRay takes 47 for a job"),
        ({"name": "g" * 54, "ray": {"kind": "cluster"}}, "KubeRay takes 53 for a cluster"),
        ({"nodes": {"count": 3}}, "is 16, but nodes.count x nodes.gpus_per_node is 3 x 8 = 24"),
        ({"nodes": {"gpus_per_node": 0}}, "nodes.gpus_per_node is 0, but serving.parallel.gpus_per_rank is 1"),
        (
            {"nodes": {"count": 3, "gpus_per_node": 0}, "serving__parallel": {"gpus_per_rank": 0}},
            "16 cannot be shared equally by 3 nodes",
        ),
        ({"serving__parallel": {"placement": "STRICT_SPREAD"}}, "each has 8: use PACK"),
        ({"serving__parallel": {"placement": "SPREAD"}, "nodes": {"spares": 1}}, "8 ranks on the spares"),
        (
            {"resources__worker": {"cpu": "15500m"}},
            "resources.worker.cpu 15500m is less than what its ranks reserve: 8 x 2",
        ),
        (
            {"resources": {"shm": "257Gi"}},
            "resources.shm 257Gi is part of resources.worker.memory 256Gi, which is less",
        ),
        ({"resources__worker": {"memory": "lots"}}, "resources.worker.memory: 'lots' is not a Kubernetes quantity"),
        ({"resources__head": {"cpu": 0, "memory": 1}}, "cpu and memory must be more than 0"),
        ({"ray": {"version": "2.52.1"}}, "ray.version 2.52.1 is too old: the first that works is 2.53.0"),
        ({"ray": {"version": "2.61.0"}}, "ray.version is 2.61.0, but image.ref"),
        ({"ray": {"version": "nightly"}}, "ray.version: "),
        ({"image": {"ref": "gangway"}}, "image.ref: "),
        ({"gang": {"scheduler": "scheduler-plugins"}}, "KubeRay refuses every RayJob with it"),
        ({"gang": {"scheduler": "kai"}}, "gang.queue: kai leaves pods without a queue pending"),
        ({"gang": {"scheduler": "kueue"}}, "gang.queue: kueue leaves pods without a queue pending"),
        ({"gang": {"queue": "q"}}, "gang.queue: the scheduler none has no queues"),
        ({"gang": {"scheduler": "yunikorn", "topology_level": "rack"}}, "nothing would obey it"),
        ({"gang": {"scheduler": "volcano", "topology_level": "rack"}}, "Volcano's is the number of a tier"),
        ({"gang": {"scheduler": "kai", "queue": "q", "topology_level": "rack"}}, "needs the name of its Topology"),
        ({"env": {"RAY_ADDRESS": "x"}}, "env: RAY_ADDRESS is KubeRay's own to set"),
        ({"secret_env": {"RAY_AUTH_TOKEN": {"secret": "a", "key": "b"}}}, "RAY_AUTH_TOKEN is KubeRay's own to set"),
        ({"env": {"NCCL_DEBUG": "INFO"}}, "env: NCCL_DEBUG has a setting of its own, network.nccl_debug"),
        ({"env": {"HF_TOKEN": "x"}}, "env: HF_TOKEN looks like a secret"),
        ({"env": {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=x"}}, "OTEL_EXPORTER_OTLP_HEADERS looks like a secret"),
        ({"env": {"AZURE_STORAGE_ACCOUNT_KEY": "x"}}, "AZURE_STORAGE_ACCOUNT_KEY looks like a secret"),
        ({"env": {"FSSPEC_S3_KEY": "x"}}, "FSSPEC_S3_KEY looks like a secret"),
        (
            {"env": {"HTTPS_PROXY": "http://user:pass@proxy:3128"}},
            "env.HTTPS_PROXY: http://***@proxy:3128 holds a credential, which the manifest would show",
        ),
        (
            {"service": {"annotations": {"hook": "https://host/?token=x"}}},
            "service.annotations.hook: https://host/?token=*** holds a credential",
        ),
        (
            {"serving__observe": {"otlp_endpoint": "http://user:pass@host:4318"}},
            "serving.observe.otlp_endpoint: an endpoint is scheme, host, port and path",
        ),
        ({"env": {"A": "1"}, "secret_env": {"A": {"secret": "a", "key": "b"}}}, "env: A is in secret_env as well"),
        ({"env": {"1A": "1"}}, "env.1A"),
        (
            {"serving__model": {"path": "models/tiny"}},
            "serving.model.path models/tiny is not in storage.model.mount_path",
        ),
        (
            {"serving__model": {"path": "/modelsx"}},
            "serving.model.path /modelsx is not in storage.model.mount_path /models",
        ),
        (
            {"serving__model": {"path": "/etc/gangway/m"}, "storage__model": {"mount_path": "/etc/gangway"}},
            "storage.model.mount_path /etc/gangway is in use by the image",
        ),
        ({"storage__model": {"host_path": "/m"}}, "storage.model: give claim or host_path, not both"),
        ({"storage__model": {"sub_path": "../x"}}, "storage.model: sub_path is a folder within a claim"),
        (
            {"security": {"api_keys_secret": None}},
            "name a Secret with bearer keys, or set serving.security.insecure=true",
        ),
        (
            {"security": {"api_keys_secret": None}, "serving__security": {"api_keys_file": "keys"}},
            "serving.security.api_keys_file keys is in no pod",
        ),
        (
            {
                "security": {"api_keys_secret": None},
                "serving__security": {"insecure": True, "max_concurrent_per_key": 3},
            },
            "serving.security: limits per key need security.api_keys_secret",
        ),
        ({"serving__http": {"port": 8265}}, "serving.http.port 8265 is one of Ray's own in a pod"),
        ({"network": {"host_network": True}}, "network.host_network: no NetworkPolicy holds there"),
        ({"network": {"rdma_resource": "nvidia.com/gpu"}}, "nvidia.com/gpu is no RDMA device"),
        ({"network": {"attachments": ["rail0"]}}, "network.attachments.0: "),
        ({"nodes": {"tolerations": [{"key": "a", "operator": "Equal"}]}}, "operator Equal needs a value"),
        ({"nodes": {"selector": {"-": "a"}}}, "is not a key of a label"),
        ({"namespace": "a.b"}, "namespace: 'a.b' is not a name of a namespace"),
    ],
)
def test_what_could_never_work_is_refused_in_words(changes: dict[str, object], words: str) -> None:
    assert words in refusal(**changes)


def test_ranks_on_cpus_are_shared_equally_by_the_pods(make: MakeSpec) -> None:
    spec = make(nodes={"count": 4, "gpus_per_node": 0}, serving__parallel={"gpus_per_rank": 0})
    assert spec.ranks_per_node == 4


def test_rdma_without_gpus_is_refused() -> None:
    changes = {"nodes": {"gpus_per_node": 0}, "serving__parallel": {"gpus_per_rank": 0}}
    assert "uses no RDMA" in refusal(**changes, network={"rdma_resource": "rdma/hca"})


def test_the_pods_read_a_configuration_that_listens_with_the_keys_of_the_secret(make: MakeSpec) -> None:
    config = make().config_in_pods()
    assert config.http.host == "0.0.0.0"
    assert str(config.security.api_keys_file) == "/etc/gangway-keys/keys"
    assert str(config.model.shard_cache) == "/var/cache/gangway/shards"
    assert config.model.served_name == "tiny"


def test_a_shard_cache_that_is_turned_off_stays_off(make: MakeSpec) -> None:
    assert make(serving__model={"shard_cache": None}).config_in_pods().model.shard_cache is None


def test_limits_per_key_hold_for_the_keys_of_the_secret(make: MakeSpec) -> None:
    security = (
        make(security={"api_keys_secret": "keys"}, serving__security={"requests_per_minute_per_key": 9})
        .config_in_pods()
        .security
    )
    assert (security.requests_per_minute_per_key, str(security.api_keys_file)) == (9, str(KEYS_FILE))


def test_warnings_name_what_works_and_is_not_as_it_should_be(make: MakeSpec) -> None:
    spec = make(
        image={"ref": "gangway:latest-of-ours"},
        network={"rdma_resource": "rdma/hca"},
        network_policy={"enabled": False},
        security={"api_keys_secret": None},
        serving__security={"insecure": True},
    )
    text = "\n".join(warnings(spec))
    for words in ("digest", "which Ray", "one by one", "every pod", "anyone who reaches", "locked memory"):
        assert words in text


def test_a_careful_configuration_has_no_warnings(make: MakeSpec) -> None:
    digest = "registry.example.com/gangway:0.1.0-ray2.60.0@sha256:" + "0" * 64
    assert warnings(make(image={"ref": digest}, gang={"scheduler": "volcano"})) == []


def test_every_setting_is_documented_beneath_itself() -> None:
    for name, field in ClusterSpec.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            for key, inner in section.model_fields.items():
                nested = isinstance(inner.annotation, type) and issubclass(inner.annotation, BaseModel)
                assert nested or inner.description, f"{name}.{key}"
        else:
            assert field.description, name
