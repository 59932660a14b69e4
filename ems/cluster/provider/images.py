"""Base images: a distribution with systemd, sshd and cloud-init, as clouds offer them.

Pulled from a hub where one answers, else made by debootstrap; kept on this machine for all clusters. They trust the
certificate authorities that this machine was told to trust, and use its proxies.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ems.cluster.provider.engine import Engine
from ems.errors import ProviderError

_PACKAGES = (
    "systemd systemd-sysv dbus libpam-systemd openssh-server python3 iproute2 sudo ca-certificates cloud-init rsync"
    " procps"
)
# Units that set up hardware, the kernel or consoles: where containers are privileged they would set up the host's
_MASKED = (
    "systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket"
    " systemd-sysctl.service systemd-modules-load.service systemd-binfmt.service systemd-hwdb-update.service"
    " sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount dev-hugepages.mount"
    " console-getty.service getty.target getty@.service autovt@.service systemd-networkd.service"
    " systemd-networkd-wait-online.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer"
)
# No host key may be in an image
_INSTALL = f"""set -eu
export DEBIAN_FRONTEND=noninteractive
if [ -e /etc/apt/apt.conf.d/docker-clean ]; then rm -f /etc/apt/apt.conf.d/docker-clean; fi
apt-get update -q
apt-get install -q -y --no-install-recommends {_PACKAGES}
update-ca-certificates
mkdir -p /etc/cloud/cloud.cfg.d /var/lib/cloud/seed/nocloud
chmod 700 /var/lib/cloud/seed/nocloud
cat >/etc/cloud/cloud.cfg.d/90_ems.cfg <<'END'
datasource_list: [ NoCloud ]
network: {{config: disabled}}
locale: false
END
for unit in {_MASKED}; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\\nReadKMsg=no\\n' >/etc/systemd/journald.conf.d/ems.conf
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id
: >/etc/machine-id
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log
"""
_INSTALL_S = 1800  # by a slow network
_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a distribution is made of without a hub; its archive is the one that debootstrap knows.

    Attributes
    ----------
    script
        That of debootstrap where it knows none for the suite: an older one has not heard of a newer suite.
    security
        What follows the archive's address where security updates lie beside it.
    """

    suite: str
    components: str
    keyring: Path
    script: str
    security: str = ""

    def sources(self, archive: str) -> str:
        """Return what apt reads: as in the images of a hub, security updates too."""
        places = (
            f"{archive} {self.suite}",
            f"{archive} {self.suite}-updates",
            f"{archive}{self.security} {self.suite}-security",
        )
        return "".join(f"deb {each} {self.components.replace(',', ' ')}\n" for each in places)


def _debian(suite: str) -> Distribution:
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    return Distribution(suite, "main", keyring, "sid", security="-security")


def _ubuntu(suite: str) -> Distribution:
    # Ubuntu's archive key of 2018, of which Debian has no package: F6EC B376 2474 EDA9 D21B 7022 8719 20D1 991B C93C
    return Distribution(suite, "main,universe", Path(__file__).with_name("ubuntu-archive.gpg"), "gutsy")


DISTRIBUTIONS = {"debian:12": _debian("bookworm"), "debian:13": _debian("trixie"), "ubuntu:24.04": _ubuntu("noble")}


def base_image(engine: Engine, distribution: str, notify: Callable[[str], None]) -> str:
    """Return the name of the image that machines of a distribution start from; it is made unless it is there.

    Raises
    ------
    ProviderError
        If it cannot be made.
    """
    name = image_name(distribution)
    if has_image(engine, name):
        return name
    with _one_at_a_time(name):
        if not has_image(engine, name):
            notify(f"making the image of {distribution}, once for all clusters on this computer")
            _build(engine, _root_image(engine, distribution), name)
            _forget_former(engine, name)
    return name


def _build(engine: Engine, root: str, name: str) -> None:
    builder = name.partition("/")[2].replace(":", "-") + "-build"
    engine.forget(*engine.dialect.remove, builder)  # of one that was killed
    try:
        flags = [flag for flag in engine.adapt(root) if not flag.startswith("--systemd")]
        engine.call("create", "--name", builder, "--network=host", *flags, root, "sh", "-c", _INSTALL)
        engine.call("cp", "-", f"{builder}:/", data=_tar(_extras()))
        engine.call("start", "--attach", builder, timeout_s=_INSTALL_S)
        engine.call("commit", "--change", 'CMD ["/sbin/init"]', builder, name)
    finally:
        engine.forget(*engine.dialect.remove, builder)


@contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Keep other processes of this user from making the same image meanwhile."""
    folder = Path(tempfile.gettempdir()) / f"ems-{os.getuid()}" / "images"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / re.sub(r"[^a-z0-9]+", "-", name)).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_former(engine: Engine, name: str) -> None:
    """Delete what an earlier `ems` made of the same distribution, unless something still starts from it."""
    repository = name.rpartition(":")[0]
    for each in engine.call("images", "--format", "{{.Repository}}:{{.Tag}}", repository).split():
        if each.startswith(f"{repository}:") and each != name:
            with suppress(ProviderError):
                engine.forget("image", "rm", each)


def image_name(distribution: str) -> str:
    """Return the name of a distribution's image: another one for whatever is put into it."""
    made_of = repr(
        (_INSTALL, distribution, DISTRIBUTIONS[distribution].sources(""), sorted(_extras().items()))
    ).encode()
    return f"localhost/ems-{distribution.replace(':', '-')}:{hashlib.sha256(made_of).hexdigest()[:12]}"


def has_image(engine: Engine, name: str) -> bool:
    """Whether this machine has an image of that name."""
    return bool(engine.ask("image", "inspect", name))


def _root_image(engine: Engine, distribution: str) -> str:
    """Return an image of nothing but the distribution."""
    local = f"localhost/ems-root-{distribution.replace(':', '-')}:2"
    pulled = f"docker.io/library/{distribution}"
    for name in (pulled, local):
        if has_image(engine, name):
            return name
    try:
        engine.call("pull", "--quiet", pulled)
    except ProviderError as error:
        if shutil.which("debootstrap") is None or os.geteuid() != 0:
            raise ProviderError(
                f"the image {distribution} can neither be pulled ({error.message}) nor be made by debootstrap",
                "check the network, or install debootstrap and run this as root: sudo apt install debootstrap",
            ) from error
        _debootstrap(engine, distribution, local)
        return local
    return pulled


def _debootstrap(engine: Engine, distribution: str, name: str) -> None:
    made_of = DISTRIBUTIONS[distribution]
    if not made_of.keyring.exists():
        raise ProviderError(
            f"{distribution} cannot be verified without {made_of.keyring}", f"install {made_of.keyring.stem}"
        )
    with tempfile.TemporaryDirectory(prefix="ems-debootstrap-", dir="/var/tmp") as folder:
        words = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "--force-check-gpg"]
        words += [f"--components={made_of.components}", f"--keyring={made_of.keyring}"]
        # an older debootstrap knows no script for a newer suite
        scripts = Path("/usr/share/debootstrap/scripts")
        script = next(each for each in (made_of.suite, made_of.script) if (scripts / each).exists())
        words += [made_of.suite, f"{folder}/root", "", str(scripts / script)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            hint = f"check that the archive of {distribution} can be reached: debootstrap {made_of.suite} FOLDER"
            raise ProviderError(f"debootstrap {made_of.suite}: {' '.join(said)}", hint)
        sources = Path(folder) / "root/etc/apt/sources.list"
        sources.write_text(made_of.sources(sources.read_text().split()[1]))
        packed = Path(folder) / "root.tar"
        subprocess.run(["tar", "-C", f"{folder}/root", "-cf", str(packed), "."], check=True)
        engine.call("import", str(packed), name)


def _extras() -> dict[str, str]:
    """Return the files of an image that make its machines reach the internet as this computer does: path -> text."""
    files = {}
    environment: dict[str, str] = {}
    for path in sorted(_AUTHORITIES.glob("*.crt")):
        files[f"usr/local/share/ca-certificates/{path.name}"] = path.read_text()
    if files:
        environment |= dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"), _BUNDLE)
        files["etc/pip.conf"] = f"[global]\ncert = {_BUNDLE}\n"
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        value = os.environ.get(name) or os.environ.get(name.upper())
        if value and re.fullmatch(r"[^\s\"'\\]+", value):
            environment |= {name: value, name.upper(): value}
    if "http_proxy" in environment:
        files["etc/apt/apt.conf.d/90ems-proxy"] = f'Acquire::http::Proxy "{environment["http_proxy"]}";\n'
    if environment:
        files["etc/environment"] = "".join(f"{name}={value}\n" for name, value in environment.items())
    return files


def _tar(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()
