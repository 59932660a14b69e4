"""AWS credentials as people have them: the environment, a profile's files, a command's answer, the machine's own role.

The order is that of AWS's own tools (https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html).
What those need more than files for (single sign-on, roles) the ``aws`` command is asked for.
"""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ems.cluster.provider import metadata
from ems.errors import ProviderError

_COMMAND_S = 60
_SOON = timedelta(minutes=5)
_HINT = "run `aws configure`, set AWS_PROFILE, or give the provider a `profile` in the definition"
#: What helps where a controller may not make machines.
OWN_HINT = "name an `instance_profile` under `provider:` in the definition, and start the cluster anew"


@dataclass(frozen=True, slots=True)
class Keys:
    """What requests are signed with; not shown by ``repr``.

    Attributes
    ----------
    expires
        From then on they are nothing; None: they stay.
    """

    id: str
    secret: str
    token: str = ""
    expires: datetime | None = None

    def __repr__(self) -> str:
        return f"Keys({self.id[:4]}…)"

    def is_fresh(self) -> bool:
        """Whether they last a while yet."""
        return self.expires is None or datetime.now(UTC) < self.expires - _SOON


def keys(profile: str | None = None) -> Keys:
    """Return the credentials of a profile, or those that AWS's own tools would use here.

    Raises
    ------
    ProviderError
        If there are none.
    """
    chosen = profile or os.environ.get("AWS_PROFILE")
    if profile is None and os.environ.get("AWS_ACCESS_KEY_ID"):
        said = os.environ
        return Keys(said["AWS_ACCESS_KEY_ID"], said.get("AWS_SECRET_ACCESS_KEY", ""), said.get("AWS_SESSION_TOKEN", ""))
    found = _of_profile(chosen or "default")
    if found is None and chosen is None:
        found = _of_role()
    if found is None:
        whose = f"the profile `{chosen}`" if chosen else "AWS"
        raise ProviderError(f"there are no credentials for {whose} here", _HINT)
    return found


def region(profile: str | None = None) -> str | None:
    """Return the region that the environment or the profile says."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if os.environ.get(name):
            return os.environ[name]
    return _settings(profile or os.environ.get("AWS_PROFILE") or "default").get("region")


def _settings(profile: str) -> dict[str, str]:
    """Return what both of AWS's files say of a profile."""
    home = Path.home() / ".aws"
    config = Path(os.environ.get("AWS_CONFIG_FILE") or home / "config")
    secrets = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials")
    section = profile if profile == "default" else f"profile {profile}"
    return {**_section(config, section), **_section(secrets, profile)}


def _section(path: Path, name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path.expanduser(), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        raise ProviderError(f"{path} cannot be read", "it has lines `[NAME]` and `key = value`") from None
    return dict(parser.items(name)) if parser.has_section(name) else {}


def _of_profile(profile: str) -> Keys | None:
    said = _settings(profile)
    if said.get("aws_access_key_id"):
        return Keys(said["aws_access_key_id"], said.get("aws_secret_access_key", ""), said.get("aws_session_token", ""))
    if said.get("credential_process"):
        return _of_command(shlex.split(said["credential_process"]))
    if any(key.startswith(("sso_", "role_", "source_", "login_")) for key in said):
        if not shutil.which("aws"):
            raise ProviderError(f"the profile `{profile}` needs the `aws` command, which is not here", "install awscli")
        return _of_command(["aws", "configure", "export-credentials", "--profile", profile, "--format", "process"])
    return None


def _of_command(words: Sequence[str]) -> Keys:
    """Return what a command prints; https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProviderError(f"`{words[0]}` gives no credentials: {error}", _HINT) from None
    if done.returncode:
        raise ProviderError(f"`{words[0]}` gives no credentials: {done.stderr.strip()[-300:]}", "aws sso login")
    try:
        return _parsed(json.loads(done.stdout))
    except (ValueError, KeyError):
        raise ProviderError(f"`{words[0]}` gives no credentials that can be read", _HINT) from None


def _parsed(said: dict[str, Any]) -> Keys:
    token = said.get("SessionToken") or said.get("Token") or ""
    ends = said.get("Expiration")
    return Keys(said["AccessKeyId"], said["SecretAccessKey"], token, datetime.fromisoformat(ends) if ends else None)


def own_keys() -> Keys:
    """Return the credentials of the role that this machine of EC2's has.

    Raises
    ------
    ProviderError
        If it has none.
    """
    found = _of_role()
    if found is None:
        raise ProviderError("this machine has no role at AWS", OWN_HINT)
    return found


def own_region() -> str:
    """Return the region that this machine of EC2's is in; empty where it is none."""
    try:
        return _told("meta-data/placement/region")
    except OSError:
        return ""


def _of_role() -> Keys | None:
    """Return the credentials of the role that this machine has, if it is one of EC2's (IMDSv2)."""
    path = "meta-data/iam/security-credentials/"
    try:
        return _parsed(json.loads(_told(path + _told(path).split()[0])))
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _told(path: str) -> str:
    """Return what EC2 tells this machine, by a session's token (IMDSv2)."""
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true" or not base.startswith("http"):
        raise OSError("this machine's metadata are not to be asked for")
    base += "/latest"
    token = metadata.ask(f"{base}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "300"}, "PUT")
    return metadata.ask(f"{base}/{path}", {"X-aws-ec2-metadata-token": token})
