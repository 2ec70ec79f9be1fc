"""What `deploy/edge.yaml` needs beside it: a self-signed certificate, keys of clients, and tokens, which expire.

    python deploy/make_secrets.py certificate gpu-host 192.0.2.7    # host names and IP addresses that clients ask
    python deploy/make_secrets.py key yard                          # prints a key for a client, here `yard`
    python deploy/make_secrets.py token yard --days 30              # prints a token, which does in place of a key

All of it lies in deploy/secrets, which only its owner can read. Envoy takes changed keys at once, and another
certificate when it is started again.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import ipaddress
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "secrets"
DAY_S = 86400
TYPE = "type.googleapis.com/envoy"


def certificate(folder: Path, names: list[str], days: int) -> None:
    """`server.crt` and `server.key`: valid for these host names and IP addresses, signed by itself, so that clients
    take `server.crt` as their `ca`. Makes what else Envoy wants to find: no keys yet, and a secret for tokens."""
    told = ",".join(f"{'IP' if _is_ip(name) else 'DNS'}:{name}" for name in names)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", f"/CN={names[0][:64]}", "-addext", f"subjectAltName={told}", "-days", str(days)]
    files = ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
    subprocess.run([*command, *files], check=True, stderr=subprocess.PIPE)
    _write_clients(folder, _clients(folder))
    _token_secret(folder)


def key(folder: Path, client: str) -> str:
    """A new key of that client, added to `keys.yaml`; its older ones are valid until somebody takes them out there."""
    clients, new = _clients(folder), f"sam3-{secrets.token_urlsafe(32)}"
    policy = clients.setdefault(client, {"permissions": [{"any": True}], "principals": []})
    policy["principals"].append({"header": {"name": "authorization", "string_match": {"exact": f"Bearer {new}"}}})
    _write_clients(folder, clients)
    return new


def token(folder: Path, client: str, days: float) -> str:
    """A token (JWT, RFC 7519, signed with HMAC and SHA-256) of that client for so many days."""
    claims = {"sub": client, "aud": "sam3", "exp": round(time.time() + days * DAY_S)}
    told = ".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{told}.{_base64(hmac.digest(_token_secret(folder), told.encode(), 'sha256'))}"


def _clients(folder: Path) -> dict[str, Any]:
    file = folder / "keys.yaml"
    if not file.exists():
        return {}
    (resource,) = yaml.safe_load(file.read_text())["resources"]
    return dict(resource["typed_config"]["rules"].get("policies", {}))


def _write_clients(folder: Path, policies: dict[str, Any]) -> None:
    """Envoy's filter (RBAC) that lets these clients in, in a file of its own, which it watches."""
    rules = {"action": "ALLOW", "policies": policies}
    filter_config = {"@type": f"{TYPE}.extensions.filters.http.rbac.v3.RBAC", "rules": rules}
    named = {"@type": f"{TYPE}.config.core.v3.TypedExtensionConfig", "name": "key", "typed_config": filter_config}
    _replace(folder / "keys.yaml", yaml.safe_dump({"resources": [named]}, sort_keys=False))


def _token_secret(folder: Path) -> bytes:
    """The secret that signs tokens: the only key of `jwks.json` (RFC 7517), made where there is none."""
    file = folder / "jwks.json"
    if not file.exists():
        made = {"kty": "oct", "alg": "HS256", "kid": "sam3", "k": _base64(secrets.token_bytes(32))}
        _replace(file, json.dumps({"keys": [made]}))
    written = json.loads(file.read_text())["keys"][0]["k"]
    return base64.urlsafe_b64decode(written + "=" * (-len(written) % 4))


def _replace(file: Path, text: str) -> None:
    """In one step: Envoy watches for a file that takes another one's place, and never reads half of one."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    os.replace(new, file)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what, days in (("certificate", "names", 365), ("key", "client", None), ("token", "client", 30)):
        made = verbs.add_parser(verb)
        made.add_argument(what, nargs="+" if what == "names" else None)
        if days is not None:
            made.add_argument("--days", type=int, default=days, help="until it expires; default: %(default)s")
    given = parser.parse_args()
    os.umask(0o077)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.verb == "certificate":
        try:
            certificate(given.folder, given.names, given.days)
        except subprocess.CalledProcessError as error:
            print(f"make_secrets: openssl refused: {error.stderr.decode().strip()}", file=sys.stderr)
            return 2
    else:
        print(key(given.folder, given.client) if given.verb == "key" else token(given.folder, given.client, given.days))
    return 0


if __name__ == "__main__":
    sys.exit(main())
