#!/bin/sh
# Set-up shared by scripts/demo and scripts/test, which source this file. Everything it says goes to stderr.
# Run by itself it prepares the machine and .venv, and starts nothing.
set -eu

# The callers set $root, the checkout. Ordinary users often lack the sbin directories in PATH.
root=${root:-$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)}
python=$root/.venv/bin/python
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
unset PYTHONHOME PYTHONPATH
unset PYTHONDONTWRITEBYTECODE # every start of a test or of arsandbox would compile all its modules again

log=      # output of apt-get and dockerd --help, shown only when something fails
updated=  # apt-get update was run
base=     # where the private Docker daemon keeps its things; empty while we use none

say() { printf 'arsandbox: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 4
}

# ---- the start and the end of a script ----

begin() {
    for tool in flock setsid; do has "$tool" || die "please install util-linux ($tool)"; done
    if [ "$(id -u)" = 0 ]; then may_root=yes; elif sudo -n true </dev/null >/dev/null 2>&1; then may_root=yes; else may_root=; fi
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    log=$(mktemp)
}

finish() {
    status=$?
    trap - EXIT
    trap '' HUP INT TERM
    [ -z "$base" ] || leave_private || [ "$status" != 0 ] || status=1
    rm -f "$log"
    exit "$status"
}

has() { command -v "$1" >/dev/null 2>&1; }

make_directory() { mkdir -p "$1" 2>/dev/null && [ -w "$1" ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Runs a command in a session of its own, so that a signal (Ctrl-C too) reaches it exactly once, through us, and
# we go on waiting: the command ends first, then the private Docker daemon. Its exit status is ours.
run_command() {
    child=
    got=
    trap 'forward HUP' HUP
    trap 'forward INT' INT
    trap 'forward TERM' TERM
    exec 3<&0
    # A shell's background commands ignore SIGINT: undo that.
    "$python" -c '
import os, signal, sys
os.setsid()
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$@" <&3 3<&- &
    child=$!
    exec 3<&-
    [ -z "$got" ] || forward "$got"
    while :; do
        result=0
        wait "$child" || result=$?
        kill -0 "$child" 2>/dev/null || break
    done
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    return "$result"
}

forward() {
    got=$1
    [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || :
}

# ---- packages ----

find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if usable_python "$candidate"; then return 0; fi
    done
    return 1
}

usable_python() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1
}

may_install() { [ -n "$may_root" ] && has apt-get; }

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" </dev/null >>"$log" 2>&1
}

apt_install() {
    say "installing $*"
    # A failed update is no failure yet: the lists that are here may do.
    [ -n "$updated" ] || apt_get update || :
    updated=yes
    apt_get install --no-install-recommends "$@"
}

# Why Docker cannot be had here, in words; empty when it may be possible.
docker_obstacle() {
    if [ -n "$may_root" ] || [ -n "${DOCKER_HOST:-}" ] || [ -w /var/run/docker.sock ]; then return 0; fi
    if [ -S /var/run/docker.sock ]; then
        echo "a Docker daemon runs, but this user may not use it: join its group (usermod -aG docker) or set DOCKER_HOST"
    elif has dockerd; then
        echo "no Docker daemon answers: start the system's and let this user use it, or set DOCKER_HOST, or run this as root"
    fi
}

# Sets engine to docker or embedded: what the arguments or ARSANDBOX_ENGINE say, else docker wherever it may be had.
choose_engine() {
    engine=${ARSANDBOX_ENGINE:-}
    while [ $# -gt 0 ]; do
        case $1 in
        --engine) engine=${2:-} ;;
        --engine=*) engine=${1#--engine=} ;;
        esac
        shift
    done
    case $engine in
    embedded) ;;
    '' | auto)
        engine=docker
        obstacle=$(docker_obstacle)
        if [ -z "$obstacle" ] && ! has dockerd && [ -z "${DOCKER_HOST:-}" ] && [ ! -S /var/run/docker.sock ] &&
            ! may_install; then
            obstacle="Docker is not installed, and installing it needs apt-get and root"
        fi
        if [ -n "$obstacle" ]; then
            say "$obstacle"
            say "no Docker here: using the embedded engine"
            engine=embedded
        fi
        ;;
    *) engine=docker ;; # arsandbox itself says what is wrong with another name
    esac
}

