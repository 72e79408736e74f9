"""Webhooks go to the public internet and nowhere else, whatever their callers write."""

from __future__ import annotations

import pytest
from fal_backend.domain.webhook_guard import Allowed, UnsafeAddress, check_addresses, parse_hook

HOSTILE = [
    # No webhook at all, or another scheme.
    "",
    "/path",
    "//hook.example/",
    "hook.example",
    "file:///etc/passwd",
    "ftp://hook.example/",
    "gopher://hook.example:80/_GET",
    "javascript:alert(1)",
    "data:text/plain,x",
    "unix:///run/api.sock",
    "http:///path",
    "http://",
    "https://?x=1",
    # Users, and what readers of addresses disagree about.
    "http://user@hook.example/",
    "http://user:word@hook.example/",
    "http://hook.example@127.0.0.1/",
    "http://127.0.0.1#@hook.example/",
    "http://hook.example\\@127.0.0.1/",
    "http://127.0.0.1\\.hook.example/",
    "http://hook.example/\r\nX-Evil: 1",
    "http://hook.example/ HTTP/1.1",
    "http://hook\t.example/",
    "http://hook.example/\x00",
    "http://hook..example/",
    "http://-hook.example/",
    "http://hook%2eexample/",
    "http://%31%32%37.0.0.1/",
    "http://\uff11\uff12\uff17.0.0.1/",  # digits of another width
    "http://127。0。0。1/",
    "http://bücher.example/",
    f"http://{'a' * 64}.example/",
    f"http://hook.example/{'a' * 2048}",
    # This machine and its neighbours by name.
    "http://localhost/",
    "http://LOCALHOST:8080/",
    "http://localhost./",
    "http://x.localhost/",
    "http://metadata.google.internal/",
    "http://printer.local/",
    "http://router/",
    "http://backend.corp/",
    "http://hook.example./",
    # IPv4 as it is, and in other notations.
    "http://127.0.0.1/",
    "http://127.0.0.1./",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254./",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://192.88.99.1/",
    "http://256.1.1.1/",
    "http://1.2.3.4.5/",
    # IPv6, also with an IPv4 address inside.
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:808:808::1]/",
    "http://[2001:0:7f00:1::1]/",
    "http://[2a00:1450::5efe:127.0.0.1]/",
    "http://[2a00:1450::200:5efe:10.0.0.1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fec0::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[::1/",
    "http://[hook.example]/",
    # Ports of other services.
    "http://hook.example:22/",
    "http://hook.example:25/",
    "http://hook.example:6379/",
    "https://hook.example:0/",
    "https://hook.example:99999/",
    "https://hook.example:port/",
]

GOOD = {
    "https://hook.example": ("hook.example", 443, "/", "hook.example"),
    "HTTPS://Hook.Example/a%20b?c=d#e": ("hook.example", 443, "/a%20b?c=d", "hook.example"),
    "http://hook.example:8080/x": ("hook.example", 8080, "/x", "hook.example:8080"),
    "http://xn--bcher-kva.example/": ("xn--bcher-kva.example", 80, "/", "xn--bcher-kva.example"),
    "https://my_app.hook.example:443/": ("my_app.hook.example", 443, "/", "my_app.hook.example"),
    "https://8.8.8.8/": ("8.8.8.8", 443, "/", "8.8.8.8"),
    "https://[2a00:1450:4001:800::200e]/": (
        "2a00:1450:4001:800::200e",
        443,
        "/",
        "[2a00:1450:4001:800::200e]",
    ),
    "https://[64:ff9b::8.8.8.8]/": ("64:ff9b::8.8.8.8", 443, "/", "[64:ff9b::8.8.8.8]"),
}


def test_the_table_is_long_enough() -> None:
    assert len(set(HOSTILE)) >= 60


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_address_is_refused_as_it_is_written(url: str) -> None:
    with pytest.raises(UnsafeAddress) as refused:
        parse_hook(url)
    assert str(refused.value)


@pytest.mark.parametrize("url", GOOD)
def test_an_ordinary_address_is_taken_apart(url: str) -> None:
    target = parse_hook(url)
    assert (target.host, target.port, target.path, target.host_header) == GOOD[url]
    assert target.is_tls == url.lower().startswith("https:")


@pytest.mark.parametrize(
    "found",
    [
        [],
        ["127.0.0.1"],
        ["8.8.8.8", "10.0.0.1"],
        ["8.8.8.8", "::1"],
        ["::ffff:169.254.169.254"],
        ["64:ff9b::7f00:1"],
        ["2002:c0a8:101::"],
        ["fe80::1%lo"],
        ["168.63.129.16"],
        ["no address"],
    ],
)
def test_a_name_is_refused_when_one_of_its_addresses_is_not_public(found: list[str]) -> None:
    with pytest.raises(UnsafeAddress):
        check_addresses(parse_hook("https://hook.example/"), found)


def test_the_addresses_that_were_judged_are_the_ones_to_connect_to() -> None:
    target = parse_hook("https://hook.example/")
    judged = check_addresses(target, ["8.8.8.8", "2a00:1450::1", "8.8.8.8"])
    assert [str(one) for one in judged] == ["8.8.8.8", "2a00:1450::1"]


def test_operators_allow_hosts_and_networks_with_any_port() -> None:
    allowed = Allowed.parse(["127.0.0.1", "10.0.0.0/8", "[::1]", "Hooks.Internal"])
    for url in ("http://127.0.0.1:5000/", "http://10.1.2.3/", "http://[::1]:9/", "http://hooks.internal:1/"):
        target = parse_hook(url, allowed)
        check_addresses(target, [str(target.address or "192.168.0.9")], allowed)
    for url in ("http://127.0.0.2/", "http://2130706433/", "http://localhost/", "http://x.hooks.internal/"):
        with pytest.raises(UnsafeAddress):
            parse_hook(url, allowed)


def test_a_name_may_lead_into_an_allowed_network_through_the_usual_ports() -> None:
    allowed = Allowed.parse(["10.0.0.0/8"])
    target = parse_hook("http://hook.example:8080/", allowed)
    assert check_addresses(target, ["10.0.0.1"], allowed)
    with pytest.raises(UnsafeAddress):
        check_addresses(target, ["192.168.0.1"], allowed)


def test_an_allowed_name_does_not_let_its_address_be_asked_for_under_another_name() -> None:
    allowed = Allowed.parse(["hooks.internal"])
    with pytest.raises(UnsafeAddress):
        check_addresses(parse_hook("http://hook.example/", allowed), ["192.168.0.9"], allowed)


@pytest.mark.parametrize("word", ["", "10.0.0.1/8", "127.1", "http://x", "a b", "*"])
def test_a_word_that_allows_nothing_clear_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        Allowed.parse([word])
