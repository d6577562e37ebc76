"""From a model to a running gang on Kubernetes: `gangway cluster`. Knows `serving.config` and `serving.errors` only."""