# What the embedded engine needs; its bwrap and the demo's packages come with pip where the system lacks them.
ensure_packages_embedded() {
    need=
    find_python || need="$need python3 python3-venv"
    has git || need="$need git"
    has bwrap || ! may_install || need="$need bubblewrap"
    if [ "$(id -u)" = 0 ]; then
        has mkfs.ext4 || need="$need e2fsprogs"
        has mount && has losetup || need="$need mount"
    fi
    need=${need# }
    [ -n "$need" ] || return 0
    may_install || die "please install: $need (Debian and Ubuntu: apt-get install $need)"
    # shellcheck disable=SC2086 # a list of names
    apt_install $need || die "apt-get could not install $need: $(log_error)"
    find_python || die "please install Python 3.11 or newer, with its venv module"
}

# Finds or installs everything that comes from the system's packages; what cannot be had is told in one line.
ensure_packages() {
    need=
    has bwrap || ! may_install || need="$need bubblewrap"
    find_python || need="$need python3 python3-venv"
    has mmdebstrap || need="$need mmdebstrap"
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || [ -e /usr/share/keyrings/debian-archive-keyring.pgp ] ||
        need="$need debian-archive-keyring"
    has mkfs.ext4 || need="$need e2fsprogs"
    has mount && has losetup || need="$need mount"
    has git || need="$need git"
    has dockerd || [ -n "${DOCKER_HOST:-}" ] || [ -S /var/run/docker.sock ] || need="$need docker.io iptables"
    need=${need# }
    obstacle=$(docker_obstacle)
    if [ -n "$need" ] && ! may_install; then
        die "please install: $need (Debian and Ubuntu: apt-get install $need), since this needs apt-get and root or" \
            "passwordless sudo${obstacle:+; also, $obstacle}"
    fi
    [ -z "$obstacle" ] || die "$obstacle"
    if [ -n "$need" ]; then
        # shellcheck disable=SC2086 # a list of names
        apt_install $need || die "apt-get could not install $need: $(log_error)"
        case " $need " in *" docker.io "*) wait_for_system_daemon=yes ;; esac
    fi
    # Older releases have newer Pythons beside python3.
    for version in 3.13 3.12 3.11; do
        if find_python; then return 0; fi
        if may_install; then apt_install "python$version" "python$version-venv" || :; fi
    done
    find_python || die "please install Python 3.11 or newer, with its venv module"
}

# A tool that only some tests need is not to be had. CI has to have them all.
lacking() {
    if [ "${CI:-}" = true ]; then die "$1 is not to be had here, and with CI=true no test may be left out for it"; fi
    say "$1 is not to be had here: $2"
}

# gVisor, for the tests of stronger runtimes: a private daemon registers it. Not every distribution has it.
offer_gvisor() {
    has runsc || { may_install && apt_install runsc; } || lacking runsc "its tests are left out"
}

# A real registry for the tests of pulling, as a program in .venv: its package would start a service.
offer_registry() {
    if has docker-registry || [ -x "$root/.venv/bin/docker-registry" ]; then return 0; fi
    may_install || {
        lacking docker-registry "the tests of pulling are left out"
        return 0
    }
    unpacked=$(mktemp -d)
    chmod 755 "$unpacked"
    {
        (cd "$unpacked" && apt-get -q download docker-registry </dev/null >>"$log" 2>&1) &&
            dpkg-deb -x "$unpacked"/docker-registry_*.deb "$unpacked" &&
            cp "$unpacked/usr/bin/docker-registry" "$root/.venv/bin/"
    } || unpacked_nothing=yes
    rm -rf "$unpacked"
    [ -z "${unpacked_nothing:-}" ] || lacking docker-registry "the tests of pulling are left out"
}

# A C compiler, for the stand-in of NVIDIA's library that the tests of GPU grants need.
offer_compiler() {
    has gcc || has cc || { may_install && apt_install gcc libc6-dev; } || lacking gcc "the tests of GPU grants are left out"
}

# The most telling line of the log.
log_error() {
    { grep -oE '(E:|ERROR:) .*' "$log" || cat "$log"; } | tail -n 1
}

# ---- .venv ----

# The stamp is written last: a .venv without it is half made. It names the checkout, since a .venv cannot be moved.
ensure_venv() {
    extras=$1
    make_directory "$root/.venv" || die "cannot write $root/.venv"
    exec 9>>"$root/.venv/.lock"
    flock -n 9 || {
        say "waiting for another run that sets up .venv"
        flock 9
    }
    sum=$(sha256sum <"$root/pyproject.toml")
    sum=${sum%% *}
    stamp=$(cat "$root/.venv/.stamp" 2>/dev/null || :)
    if [ "${stamp#* * }" != "$root" ] || ! "$python" -c 'import pip' </dev/null >/dev/null 2>&1; then
        stamp=
    fi
    case $stamp in
    "test $sum $root" | "$extras $sum $root") ;;
    *)
        say "setting up .venv (the first time takes about a minute)"
        rm -f "$root/.venv/.stamp"
        [ -n "$stamp" ] || new_venv
        install_venv
        printf '%s %s %s\n' "$extras" "$sum" "$root" >"$root/.venv/.stamp.new"
        mv "$root/.venv/.stamp.new" "$root/.venv/.stamp"
        ;;
    esac
    exec 9>&-
}

