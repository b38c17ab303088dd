#!/bin/sh
# Our own Docker daemon, for tests: starts without systemd and leaves nothing behind.
#
#   dockerd.sh up DIR [dockerd flags...]     start a daemon and print its DOCKER_HOST; install docker.io and
#                                            iptables by apt if they are missing
#   dockerd.sh down DIR                      remove the daemon's containers, stop it, delete DIR
#   dockerd.sh hold DIR [dockerd flags...]   up, then down when standard input ends: the daemon ends with the
#                                            process that started it
#
# DIR should be short: a unix socket's path has at most 107 bytes. The daemon has no bridge and changes
# neither iptables nor forwarding. (A dockerd with --bridge=none removes an existing docker0; so this script
# refuses to start one where docker0 exists.)
set -eu

usage() { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
say() { printf 'dockerd.sh: %s\n' "$*" >&2; }

install_docker() {
    command -v dockerd >/dev/null && command -v iptables >/dev/null && return
    command -v apt-get >/dev/null || {
        say "dockerd or iptables is not installed, and this is not a Debian system; install docker"
        exit 3
    }
    say "installing docker.io and iptables"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -q update && apt-get -q install -y --no-install-recommends docker.io iptables; } >&2 </dev/null
}

up() {
    dir=$1; shift
    [ "$(id -u)" = 0 ] || { say "starting a daemon needs root"; exit 3; }
    [ ! -e /sys/class/net/docker0 ] || { say "docker0 of another daemon exists; use that daemon"; exit 3; }
    install_docker
    mkdir -p "$dir"
    setsid dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" \
        -H "unix://$dir/docker.sock" --bridge=none --iptables=false --ip-forward=false --log-level=warn "$@" \
        >"$dir/log" 2>&1 </dev/null &
    daemon=$!
    tries=0
    until docker -H "unix://$dir/docker.sock" version >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 150 ] || ! kill -0 $daemon 2>/dev/null; then
            say "the daemon did not come up; its log ends:"
            tail -n 20 "$dir/log" >&2
            kill -TERM $daemon 2>/dev/null || :
            exit 1
        fi
        sleep 0.2
    done
    echo "unix://$dir/docker.sock"
}

down() {
    dir=$1
    if [ -S "$dir/docker.sock" ]; then
        left=$(timeout 20 docker -H "unix://$dir/docker.sock" ps -aq 2>/dev/null || :)
        # shellcheck disable=SC2086 # a list of ids
        [ -z "$left" ] || timeout 60 docker -H "unix://$dir/docker.sock" rm -f -v $left >/dev/null 2>&1 || :
    fi
    if [ -f "$dir/pid" ]; then
        daemon=$(cat "$dir/pid")
        kill -TERM "$daemon" 2>/dev/null || :
        tries=0
        while kill -0 "$daemon" 2>/dev/null; do
            tries=$((tries + 1))
            [ $tries -le 150 ] || {
                say "the daemon does not stop; killing it"
                kill -KILL "$daemon" 2>/dev/null || :
                break
            }
            sleep 0.1
        done
    fi
    # mounts that a killed daemon may have left
    grep -F " $dir/" /proc/self/mounts | cut -d' ' -f2 | sort -r |
        while read -r mounted; do umount -l "$mounted" || :; done
    rm -rf "$dir"
}

[ $# -ge 2 ] || usage
action=$1; shift
case $action in
    up) up "$@" ;;
    hold)
        dir=$1
        trap 'down "$dir"' EXIT
        trap 'exit 143' TERM INT HUP
        up "$@"
        cat >/dev/null
        ;;
    down) [ $# -eq 1 ] || usage; down "$1" ;;
    *) usage ;;
esac
