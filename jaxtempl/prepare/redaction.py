"""Redaction during preparation: the policy of a config, and the facts that the manifest holds of it."""

import dataclasses
from collections import Counter
from typing import Any

import msgspec

from jaxtempl.config.data import PrepareConfig
from jaxtempl.errors import UserError
from jaxtempl.text.cases import Redact
from jaxtempl.text.redaction.policy import Policy, read_policy


@dataclasses.dataclass(frozen=True)
class Redaction:
    """The redaction of one preparation.

    Attributes:
        policy: Policy; None leaves everything as it is.
        redact: Function that redacts a case; None without a policy.
        counts: Number of values replaced so far, by type.
    """

    policy: Policy | None = None
    redact: Redact | None = None
    counts: Counter[str] = dataclasses.field(default_factory=Counter[str])

    @classmethod
    def of(cls, config: PrepareConfig) -> "Redaction":
        """Return the redaction that a config requests.

        Raises:
            UserError: The policy cannot be read, or placeholders are numbered without one.
        """
        policy = requested_policy(config)
        if policy is None:
            return cls()
        from jaxtempl.text.redaction.redact import Redactor  # loads metadata of telephone numbers

        redactor = Redactor(policy)
        return cls(policy, redactor.messages, redactor.counts)

    def facts(self) -> dict[str, Any] | None:
        """Return the policy, its digest, and the counts by type; None without a policy."""
        if self.policy is None:
            return None
        counts = dict(sorted(self.counts.items()))
        return {"policy": msgspec.to_builtins(self.policy), "digest": self.policy.digest, "counts": counts}


def requested_policy(config: PrepareConfig) -> Policy | None:
    """Return the policy that a config requests, or None; raises as `Redaction.of`."""
    if not config.redact:
        if config.number_placeholders:
            raise UserError("number_placeholders is given without a policy; pass --redact=default or --redact=FILE")
        return None
    policy = read_policy(config.redact)
    return msgspec.structs.replace(policy, numbered=True) if config.number_placeholders else policy
