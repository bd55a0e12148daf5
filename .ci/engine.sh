#!/usr/bin/env bash
# Brings a container engine to a Debian or Ubuntu machine that has none, such as
# a CI machine, and starts it. Run as root; running it again does no harm.
#
#   bash .ci/engine.sh
#
# It installs what is missing through apt, starts dockerd in a session of its own
# where no engine answers, and waits until it does. It says what it did.
set -euo pipefail

log=${DOCKERD_LOG:-/var/log/mailproof-dockerd.log}
wait_seconds=${ENGINE_WAIT:-60}

say() { echo "engine: $*"; }
die() {
	echo "engine: $*" >&2
	exit 1
}
answers() { docker info >/dev/null 2>&1; }

# The packages whose commands are missing.
missing=()
command -v docker >/dev/null || missing+=(docker.io)
command -v dockerd >/dev/null || [ -n "${DOCKER_HOST:-}" ] || missing+=(docker.io)
command -v iptables >/dev/null || missing+=(iptables)
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)

if [ ${#missing[@]} -gt 0 ]; then
	mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
	[ "$(id -u)" = 0 ] || die "not root: apt-get install ${missing[*]}"
	command -v apt-get >/dev/null || die "no apt-get here: install ${missing[*]}"
	say "installing ${missing[*]}"
	# The package starts an engine by itself only where there is an init system.
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# The client is a package of its own on newer releases.
if ! command -v docker >/dev/null && command -v apt-get >/dev/null; then
	say "installing docker-cli"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker-cli >/dev/null
fi

if answers; then
	say "an engine answers: Docker $(docker version --format '{{.Server.Version}}')"
	exit 0
fi
[ -z "${DOCKER_HOST:-}" ] || die "no engine answers at DOCKER_HOST=$DOCKER_HOST"
[ "$(id -u)" = 0 ] || die "no engine answers, and only root can start one"

# A pid file that an engine left which is gone keeps a new one from starting: its
# own, and that of the containerd that it starts. A process that was killed and
# not yet waited for is gone as well.
gone() { # pid command
	[ "$(cat "/proc/$1/comm" 2>/dev/null || true)" != "$2" ] || grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"
}
for pid_file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
	[ -s "$pid_file" ] || continue
	command=dockerd
	case $pid_file in */containerd.pid) command=containerd ;; esac
	pid=$(cat "$pid_file")
	if gone "$pid" "$command"; then
		say "removing $pid_file of process $pid, which is gone"
		rm -f "$pid_file"
	fi
done

say "starting dockerd; its log is $log"
setsid nohup dockerd >"$log" 2>&1 </dev/null &
dockerd=$!

for ((i = 0; i < wait_seconds * 5; i++)); do
	if answers; then
		say "an engine answers: Docker $(docker version --format '{{.Server.Version}}')"
		exit 0
	fi
	if ! kill -0 "$dockerd" 2>/dev/null; then
		tail -n 20 "$log" >&2
		die "dockerd has ended"
	fi
	sleep 0.2
done
tail -n 20 "$log" >&2
die "no engine answers after $wait_seconds seconds"
