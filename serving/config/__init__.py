"""Every setting, and how settings are read."""

from serving.config.schema import (
    BatchConfig,
    Config,
    EngineConfig,
    FaultConfig,
    HttpConfig,
    ModelConfig,
    ObserveConfig,
    ParallelConfig,
    SecurityConfig,
    dump_config,
    is_loopback,
    load_config,
)

__all__ = [
    "BatchConfig",
    "Config",
    "EngineConfig",
    "FaultConfig",
    "HttpConfig",
    "ModelConfig",
    "ObserveConfig",
    "ParallelConfig",
    "SecurityConfig",
    "dump_config",
    "is_loopback",
    "load_config",
]
