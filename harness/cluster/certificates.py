"""Certificates of an encrypted cluster, from Dask's configuration or environment."""

from __future__ import annotations

from typing import Literal

from distributed import Security

from harness.cluster.address import Address
from harness.core.errors import HarnessError


def certificates(address: Address, role: Literal["client", "worker"]) -> Security | None:
    """What one side shows the other; None where the address is not encrypted.

    Raises:
        HarnessError: the configuration names none.
    """
    if not address.encrypted:
        return None
    security = Security(require_encryption=True)
    tls = security.get_tls_config_for_role(role)
    missing = [name for name in ("ca_file", "cert") if not tls.get(name)]
    if missing:
        key = "CA_FILE" if missing[0] == "ca_file" else f"{role.upper()}__CERT"
        raise HarnessError(
            f"{address.text} is encrypted, and nothing says which certificate to use",
            f"Set DASK_DISTRIBUTED__COMM__TLS__{key}; docs/scale.md has all of them.",
        )
    return security
