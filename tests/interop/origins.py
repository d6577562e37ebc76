"""Web pages of others, which a server without keys does not answer."""

from tests.interop.case import Asker, NotHere, case, error_of

FOREIGN = {"origin": "https://evil.example"}


def require_no_keys(ask: Asker) -> None:
    if ask.key is not None:
        raise NotHere("this server asks for keys, which a stranger's page has not")


@case
def a_page_from_elsewhere_is_refused(ask: Asker) -> None:
    require_no_keys(ask)
    for path in ("/predict", "/v1/completions", "/v1/embeddings"):
        answer = ask.post(path, {}, headers=FOREIGN)
        assert error_of(answer, 403)["code"] == "foreign_origin"
    assert error_of(ask.request("OPTIONS", "/predict", headers=FOREIGN), 403)["code"] == "foreign_origin"


@case
def a_foreign_name_is_refused_on_loopback(ask: Asker) -> None:
    require_no_keys(ask)
    if not any(own in ask.url for own in ("127.0.0.1", "localhost", "[::1]")):
        raise NotHere("this server is not asked on loopback")
    answer = ask.get("/v1/status", headers={"host": "evil.example"})
    if answer.is_success:
        raise NotHere("this server is bound beyond loopback")
    assert error_of(answer, 403)["code"] == "foreign_host"


@case
def the_probes_are_answered_whoever_asks(ask: Asker) -> None:
    for path in ("/healthz", "/readyz"):
        assert ask.get(path, headers=FOREIGN | {"host": "10.9.8.7"}).is_success


@case
def the_servers_own_page_is_answered(ask: Asker) -> None:
    assert ask.get("/v1/status", headers={"origin": ask.url}).is_success
