"""A broker that asks for TLS and a password (SASL_SSL, SCRAM-SHA-512), with an authority and a user of its own."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.infrastructure import kafka_settings
from tests.infrastructure.servers import KafkaServer, free_port

USER, PASSWORD = "enricher", "correct-horse-battery"


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM texts: the authority's certificate, the server's, and the server's private key (PKCS 8)."""

    authority: str
    server: str
    server_key: str


def new_certificates(host: str) -> Certificates:
    """An authority that nobody else trusts, and a certificate by it for `host`, an IP address."""
    now = datetime.datetime.now(datetime.UTC)

    def builder(name: str, key: ec.EllipticCurvePrivateKey, issuer: str) -> x509.CertificateBuilder:
        subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer))
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(by).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        return made.not_valid_after(now + datetime.timedelta(days=1))

    own, servers = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = builder("test authority", own, "test authority").add_extension(x509.BasicConstraints(True, 0), critical=True)
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    server = builder("broker", servers, "test authority").add_extension(addresses, critical=False)
    return Certificates(
        authority=authority.sign(own, hashes.SHA256()).public_bytes(Encoding.PEM).decode(),
        server=server.sign(own, hashes.SHA256()).public_bytes(Encoding.PEM).decode(),
        server_key=servers.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    )


def secured(environment: dict[str, str], certificates: Certificates, *, host: str, port: int) -> tuple[dict[str, str], str]:
    """The environment and the start script of a broker whose only outer listener, on `port`, asks for TLS and a password."""
    inner = free_port()
    lines = environment["KAFKA_TEST_PROPERTIES"].splitlines()
    kept = dict(line.split("=", 1) for line in lines)
    controller = kept["listeners"].rsplit(",", 1)[1]
    listen = kept["listeners"].removeprefix("PLAINTEXT://").split(",")[0]
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    kept |= {
        "listeners": f"SASL_SSL://{listen},INNER://127.0.0.1:{inner},{controller}",
        "advertised.listeners": f"SASL_SSL://{host}:{port},INNER://127.0.0.1:{inner},{controller}",
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "INNER",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": login,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": certificates.server.replace("\n", "\\n"),
        "ssl.keystore.key": certificates.server_key.replace("\n", "\\n"),
    }
    user = f"--add-scram 'SCRAM-SHA-512=[name={USER},password={PASSWORD}]'"
    script = kafka_settings.START_SCRIPT.replace("format --standalone", f"format --standalone {user}")
    return {**environment, "KAFKA_TEST_PROPERTIES": "".join(f"{name}={value}\n" for name, value in kept.items())}, script


class SecureKafkaServer(KafkaServer):
    """`authority` is a file with the certificate that clients must trust."""

    authority: Path

    def properties(self, *, password: str = PASSWORD) -> dict[str, str | int | float | bool]:
        """What a client needs beside the address."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": USER,
            "sasl.password": password,
            "ssl.ca.location": str(self.authority),
        }

    def _obstacle(self) -> str | None:
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0, **self.properties()})
        try:
            admin.list_topics(timeout=5)
        except KafkaException as error:
            return str(error)
        return None
