"""Every setting, grouped by owner, frozen, checked at construction and documented beneath itself.

`load_config` is the only way in. Each part of the program is handed its own section, never the whole tree.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from serving.addresses import has_credentials
from serving.config.sources import Section, explain, override_all, read_yaml
from serving.errors import ConfigError


class ModelConfig(Section):
    """Which model, and how it is read."""

    path: Path
    """Folder with `config.json`, `*.safetensors` and the tokenizer. Must exist on every node, under the same path."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Dtype of weights, activations and the KV cache. float32 repeats Hugging Face's logits to about 1e-4."""

    max_model_len: int = Field(default=2048, ge=8)
    """Longest prompt plus answer, in tokens. Bounds the KV blocks one request can take."""

    served_name: str | None = None
    """Name that clients ask for; the folder's name when not set."""

    generation_config: Literal["auto", "none"] = "auto"
    """auto: where a request sets none, temperature, top_p, top_k, min_p, repetition_penalty and (as max_tokens, but in
    completions) max_new_tokens are those of the model's `generation_config.json`, as far as it has them; its authors
    know which text is good. none: 1, no cut and no penalty, as OpenAI documents. End tokens are read either way."""

    trust_remote_code: bool = False
    """Run a tokenizer's Python code from the model folder, with the server's rights. A model's own is never run."""

    shard_cache: Path | None = Path("~/.cache/gangway/shards")
    """Where each rank keeps its own shard, so that a restart maps it straight back. `null` turns the cache off."""

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.served_name or self.path.absolute().name


class ParallelConfig(Section):
    """How the model is spread over processes and nodes."""

    tensor_parallel_size: int = Field(default=2, ge=1, le=512)
    """Ranks that hold the model together; each computes its own heads."""

    cpus_per_rank: int = Field(default=1, ge=1)
    """CPUs that Ray reserves for a rank, and the threads that it computes with on a CPU."""

    gpus_per_rank: int = Field(default=0, ge=0, le=1)
    """GPUs of a rank: 0 computes on CPUs over gloo, 1 on a GPU over NCCL."""

    placement: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    """Ray's placement strategy. PACK fills a node first, as traffic is between ranks; STRICT_SPREAD: one a node."""

    balance_mlp: bool = False
    """Where the heads do not divide by the ranks, give a rank with fewer heads more of the MLP, so that all hold about
    the same. On CPUs steps of 192 tokens and more end sooner; in others the ranks wait for each other twice a layer."""


class EngineConfig(Section):
    """Limits that every step obeys."""

    max_batched_tokens: int = Field(default=512, ge=16)
    """Token budget of one step, of decode and prefill together. Larger raises throughput and a prefill's pause."""

    max_running: int = Field(default=64, ge=1)
    """Most requests that are computed together."""

    block_size: int = Field(default=16, ge=1)
    """Tokens in a KV block. Smaller wastes less at a request's end and shares shorter prefixes; larger means fewer."""

    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the KV cache of each rank, in GiB."""

    prefix_cache: bool = True
    """Compute equal prefixes once. Turn off to measure without it."""

    native_kernels: bool = True
    """Use this project's CPU kernels where the processor has AVX-512 with bfloat16. Off, torch's operators do all."""

    @model_validator(mode="after")
    def _budget_holds_every_decode(self) -> Self:
        if self.max_batched_tokens < self.max_running:
            raise ValueError("max_batched_tokens must be at least max_running, or some decode would wait every step")
        return self


class HttpConfig(Section):
    """The edge."""

    host: str = "127.0.0.1"
    """Address to bind. Anything but loopback needs `security.api_keys_file` or `security.insecure`. Prompts and keys
    cross as plain text: configs/tls has a proxy that puts TLS before it."""

    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the Ray Serve proxy."""

    max_waiting: int = Field(default=256, ge=0)
    """Requests that may wait for a place among the running ones; one more is answered 429."""

    max_waiting_tokens: int = Field(default=1_000_000, ge=1)
    """Prompt tokens that may wait in all, so that memory does not grow with the queue."""

    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Largest request body; a larger one is answered 413."""

    body_timeout_s: float = Field(default=30.0, gt=0)
    """Longest a request body may take to arrive; one that drips in is answered 408. HAProxy, in front, gives up a
    connection on which nothing at all has moved for a minute: keep this below."""

    headers_after_s: float = Field(default=10.0, gt=0)
    """Longest a stream that is silent waits with its headers, in seconds. Before that an error has a status of its own;
    after that it is the last event."""

    comment_every_s: float = Field(default=15.0, gt=0)
    """Silence after which a stream says a comment, in seconds: keep it below the idle limit of any proxy before."""

    max_inputs: int = Field(default=64, ge=1)
    """Prompts in one request, times `n`."""

    max_embedding_inputs: int = Field(default=2048, ge=1, le=10_000)
    """Inputs in one request for embeddings. They wait outside of the queue, of which they never take more than half."""

    @field_validator("host", mode="before")
    @classmethod
    def _all_of_ipv6(cls, host: object) -> object:
        """YAML takes a bare `::` for a mapping."""
        return "::" if host == {":": None} else host


class FaultConfig(Section):
    """When to give up on a peer, a step, a group."""

    peer_timeout_s: float = Field(default=5.0, gt=0)
    """Silence after which a rank is taken for dead, in seconds. Must outlast a slow network's worst pause."""

    step_timeout_s: float = Field(default=60.0, gt=0)
    """Longest a step may take before its process gives itself up, in seconds."""

    max_restarts: int = Field(default=5, ge=0)
    """Restarts within `restart_window_s` before the group is failed for good."""

    restart_window_s: float = Field(default=600.0, gt=0)
    """Window in which restarts are counted, in seconds."""

    warm_spares: bool = True
    """Keep a process ready on every node that could take over a rank: seconds less of silence for some memory there."""

    drain_timeout_s: float = Field(default=30.0, ge=0)
    """How long running requests may go on after SIGTERM, in seconds."""


