#!/bin/sh
# Installs what the slurm tests start by themselves: SLURM, munge, MariaDB. Root on Debian or Ubuntu; elsewhere it says so.
set -eu

complete() {
    for program in munged mariadbd mysql_install_db slurmdbd slurmctld slurmd sbatch sacct; do
        PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || return 1
    done
}

if complete; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "SLURM's packages are not installed, and this is not root on Debian or Ubuntu: the slurm tests are skipped"
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
apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurmdbd slurm-client slurm-wlm-basic-plugins slurm-wlm-mysql-plugin munge mariadb-server
complete || { echo "error: the packages are installed, but SLURM's programs are still not all there" >&2; exit 1; }
