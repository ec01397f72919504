"""Certificates for servers that demand TLS: an authority made for one folder, and what it signs."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError
from scoop_outbox.devservers._server import LOOPBACK

_DAYS: Final = "3650"
_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_EXTENSIONS: Final = f"""\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:{LOOPBACK}, DNS:localhost
"""


class Certificates(NamedTuple):
    """Files, all in PEM: the authority that a client has to trust, and what the server and a client show."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def certificates(folder: Path) -> Certificates:
    """Return the certificates of a folder; the first call makes them.

    Raises:
        ServerNotFoundError: there is no openssl.
        ServerStartError: it could not make them.
    """
    made = Certificates(*(folder / f"{name}.pem" for name in ("ca", "server", "server-key", "client", "client-key")))
    if not made.client.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        _make_authority(folder)
        (folder / "extensions").write_text(_EXTENSIONS, encoding="ascii")
        for name in ("server", "client"):
            _sign(folder, name)
    return made


def _make_authority(folder: Path) -> None:
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    names = ("-subj", "/CN=scoop-outbox test authority", *usage)
    _openssl(folder, "req", "-x509", *_NEW_KEY, "-days", _DAYS, *names, "-keyout", "ca-key.pem", "-out", "ca.pem")


def _sign(folder: Path, name: str) -> None:
    request = ("-subj", f"/CN={name}", "-keyout", f"{name}-key.pem", "-out", f"{name}.csr")
    _openssl(folder, "req", "-new", *_NEW_KEY, *request)
    signer = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", "extensions")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-days", _DAYS, *signer, "-out", f"{name}.pem")


def _openssl(folder: Path, *arguments: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        msg = "A server with TLS needs certificates, and there is no openssl here (Debian: apt-get install openssl)."
        raise ServerNotFoundError(msg)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENSSL_")}
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        msg = f"openssl could not make certificates in {folder}:\n{done.stderr[-1000:]}"
        raise ServerStartError(msg)
