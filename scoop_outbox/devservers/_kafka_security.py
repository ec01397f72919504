"""What a Kafka that demands TLS and a password is set up with."""

import secrets
from pathlib import Path
from typing import Final

from scoop_outbox.devservers._server import write_secret
from scoop_outbox.devservers._tls import certificates

USER: Final = "scoop"

_PLAIN: Final = "org.apache.kafka.common.security.plain.PlainLoginModule"
_OAUTHBEARER: Final = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
_SCRAM: Final = "org.apache.kafka.common.security.scram.ScramLoginModule"


class SaslSsl:
    """Clients have to come by TLS and to name a user and a password, by PLAIN or SCRAM-SHA-512.

    The user is no superuser: what somebody grants to another user alone, it may not do. Where nothing has
    been granted to anybody, all is allowed. The brokers talk to each other without any of this.

    Args:
        folder: the folder of the cluster; the secrets are kept there.
    """

    def __init__(self, folder: Path) -> None:
        self._files = certificates(folder / "tls")
        self.ca_file = self._files.authority
        self._store = folder / "tls" / "broker.pem"
        write_secret(self._store, self._files.server_key.read_text("ascii") + self._files.server.read_text("ascii"))
        password = folder / "password"
        if not password.exists():
            write_secret(password, secrets.token_hex(24))
        self.password = password.read_text("ascii")

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the brokers."""
        return {
            "listener.security.protocol.map": "CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "listener.name.client.ssl.keystore.type": "PEM",
            "listener.name.client.ssl.keystore.location": str(self._store),
            "listener.name.client.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.client.plain.sasl.jaas.config": f'{_PLAIN} required user_{USER}="{self.password}";',
            "listener.name.client.scram-sha-512.sasl.jaas.config": f"{_SCRAM} required;",
            # By default a broker believes every token that nobody has signed.
            "listener.name.client.oauthbearer.sasl.jaas.config": f"{_OAUTHBEARER} required;",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "true",
        }

    @property
    def format_options(self) -> tuple[str, ...]:
        """What has to be in a node's data from the beginning."""
        return ("--add-scram", f"SCRAM-SHA-512=[name={USER},password={self.password}]")
