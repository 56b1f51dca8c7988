import pytest

from src.console.cli import UserError
from src.search.addresses import Address, is_local, looks_like_address, masked, shortened


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("https://user:secret@example.org/v1", "https://***@example.org/v1"),
        ("https://secret@example.org/v1", "https://***@example.org/v1"),
        ("https://example.org/v1?api_key=secret&api-version=3", "https://example.org/v1?api_key=***&api-version=3"),
        ("https://example.org/v1?secret", "https://example.org/v1?***"),
        ("https://example.org/v1#secret", "https://example.org/v1"),
        # A password with signs that should have been written otherwise
        ("https://user:sec/ret@example.org/v1", "https://***@example.org/v1"),
        ("https://user:sec?ret@example.org/v1", "https://***@example.org/v1"),
        ("https://user:sec#ret@example.org/v1", "https://***@example.org/v1"),
        ("https://user:sec@ret@example.org/v1", "https://***@example.org/v1"),
        ("https://user:sec://ret@example.org/v1", "https://***@example.org/v1"),
        ("user:secret@example.org:8000/v1", "***@example.org:8000/v1"),
        ("https://example.org/v1/@cf/meta", "https://example.org/v1/@cf/meta"),
    ],
)
def test_passwords_and_keys_are_masked(url: str, shown: str) -> None:
    assert masked(url) == shown == masked(shown)


def test_an_address_knows_its_parts() -> None:
    address = Address("https://us%40er:p%2Fw@[::1]:8000/v1?api_key=k%20y&api-version=2#x", key="schlüssel")
    assert str(address) == f"{address}" == "https://***@[::1]:8000/v1?api_key=***&api-version=2"
    assert (address.plain, address.query) == ("https://[::1]:8000/v1", {"api_key": "k y", "api-version": "2"})
    assert address.login == ("us@er", "p/w")
    assert address.hide("p/w p%2Fw k y k+y k%20y schlüssel 2") == "*** *** *** *** *** *** 2"
    assert Address("http://host").login is None and Address("http://host").secrets == []


@pytest.mark.parametrize(
    "url", ["http://user:pass/word@host/v1", "ftp://u:pass@host", "http://", "http://host:99999999"]
)
def test_what_is_no_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UserError, match=r"is no address; allowed: http://HOST:PORT/v1") as caught:
        Address(url)
    assert "pass" not in str(caught.value).replace("password", "")


def test_an_address_without_its_scheme_is_no_model() -> None:
    assert all(
        map(looks_like_address, ("localhost:8000/v1", "u:p@host:8000", "http://h", "10.0.0.1:1", "[::1]:8000/v1"))
    )
    assert not any(map(looks_like_address, ("Qwen/Qwen2-7B", "models/a:1b", "./m", "qwen2.5:7b", "C:/m")))


def test_what_stays_on_this_machine() -> None:
    assert is_local("http://localhost:1/v1") and is_local("http://u:p@127.0.0.1/v1") and is_local("http://[::1]:1")
    assert not is_local("http://localhost.example.org/v1") and not is_local("http://localhost@example.org")


def test_a_long_answer_is_shown_on_one_line() -> None:
    assert shortened("a\n b\u2028c") == "a b c" and len(shortened("x" * 999)) == 200
