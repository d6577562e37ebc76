"""The Starlette application: every route, and the order in which a request passes through."""

from importlib.metadata import version

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.api.auth import KeyFile, KeyGuard
from serving.api.embeddings import Embeddings
from serving.api.errors import ErrorBoundary, hand_on
from serving.api.limits import KeyLimits
from serving.api.metrics import Metrics
from serving.api.openai import OpenAI
from serving.api.openapi import document
from serving.api.origins import CrossOrigin, Origins, StrangerGuard, own_names
from serving.api.predict import Predict
from serving.api.prepare import Preparer
from serving.api.static import static_routes
from serving.api.status import StatusPages
from serving.api.tracing import trace_to
from serving.config import Config
from serving.gateway.service import Service


def create_app(service: Service, config: Config, ip: str = "127.0.0.1", host: str | None = None) -> Starlette:
    """The application over a service, which the caller starts and stops. `ip`: of the node that it runs on.

    `host`: where it is reached; as configured unless told otherwise.
    Raises `ConfigError` when `security.api_keys_file` cannot be read, `OperatorError` when a package is missing.
    """
    preparer = Preparer(config, service.tokenizer)
    openai, pages = OpenAI(service, preparer, config), StatusPages(service, config, preparer.defaults, ip)
    metrics = Metrics(service)
    routes = [
        Route("/predict", Predict(service, preparer, config).predict, methods=["POST"]),
        Route("/v1/completions", openai.completions, methods=["POST"]),
        Route("/v1/chat/completions", openai.chat, methods=["POST"]),
        Route("/v1/embeddings", Embeddings(service, preparer, config).embeddings, methods=["POST"]),
        Route("/v1/models", openai.models),
        Route("/v1/models/", openai.models),
        Route("/v1/models/{model:path}", openai.model),
        Route("/healthz", pages.healthz),
        Route("/readyz", pages.readyz),
        Route("/v1/status", pages.status),
        Route("/metrics", metrics.page),
        Route("/openapi.json", _OpenApi(config).page),
        *static_routes(),
    ]
    middleware = [Middleware(ErrorBoundary, answered=metrics.answered)]
    if config.observe.otlp_endpoint is not None:
        middleware.insert(0, trace_to(config.observe.otlp_endpoint, service))
    security = config.security
    origins = Origins(security.allowed_origins)
    if origins:
        middleware.insert(0, Middleware(CrossOrigin, origins=origins))
    if security.api_keys_file is None:
        names = own_names(host or config.http.host, security.allowed_hosts)
        middleware.append(Middleware(StrangerGuard, names=names, origins=origins))
    else:
        middleware.append(Middleware(KeyGuard, keys=KeyFile(security.api_keys_file), limits=KeyLimits(security)))
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: hand_on})
    app.router.redirect_slashes = False  # a redirect names a scheme, and the client sends its prompt once more
    return app


class _OpenApi:
    """`GET /openapi.json`, made once."""

    def __init__(self, config: Config) -> None:
        self._document = document(f"Gangway: {config.model.name}", version("gangway"))

    async def page(self, _request: Request) -> Response:
        return JSONResponse(self._document)
