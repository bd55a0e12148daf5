#!/bin/sh
# Starts Stalwart in the foreground with its console on standard output, and
# again whenever /mailproof/again is there when it ends. It runs as the first
# process of the container. What a lab has put there before: the configuration,
# /mailproof/hosts, /mailproof/resolv.conf and the certificate.
set -u

# Names are resolved by the lab's own zone or not at all, and at once.
cat /mailproof/resolv.conf >/etc/resolv.conf
cat /mailproof/hosts >>/etc/hosts
mkdir -p /opt/stalwart/data /opt/stalwart/logs

pid=
end() {
	rm -f /mailproof/again
	[ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null
	exit 0
}
trap end TERM INT

# One worker thread, as on a host with one processor. Each thread has a queue of
# log events, and the log's reader takes the queues in turn: a session that moves
# to another thread can have its sign-in read before its beginning, and the line
# then names no address.
export TOKIO_WORKER_THREADS=1

while :; do
	stalwart --config /opt/stalwart/etc/config.toml 2>&1 &
	pid=$!
	echo "$pid" >/mailproof/pid
	wait "$pid"
	status=$?
	if [ -f /mailproof/again ]; then
		rm /mailproof/again
		echo "mailproof: again"
		continue
	fi
	echo "mailproof: ended: stalwart, status $status"
	exit 70
done
