"""Attacks on a service from other sites, other names and other machines: none of them reaches the engine."""

import socket

import pytest

from compress.serve.access import Access, host_name
from compress.serve.page_files import FILES
from tests.serve.services import ask

CHAT = "/v1/chat/completions"
TOKEN = "a-token-of-24-characters"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},  # DNS rebinding
        {"host": "127.0.0.1.evil.example:7860"},
        {"host": "evil@127.0.0.1"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1:1"},  # another port is another origin
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_requests_of_other_sites_are_refused(client, engine, headers):
    response = client.post(CHAT, json=ask("hello"), headers=headers)
    assert response.status_code == 403 and engine.seen["requests"] == 0
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert client.get("/api/state", headers=headers).status_code == 403


def test_requests_of_the_page_itself_are_served(client):
    host = client.base_url.netloc.decode()
    headers = {"origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert client.post(CHAT, json=ask("hello"), headers=headers).status_code == 200


def test_a_link_on_another_site_opens_the_page_and_nothing_else(client):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/v1/models", headers=link).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_content_types_that_a_form_can_send_are_refused(client, engine, kind):
    body = b'{"model": "small", "messages": [{"role": "user", "content": "x"}]}'
    assert client.post(CHAT, content=body, headers={"content-type": kind}).status_code == 415
    assert client.post("/api/document", content=b"x", headers={"content-type": kind}).status_code == 415
    assert engine.seen["requests"] == 0


def test_two_host_headers_are_refused(client):
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
        assert b" 400 " in (line := connection.recv(4096).split(b"\r\n")[0]) or b" 403 " in line


def test_without_the_token_only_the_page_is_served(start, engine):
    client = start(Access(token=TOKEN))
    for path in FILES:
        assert client.get(path).status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": "Basic eDp5"}):
        assert client.post(CHAT, json=ask("hello"), headers=headers).status_code == 401
        assert client.get("/v1/models", headers=headers).status_code == 401
        assert client.get("/api/state", headers=headers).status_code == 401
    assert engine.seen["requests"] == 0
    assert client.post(CHAT, json=ask("hello"), headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_clients_token_never_reaches_the_engine(start, engine):
    client = start(Access(token=TOKEN))
    client.post(CHAT, json=ask("hello"), headers={"authorization": f"Bearer {TOKEN}"})
    assert TOKEN not in str(engine.seen)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/../../../etc/passwd",
        "//etc/passwd",
        "/page.js/../run.py",
    ],
)
def test_no_path_leads_to_a_file(client, path):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 404 " in answer.split(b"\r\n")[0] and b"root:" not in answer


def test_every_answer_has_the_strict_policy(client):
    for response in (client.get("/"), client.get("/none"), client.post(CHAT, json=ask("x")), client.get("/v1/models")):
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "set-cookie" not in response.headers
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in response.headers


def test_a_preflight_request_permits_nothing(client):
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    response = client.options(CHAT, headers=headers)
    assert response.status_code == 403 and "access-control-allow-origin" not in response.headers


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(client, engine):
    assert client.post(CHAT, json=ask("x" * 9_000_000)).status_code == 413
    assert engine.seen["requests"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        '"temperature": ' + "9" * 400,
        '"response_format": {"type": "json_schema", "json_schema": {"schema": {"maxItems": 1' + "0" * 400 + "}}}",
        '"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 1e999}}}',
        '"stop": "\\ud800"',
        '"\\ud800": 1',
        '"seed": ' + "[" * 980 + "]" * 980,
    ],
    ids=lambda text: text[:40],
)
def test_a_value_that_no_json_can_hold_is_a_fault_of_the_request(client, engine, fields):
    body = '{"model": "small", "messages": [{"role": "user", "content": "x"}], ' + fields + "}"
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and engine.seen["requests"] == 0


@pytest.mark.parametrize("answer", ["[" * 980 + "]" * 980, '"\\ud800"', "1e999"], ids=lambda text: text[:8])
def test_an_answer_that_no_json_can_hold_is_not_valid(client, answer):
    row = client.post("/api/validate", json={"schema": None, "answer": answer}).json()
    assert not row["valid"] and row["errors"]


def test_an_endless_stream_ends_at_the_limit(client):
    """1 GB without Content-Length: the service answers after 20 MB, and then serves others."""
    address = (client.base_url.host, client.base_url.port)
    head = (
        "POST /api/document HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/octet-stream\r\n"
        "transfer-encoding: chunked\r\n\r\n"
    )
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    sent = 0
    with socket.create_connection(address) as connection:
        connection.sendall(head.encode())
        try:
            for _ in range(1000):
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass
    assert 19 <= sent < 100
    assert client.get("/v1/models").status_code == 200


def test_the_page_names_no_other_origin():
    from compress.serve.page_files import content

    for name, _ in FILES.values():
        text = content(name).decode()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text, name
        assert "innerHTML" not in text and "outerHTML" not in text and "insertAdjacentHTML" not in text


def test_a_wildcard_address_accepts_addresses_but_no_foreign_names():
    access = Access("0.0.0.0", TOKEN, ("chat.example.org",))
    assert all(map(access.allows_host, ("192.168.1.5:7860", "chat.example.org", "CHAT.example.org:443", "[::1]:7860")))
    assert not any(map(access.allows_host, ("evil.example", "chat.example.org.evil.example", "a@chat.example.org")))


@pytest.mark.parametrize("header", ["", "a/b", "a?b", "a#b", "u@a", "[::1", "a:99999999"])
def test_a_malformed_host_has_no_name(header):
    assert host_name(header) is None
