"""A module that Python has on macOS only; `urllib`, and so torch, imports it there."""


def _get_proxy_settings():
    return {}


def _get_proxies():
    return {}
