"""What the environment and hostile servers do to a request: no secret leaves, and each failure is one clear line."""

import asyncio
import gzip
import json
import socket
import time
import tracemalloc
import zlib

import pytest

from eraseanything_core.concepts import chat_client, credentials, llm, network
from eraseanything_core.concepts.answer import Question
from scripts.chat_server import ChatServer, answers, completion, fails, says

KEY = "sk-secret-0123456789"
QUESTION = Question("nude", ("nude", "naked"), count=1, prompts=True)
GOOD = {"no_relation": [["cloud", 0.1]], "far": [["hot", 0.3]], "mid": [["image", 0.5]]}
GOOD |= {"prompts": ["a nude girl"], "neighbours": ["swimsuit"], "neutral": "a dressed person"}
ELSEWHERE = "http://server.example:9/v1"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*PROXIES, *map(str.lower, PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.delenv(name, raising=False)


def ask(url, tmp_path, key=KEY, timeout=20.0):
    return asyncio.run(llm.ask(QUESTION, llm.Server(url, "m", timeout), key, tmp_path))


def failure(url, tmp_path, timeout=20.0, key=KEY):
    with pytest.raises(llm.ServerError) as caught:
        ask(url, tmp_path, key, timeout)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500 and KEY not in text
    return text


BAD_PROXIES = {
    "ALL_PROXY": "socks://127.0.0.1:9",
    "all_proxy": "socks5://127.0.0.1:9",
    "HTTP_PROXY": "http://user:password@127.0.0.1:99999",
    "http_proxy": "ftp://user:password@127.0.0.1:9",
}


@pytest.mark.parametrize("variable", BAD_PROXIES)
def test_no_proxy_for_a_server_on_this_machine(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, BAD_PROXIES[variable])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with ChatServer(says(GOOD)) as server:
        assert ask(server.url, tmp_path).neutral == "a dressed person"
        assert ask(server.url.replace("127.0.0.1", "localhost"), tmp_path).neutral == "a dressed person"


@pytest.mark.parametrize("variable", BAD_PROXIES)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(variable, tmp_path, monkeypatch):
    if "socks5" in BAD_PROXIES[variable]:
        monkeypatch.setattr(network.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv(variable, BAD_PROXIES[variable])
    with pytest.raises(network.NetworkError, match=f"^{variable} ") as caught:
        network.proxy_for(ELSEWHERE)
    assert "password" not in str(caught.value)


def test_a_bad_proxy_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    assert failure(ELSEWHERE, tmp_path) == (
        "ALL_PROXY names the proxy 'socks://127.0.0.1': use http://, https:// or socks5://, or unset it"
    )


def test_only_the_proxy_that_applies_is_looked_at(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://")
    monkeypatch.setenv("HTTP_PROXY", "proxy.example:3128")
    assert network.proxy_for(ELSEWHERE) == network.Proxy("http://proxy.example:3128", "HTTP_PROXY")
    monkeypatch.setenv("NO_PROXY", "::1,192.168.0.0/16,.example")
    assert network.proxy_for(ELSEWHERE) is None


@pytest.mark.parametrize(
    "entry, url",
    [
        ("192.168.0.0/16", "http://192.168.1.5:8000/v1"),
        ("192.168.1.5:8000", "http://192.168.1.5:8000/v1"),
        ("fd00::/8", "http://[fd00::5]:8000/v1"),
        ("[2001:db8::1]", "http://[2001:db8::1]/v1"),
        ("*.corp.example", "http://llm.corp.example/v1"),
        ("llm.example:80", "http://llm.example/v1"),
    ],
)
def test_what_no_proxy_names_is_asked_at_once(entry, url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    assert network.proxy_for(url).variable == "HTTP_PROXY"
    monkeypatch.setenv("NO_PROXY", f"other.example, {entry}")
    assert network.proxy_for(url) is None
    assert network.proxy_for("http://172.16.0.1:1/v1").variable == "HTTP_PROXY"


@pytest.mark.parametrize("url", ["http://pro xy:1", "http://proxy\x7f:1", "http://999.1.1.1:1", "http://proxy:\n1"])
def test_a_proxy_that_the_http_client_would_not_take_is_named(url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", url)
    with pytest.raises(network.NetworkError, match="^HTTP_PROXY "):
        network.proxy_for(ELSEWHERE)


def test_blanks_around_a_proxy_are_left_out(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", " http://proxy.example:3128\n")
    assert network.proxy_for(ELSEWHERE) == network.Proxy("http://proxy.example:3128", "HTTP_PROXY")


def test_a_proxy_is_used_and_named_when_it_does_not_run(tmp_path, monkeypatch):
    with ChatServer(says(GOOD)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url[:-3])
        ask(ELSEWHERE, tmp_path)
    assert proxy.requests[0]["path"] == "http://server.example:9/v1/chat/completions"
    monkeypatch.setattr(chat_client, "RETRIES", 0)
    reason = failure("http://other.example/v1", tmp_path)
    assert "cannot be reached: check base_url, and that the proxy of HTTP_PROXY and the server run" in reason


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"])
def test_certificates_that_are_missing_are_named_by_their_variable(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, str(tmp_path / "missing" / "file"))
    assert failure("https://127.0.0.1:9/v1", tmp_path).startswith(f"{variable} names ")


def test_a_file_without_certificates_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty.pem").write_text("nothing")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    assert "which holds no certificates" in failure("https://127.0.0.1:9/v1", tmp_path)


HEADERS = ("X-Secret", "Authorization", "Host", "Accept", "Content-Type", "User-Agent", "Cookie", "OpenAI-Project")
SECRET = {
    "OPENAI_CUSTOM_HEADERS": "\n".join(f"{name}: of-the-environment" for name in HEADERS),
    "OPENAI_ORG_ID": "of-the-environment",
    "OPENAI_PROJECT_ID": "of-the-environment",
    "OPENAI_API_KEY": "of-the-environment",
    "OPENAI_ADMIN_KEY": "of-the-environment",
    "OPENAI_BASE_URL": "http://of-the-environment/v1",
    "OPENAI_WEBHOOK_SECRET": "of-the-environment",
    "AZURE_OPENAI_API_KEY": "of-the-environment",
}


@pytest.mark.parametrize("key", [KEY, None])
def test_nothing_of_the_environment_is_sent(key, tmp_path, monkeypatch):
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password of-the-environment")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with ChatServer(fails(400), answers(b"", 307, location="/v1/again"), says(GOOD)) as server:
        ask(server.url, tmp_path, key)
    assert len(server.requests) == 3 and "of-the-environment" not in str(server.requests)
    for request in server.requests:
        assert request["headers"].get("authorization") == (f"Bearer {key}" if key else None)
        assert request["headers"]["host"] == server.url.split("/")[2]


def test_openai_itself_gets_its_own_settings_and_no_others(monkeypatch):
    headers = {"openai-organization": "org", "openai-project": "project", "x-secret": "x", "accept": "*/*"}
    own = chat_client.allowed_headers(headers, credentials.origin(credentials.OPENAI), KEY)
    other = chat_client.allowed_headers(headers, "https://api.openai.com.evil.example:443", KEY)
    assert set(other) == {"accept", "content-type", "accept-encoding", "authorization"}
    assert own == other | {"openai-organization": "org", "openai-project": "project"}


@pytest.mark.parametrize("variable", ["OPENAI_CUSTOM_HEADERS", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"])
def test_a_header_of_the_environment_that_cannot_be_is_named(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "X: schlüssel")
    assert failure(ELSEWHERE, tmp_path).startswith(f"{variable} holds letters that no HTTP header takes")


def test_a_name_that_stands_for_a_link_local_address_is_not_asked(tmp_path, monkeypatch):
    async def resolve(self, host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 0))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    reason = failure("http://metadata.example/v1", tmp_path)
    assert reason == "metadata.example stands for the link-local address 169.254.169.254, which is not asked"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "::1", "localhost", "a.localhost", "0.0.0.0"])
def test_names_of_this_machine(host):
    assert network.is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example", "128.0.0.1", "192.168.0.1", "fe80::1", "127.example"])
def test_names_of_others(host):
    assert not network.is_loopback(host)


BOMB = gzip.compress(b"x" * 300_000_000, 1)


@pytest.mark.parametrize("status", [200, 400, 401])
def test_a_compressed_body_is_read_within_bounds(status, tmp_path):
    with ChatServer(answers(BOMB, status, content_encoding="gzip")) as server:
        tracemalloc.start()
        reason = failure(server.url, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert server.requests[0]["headers"]["accept-encoding"] == "identity"
    assert peak < 40_000_000, f"{peak:,} bytes"
    assert "larger than 1,000,000 bytes" in reason if status == 200 else "refuses the" in reason


@pytest.mark.parametrize("encoding, pack", [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_small_body_may_be_compressed_though_it_was_not_asked_for(encoding, pack, tmp_path):
    body = pack(completion(json.dumps(GOOD)))
    with ChatServer(answers(body, content_encoding=encoding)) as server:
        assert ask(server.url, tmp_path).neutral == "a dressed person"


@pytest.mark.parametrize("encoding, body", [("gzip", b"no gzip"), ("br", b"x"), ("x" * 5_000, b"x")])
@pytest.mark.parametrize("status", [200, 400])
def test_a_body_that_cannot_be_unpacked_is_one_line(encoding, body, status, tmp_path):
    with ChatServer(answers(body, status, content_encoding=encoding)) as server:
        failure(server.url, tmp_path)


def test_an_error_of_megabytes_is_cut_while_it_is_read(tmp_path):
    with ChatServer(answers(b'{"error": {"message": "' + b"x" * 30_000_000, 401)) as server:
        assert "refuses the credential" in failure(server.url, tmp_path)


def test_reading_an_answer_counts_as_waiting_for_it(tmp_path, monkeypatch):
    def read_slowly(text):
        time.sleep(1.5)
        return []

    monkeypatch.setattr(llm, "json_objects", read_slowly)
    with ChatServer(says(GOOD)) as server:
        assert "did not answer within 0.5 s" in failure(server.url, tmp_path, timeout=0.5)


REASONS = {
    "OpenAI": ({"error": {"message": "the model is loading"}}, "the model is loading"),
    "Ollama": ({"error": "the model is loading"}, "the model is loading"),
    "FastAPI": ({"detail": [{"loc": ["body"], "msg": "the model is loading"}]}, "the model is loading"),
    "message": ({"code": 3, "message": "the model is loading"}, "the model is loading"),
    "OpenRouter": ({"choices": [{"error": {"message": "the model is loading"}}]}, "the model is loading"),
    "with its key": ({"error": {"message": f"{'x' * 140} {KEY}"}}, f"{'x' * 140} ***"),
    "a page": (b"<html><head><style>p {}</style></head><h1>502</h1>\n<p>the model is loading</p>", "502 the model is"),
    "text": (b"the model is loading", "the model is loading"),
    "a lone surrogate": (rb'{"error": "\ud800 loading"}', r"\ud800 loading"),
}


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
@pytest.mark.parametrize("name", REASONS)
def test_the_reason_of_a_server_reaches_the_user(name, status, tmp_path):
    body, reason = REASONS[name]
    with ChatServer(answers(body, status, x_should_retry="false", retry_after_ms="1")) as server:
        assert reason in failure(server.url, tmp_path)


def test_an_error_in_a_200_may_be_about_the_format_too(tmp_path):
    with ChatServer(answers({"error": "response_format is not supported"}), says(GOOD)) as server:
        ask(server.url, tmp_path)
    assert ["response_format" in request["body"] for request in server.requests] == [True, False]


@pytest.mark.parametrize(
    "message, reason",
    [
        ({"content": None, "refusal": "I cannot help with that"}, "the model refuses: 'I cannot help with that'"),
        ({"content": ""}, "the model wrote nothing before the server's limit of length"),
    ],
)
def test_a_model_that_writes_nothing_says_why(message, reason, tmp_path):
    finish = "stop" if "refusal" in message else "length"
    with ChatServer(answers({"choices": [{"finish_reason": finish, "message": message}]})) as server:
        assert reason in failure(server.url, tmp_path)


LEAKS = {
    "neutral": GOOD | {"neutral": f"a person {KEY}"},
    "prompts": GOOD | {"prompts": [f"a nude girl {KEY}"]},
    "neighbours": GOOD | {"neighbours": [KEY]},
    "a word": GOOD | {"mid": [[KEY, 0.5]]},
    "behind a cut": GOOD | {"mid": [["x" * 75 + KEY, 0.5]]},
    "another key": GOOD | {KEY: KEY},
}


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("is_escaped", [False, True])
def test_a_key_that_comes_back_is_neither_shown_nor_kept(name, is_escaped, tmp_path):
    text = json.dumps(LEAKS[name])
    if is_escaped:
        text = text.replace(KEY, "".join(f"\\u{ord(letter):04x}" for letter in KEY))
    with ChatServer(says(text)) as server:
        try:
            shown = str(ask(server.url, tmp_path))
        except llm.ServerError as error:
            shown = str(error)
    kept = "".join(path.read_text() for path in tmp_path.iterdir())
    asked = str([request["body"] for request in server.requests])
    assert KEY[:8] not in shown + kept + asked