class BatchConfig(Section):
    """What `gangway batch` does otherwise than a server: nobody waits for a token, so steps are long."""

    max_running: int = Field(default=128, ge=1)
    """In place of `engine.max_running`, as far as `engine.max_batched_tokens` allows."""

    balance_mlp: bool = True
    """In place of `parallel.balance_mlp`, on CPUs: on GPUs no two halves of a step take turns."""


class SecurityConfig(Section):
    """Who may ask."""

    api_keys_file: Path | None = None
    """File with one bearer key a line, optionally `name:key`; reloaded when it changes. Not set: no keys asked for.

    Keys of one name share the limits below and a prefix cache; different names never share a cached prefix."""

    max_concurrent_per_key: int = Field(default=0, ge=0)
    """Requests (POST) that the keys of one name may have running or waiting, streams included; one more is answered
    429. A request of several prompts is one: `http.max_inputs` bounds those. 0: no limit but the queue's."""

    requests_per_minute_per_key: int = Field(default=0, ge=0, le=1_000_000)
    """Requests (POST) that the keys of one name may begin within any 60 seconds, wrong ones included; one more is
    answered 429, with the seconds after which it would be taken. 0: no limit."""

    allowed_origins: tuple[Annotated[str, Field(pattern=r"^(\*|[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+)$")], ...] = ()
    """Web pages that may ask from a browser besides the server's own, as in https://chat.example:8443, or `*` for all.
    They get CORS headers and answers to preflights. Without keys a page from anywhere else is answered 403."""

    allowed_hosts: tuple[str, ...] = ()
    """Names, without a port, by which the server may be asked besides localhost, 127.0.0.0/8 and ::1; `*` for all.
    Looked at without keys only, where `http.host` is loopback or this is set: else a web page whose name is made to
    mean 127.0.0.1 could ask. Another name is answered 403."""

    insecure: bool = False
    """Allow a bind beyond loopback without keys; `gangway serve --insecure` sets it."""

    @property
    def limits_keys(self) -> bool:
        """Whether there is a limit per key, which is nothing without keys; on Kubernetes those are named elsewhere."""
        return bool(self.max_concurrent_per_key or self.requests_per_minute_per_key)


class ObserveConfig(Section):
    """What an operator sees besides `/metrics`."""

    log_json: bool = False
    """Log one JSON object a line, in every process of the group, for a log collector. Off: lines for people."""

    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/]")
    """Collector that takes traces by OTLP over HTTP, such as http://localhost:4318; needs `gangway[trace]`. Not set:
    nothing is traced, and OpenTelemetry is not imported. It holds no credentials, as settings are shown: those are
    headers in the environment variable OTEL_EXPORTER_OTLP_HEADERS, such as `authorization=Bearer%20KEY`."""

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint_can_be_shown(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        if has_credentials(endpoint) or set("@?#") & set(endpoint):
            raise ValueError(
                "an endpoint is scheme, host, port and path; credentials are headers, which the environment variable "
                "OTEL_EXPORTER_OTLP_HEADERS holds"
            )
        _require_host_and_port(endpoint)
        return endpoint


def _require_host_and_port(url: str) -> None:
    """Raise `ValueError` unless a connection could be tried; a port that is not given is its scheme's."""
    try:
        possible = urlsplit(url).hostname and urlsplit(url).port != 0
    except ValueError:
        possible = False
    if not possible:
        raise ValueError(f"{url} has no host, or a port that is none")


class Config(Section):
    """The whole tree: one file, one reproducible run."""

    name: str = Field(default="gangway", pattern=r"^[a-z][a-z0-9-]{0,39}$")
    """Name of the group in its Ray cluster: the registry and the Serve application carry it."""

    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    engine: EngineConfig = EngineConfig()
    http: HttpConfig = HttpConfig()
    fault: FaultConfig = FaultConfig()
    security: SecurityConfig = SecurityConfig()
    observe: ObserveConfig = ObserveConfig()
    batch: BatchConfig = BatchConfig()

    @field_validator("parallel", "engine", "http", "fault", "security", "observe", "batch", mode="before")
    @classmethod
    def _empty_section_means_its_defaults(cls, section: object) -> object:
        return {} if section is None else section

    @model_validator(mode="after")
    def _exposed_only_in_so_many_words(self) -> Self:
        if not is_loopback(self.http.host) and self.security.api_keys_file is None and not self.security.insecure:
            raise ValueError(
                f"http.host {self.http.host} is reachable from outside: set security.api_keys_file, "
                "or say --insecure (security.insecure=true) to go without keys"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether a host is this machine to itself: localhost, 127.0.0.0/8 or ::1."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load_config(source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or a mapping), apply `section.key=value` overrides, and check all of it.

    Relative paths count from the working directory. Raises `ConfigError` with one sentence that names the key.
    """
    tree = dict(source) if isinstance(source, Mapping) else read_yaml(source)
    try:
        return Config.model_validate(override_all(tree, overrides))
    except ValidationError as error:
        where = "configuration" if isinstance(source, Mapping) else str(source)
        raise ConfigError(f"{where}: {explain(error, Config)}") from error


def dump_config(config: Config) -> str:
    """The whole tree as YAML, defaults included; `load_config` reads it back to an equal tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