new_venv() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        usable_python "$candidate" || continue
        find "$root/.venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
        if "$candidate" -m venv "$root/.venv" </dev/null >>"$log" 2>&1; then return 0; fi
    done
    die "no Python here could make .venv: $(log_error)"
}

install_venv() {
    what=.
    [ "$extras" = demo ] || what=".[$extras]"
    : >"$log"
    (cd "$root" && "$python" -m pip install --quiet --no-input --disable-pip-version-check -e "$what") \
        </dev/null >>"$log" 2>&1 ||
        die "pip could not install the Python packages (is the network up?): $(log_error)"
}

# ---- Docker ----

docker_version() {
    "$python" -c '
import sys
try:
    import docker
    print(docker.from_env(timeout=10).version()["Version"])
except Exception:
    sys.exit(1)' </dev/null 2>/dev/null
}

# Uses the daemon that answers; else starts a private one, which finish() stops.
ensure_docker() {
    if use_daemon; then return 0; fi
    if [ -n "${DOCKER_HOST:-}" ]; then say "no Docker daemon answers at DOCKER_HOST=$DOCKER_HOST: not using it"; fi
    unset DOCKER_HOST DOCKER_TLS_VERIFY DOCKER_CERT_PATH
    if use_daemon; then return 0; fi
    if ! has dockerd; then
        may_install || die "please install Docker (Debian and Ubuntu: apt-get install docker.io iptables) or set DOCKER_HOST"
        apt_install docker.io iptables || die "apt-get could not install docker.io: $(log_error)"
        wait_for_system_daemon=yes
        if use_daemon; then return 0; fi
    fi
    # Where systemd runs, the package starts a daemon by itself.
    tries=0
    while [ -n "${wait_for_system_daemon:-}" ] && [ -d /run/systemd/system ] && [ "$tries" -lt 20 ]; do
        if [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then break; fi
        sleep 1
        if use_daemon; then return 0; fi
        tries=$((tries + 1))
    done
    if [ -z "$may_root" ]; then
        obstacle=$(docker_obstacle)
        die "${obstacle:-the Docker daemon at /var/run/docker.sock does not answer: restart it, or set DOCKER_HOST}"
    fi
    use_private
}

use_daemon() {
    version=$(docker_version) || return 1
    say "using the Docker $version daemon at ${DOCKER_HOST:-unix:///var/run/docker.sock}"
}

# One private daemon per user. Its data (so its images) stays; its socket and run-time files live in a fresh
# directory under /tmp, named in $base/run. start.lock is held while it starts or stops; users.lock is held,
# shared, by every script and command that uses it: the last one out stops it. A daemon that was left behind
# by a killed script is used again, or stopped where it does not answer.
use_private() {
    dir=${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/arsandbox/docker
    (umask 077 && make_directory "$dir") || die "cannot write $dir: set XDG_CACHE_HOME to a directory of yours"
    exec 7>>"$dir/users.lock" 8>>"$dir/start.lock"
    flock 8
    flock -s 7
    base=$dir
    run=$(running_directory)
    if [ -n "$run" ]; then
        DOCKER_HOST=unix://$run/docker.sock
        export DOCKER_HOST
        if version=$(docker_version); then
            say "using the private Docker $version daemon that another run started, at $DOCKER_HOST"
            exec 8>&-
            return 0
        fi
        stop_private "$run" || die "an old private Docker daemon could not be stopped: see $base/dockerd.log"
    fi
    start_private
    exec 8>&-
}

running_directory() {
    line=$(cat "$base/run" 2>/dev/null || :)
    case $line in /tmp/arsandbox.??????) echo "$line" ;; esac
}

start_private() {
    run=$(mktemp -d /tmp/arsandbox.XXXXXX)
    echo "$run" >"$base/run"
    runtimes='{}'
    if has runsc; then
        runtimes="{\"runtimes\": {\"runsc\": {\"path\": \"$(command -v runsc)\", \"runtimeArgs\": [\"--network=none\"]}}}"
    fi
    echo "$runtimes" >"$run/daemon.json"
    rm -f "$base/dockerd.log"
    : >"$base/dockerd.log"
    DOCKER_HOST=unix://$run/docker.sock
    export DOCKER_HOST
    say "starting a private Docker daemon: socket $run/docker.sock, data $base/data (kept, so that images are); it is" \
        "stopped at the end"
    # Sandboxes have no network, so the host's network settings stay as they are. The containerd namespace is for
    # machines whose own containerd it finds and uses. The socket's directory is closed to everyone else.
    set -- "$(command -v dockerd)" --data-root "$base/data" --exec-root "$run/exec" --pidfile "$run/pid" \
        --host "$DOCKER_HOST" --group "$(id -g)" --config-file "$run/daemon.json" \
        --containerd-namespace "arsandbox-$(id -u)" --containerd-plugins-namespace "arsandbox-plugins-$(id -u)" \
        --bridge=none --iptables=false --ip6tables=false --ip-forward=false
    # Up to version 24 it lowers its own OOM score unless told not to, and may not everywhere; later ones lack the flag.
    "$1" --help >"$log" 2>&1 || :
    if grep -q -e --oom-score-adjust "$log"; then set -- "$@" --oom-score-adjust 0; fi
    # shellcheck disable=SC2016 # expanded by the inner shell
    as_root sh -c 'trap "" HUP; log=$1; shift; exec setsid -f "$@" >>"$log" 2>&1' \
        sh "$base/dockerd.log" "$@" </dev/null 7>&- 8>&- || :
    deadline=$(($(date +%s) + 30))
    until version=$(docker_version); do
        if [ -z "$(private_pids)" ] || [ "$(date +%s)" -ge "$deadline" ]; then
            say "the private Docker daemon did not start; the last lines of $base/dockerd.log:"
            tail -n 5 "$base/dockerd.log" >&2
            die "no Docker: start a daemon yourself and set DOCKER_HOST to its socket"
        fi
        sleep 0.2
    done
}

# Pids of the private daemon, its containerd and its shims: those whose command line names its own directory.
private_pids() {
    [ -n "$(running_directory)" ] || return 0
    # The pattern comes from a file, so that grep's own command line does not match.
    as_root grep -alsF -f "$base/run" /proc/[0-9]*/cmdline 2>/dev/null | while IFS=/ read -r _ _ pid _; do
        case $(cat "/proc/$pid/comm" 2>/dev/null) in
        dockerd | containerd*) echo "$pid" ;;
        esac
    done
}

