#!/bin/sh
# Installs what the tests start by themselves: SLURM, munge, MariaDB, sshd, rclone, nft, and a container engine where none
# works.
# Root on Debian or Ubuntu; elsewhere it says so.
set -eu

complete() {
    for program in munged mariadbd mysql_install_db slurmdbd slurmctld slurmd sbatch sacct sshd; do
        PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || return 1
    done
}

# docker, or podman with what it and debootstrap need where no hub can be reached
contained() {
    docker info >/dev/null 2>&1 && return 0
    for program in podman crun debootstrap nsenter iptables; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || return 1
    done
    [ -e /usr/lib/podman/netavark ] && [ -e /usr/lib/podman/aardvark-dns ]
}

other() {
    for program in rclone nft ip; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || return 1
    done
}

if complete && contained && other; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "SLURM's packages or a container engine are not installed, and this is not root on Debian or Ubuntu: the slurm tests are skipped"
    exit 0
fi

# Installed is enough: no service is started or enabled, the tests start their own
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
complete || apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurmdbd slurm-client slurm-wlm-basic-plugins slurm-wlm-mysql-plugin munge mariadb-server openssh-server
contained || apt-get install -y -qq --no-install-recommends \
    podman crun netavark aardvark-dns debootstrap iptables nftables uidmap fuse-overlayfs rsync
other || apt-get install -y -qq --no-install-recommends rclone nftables iproute2
complete || { echo "error: the packages are installed, but SLURM's programs are still not all there" >&2; exit 1; }
