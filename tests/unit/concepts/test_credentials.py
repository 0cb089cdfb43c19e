"""Keys: where they come from, and that none goes where it does not belong or is shown."""

import json

import pytest

from eraseanything_core.concepts.credentials import (
    CredentialError,
    check_credential_name,
    find_key,
    has_key,
    origin,
    scrub,
    scrub_values,
)

KEY = "sk-secret-0123456789"
HOME = "https://llm.example/v1"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("ERASE_LLM_API_KEY", "ERASE_LLM_BASE_URL", "ERASE_LLM_API_KEY_LAB", "ERASE_LLM_BASE_URL_LAB"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path):
    entries = {"lab": {"key": f" {KEY}\n", "base_url": HOME}, "default": {"key": "other"}}
    (tmp_path / "credentials.json").write_text(json.dumps(entries))
    return tmp_path


def test_no_key_is_none(tmp_path):
    assert find_key("default", HOME, tmp_path) is None and not has_key("default", tmp_path)


def test_a_key_of_the_file(file):
    assert find_key("lab", "https://LLM.example:443/v1/", file) == KEY and has_key("lab", file)
    assert find_key("default", "https://api.openai.com/v1", file) == "other"
    assert find_key("unknown", HOME, file) is None


def test_the_environment_comes_first(file, monkeypatch):
    monkeypatch.setenv("ERASE_LLM_API_KEY", "first")
    assert find_key("default", "https://api.openai.com/v1", file) == "first"
    monkeypatch.setenv("ERASE_LLM_API_KEY_LAB", "second")
    monkeypatch.setenv("ERASE_LLM_BASE_URL_LAB", "http://127.0.0.1:9/v1")
    assert find_key("lab", "http://127.0.0.1:9/v1", file) == "second"


@pytest.mark.parametrize(
    "base_url",
    ["https://evil.example/v1", "http://llm.example/v1", "https://llm.example:444/v1", "https://llm.example.evil.com"],
)
def test_a_key_goes_only_to_the_address_that_it_was_stored_with(base_url, file):
    with pytest.raises(CredentialError, match="'lab' is for https://llm.example:443: it is not sent to") as caught:
        find_key("lab", base_url, file)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", ["", "../lab", "a b", KEY, "x" * 41])
def test_a_name_that_may_be_a_key_is_refused_and_not_repeated(name):
    with pytest.raises(CredentialError, match="must be a short name") as caught:
        check_credential_name(name)
    assert not name or name not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"lab": "key"}', '{"lab": {"base_url": "x"}}', '{"lab": {"key": 3}}'])
def test_a_file_that_is_wrong_says_how_it_must_look(content, tmp_path):
    (tmp_path / "credentials.json").write_text(content)
    with pytest.raises(CredentialError, match=r'credentials.json must hold \{"lab": \{"key"'):
        find_key("lab", HOME, tmp_path)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk one", "schlüssel"])
def test_a_key_that_no_header_takes_is_refused_and_not_repeated(key, tmp_path):
    (tmp_path / "credentials.json").write_text(json.dumps({"lab": {"key": key, "base_url": HOME}}))
    with pytest.raises(CredentialError, match="the key of the credential 'lab' holds blanks") as caught:
        find_key("lab", HOME, tmp_path)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "base_url, reason",
    [
        ("api.openai.com/v1", "must be an address such as"),
        ("file:///etc/passwd", "must be an address such as"),
        ("https://user:secret@host/v1", "must hold no user, password or query"),
        ("https://host/v1?key=secret", "must hold no user, password or query"),
        ("http://host:port/v1", "must be an address such as"),
        ("http://host:0/v1", "must be an address such as"),
        ("gopher://host:70/v1", "must be an address such as"),
        ("ftp://host/v1", "must be an address such as"),
        ("//host/v1", "must be an address such as"),
        ("https://good.example\\.evil.example/v1", "must be an address such as"),
        ("https://good.example\t.evil.example/v1", "must be an address such as"),
        ("https://good%2eexample/v1", "must be an address such as"),
        ("http://169.254.169.254/latest", "link-local address 169.254.169.254"),
        ("http://2852039166/v1", "link-local address"),
        ("http://0xa9fea9fe/v1", "link-local address"),
        ("http://169.254.43518/v1", "link-local address"),
        ("http://[fe80::1]:8080/v1", "link-local address fe80::1"),
        ("http://[::ffff:169.254.169.254]/v1", "link-local address"),
    ],
)
def test_an_address_is_one_of_http_without_secrets(base_url, reason):
    with pytest.raises(CredentialError, match=reason) as caught:
        origin(base_url)
    assert "secret" not in str(caught.value)


def test_addresses_of_people_are_taken():
    assert origin("http://[::1]:8080/v1") == "http://[::1]:8080"
    assert origin(" http://my-server.local:11434/v1 ") == "http://my-server.local:11434"
    assert origin("HTTPS://My_Name.openai.azure.com/openai/v1") == "https://my_name.openai.azure.com:443"
    assert origin("http://192.168.1.7:8000/v1") == "http://192.168.1.7:8000"


def test_a_key_is_taken_out_of_a_text_in_any_casing_and_a_short_one_only_as_a_word():
    assert scrub(f"your key {KEY.upper()}!", KEY) == "your key ***!"
    assert scrub("the fox has key x", "x") == "the fox has key ***"
    assert scrub("the fox", None) == "the fox"
    assert scrub_values({"a": [f"is {KEY}", 3, {KEY: None}]}, KEY) == {"a": ["is ***", 3, {"***": None}]}