# The shell's own kill: the program may be absent, and sudo needs a program.
kill_as_root() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    as_root sh -c 'signal=$1; shift; kill -s "$signal" "$@"' sh "$@" 2>/dev/null || :
}

leave_private() {
    exec 7>>"$base/users.lock" 8>>"$base/start.lock"
    flock 8
    flock -n -x 7 || return 0
    run=$(running_directory)
    [ -z "$run" ] || stop_private "$run"
}

stop_private() {
    asked=
    for pid in $(private_pids); do
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
            kill_as_root TERM "$pid"
            asked=yes
        fi
    done
    deadline=$(($(date +%s) + 20))
    while [ -n "$asked" ] && [ -n "$(private_pids)" ] && [ "$(date +%s)" -lt "$deadline" ]; do sleep 0.2; done
    tries=0
    while [ -n "$(private_pids)" ] && [ "$tries" -lt 25 ]; do
        for pid in $(private_pids); do
            # A shim's children are its container's first processes.
            # shellcheck disable=SC2046 # a list of pids
            kill_as_root KILL $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid"
        done
        sleep 0.2
        tries=$((tries + 1))
    done
    left=$(private_pids)
    if [ -n "$left" ]; then
        say "the private Docker daemon could not be stopped; still running: $(echo "$left" | tr '\n' ' ')"
        return 1
    fi
    # A killed daemon leaves mounts. The kernel writes a space in a path as \040.
    while read -r _ _ _ _ mounted _; do
        mounted=$(printf '%b' "$mounted")
        case $mounted in "$1"/* | "$base/data" | "$base/data"/*) as_root umount -l "$mounted" 2>/dev/null || : ;; esac
    done </proc/self/mountinfo
    as_root rm -rf "$1"
    rm -f "$base/run"
}

# ---- run by itself ----

if [ "${0##*/}" = setup.sh ]; then
    extras=demo
    case ${1:-} in
    "") ;;
    --test) extras="test" ;;
    *)
        cat <<'HELP'
usage: scripts/setup.sh [--test]

Installs what is missing (Python 3.11+, mmdebstrap, e2fsprogs, git, Docker; by apt-get, as root or with
passwordless sudo) and makes or refreshes .venv in the checkout, with --test also the tests' packages. It
starts no daemon: scripts/demo and scripts/test do that by themselves. Never asks anything.

Exit status: 0, or 4 where this machine could not be set up; one line then says what is missing.
HELP
        case $1 in -h | --help) exit 0 ;; *) exit 2 ;; esac
        ;;
    esac
    begin
    ensure_packages
    ensure_venv "$extras"
    say "ready: .venv is up to date"
fi
