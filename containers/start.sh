#!/bin/sh
# Starts Dovecot and Postfix of a lab's source, in the foreground and with their
# logs on standard output. It runs as the first process of the container.
# What a lab has put there before: /mailproof/configure (the layers, as postconf
# commands), /mailproof/hosts, /etc/dovecot/local.conf and the files it names,
# accounts and the certificate.
set -u

# refuse STAGE WHERE: the lab reads this line, and the words before it.
refuse() {
	sed 's/^/mailproof: words: /' /mailproof/words
	echo "mailproof: refused: $1: $2"
	exit 70
}

# lay WHERE ARGUMENTS: postconf with a layer's part. It only warns of a service
# that is not there.
lay() {
	where=$1
	shift
	if ! postconf "$@" 2>/mailproof/words || grep -q 'warning: unmatched' /mailproof/words; then
		refuse overlay "$where"
	fi
}

# Names are resolved here or not at all, and at once.
printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >/etc/resolv.conf
cat /mailproof/hosts >>/etc/hosts

echo 'vmail:x:5000:' >>/etc/group
echo 'vmail:x:5000:5000:virtual mail:/srv/vmail:/usr/sbin/nologin' >>/etc/passwd
mkdir -p /srv/vmail
chown 5000:5000 /srv/vmail
chown root:dovecot /etc/dovecot/users

# Debian makes it at Postfix's first start; Dovecot has its sockets there.
install -d -o postfix -g root -m 700 /var/spool/postfix/private

# The layers of Postfix, in order.
# shellcheck source=/dev/null
. /mailproof/configure
# Postfix waits for two seconds before it believes a file that has just changed.
touch -d '1 hour ago' /etc/postfix/main.cf /etc/postfix/master.cf

# Dovecot says here what it does not understand.
doveconf -n >/mailproof/doveconf-n 2>/mailproof/words || refuse overlay doveconf
dovecot_log=$(doveconf -h log_path 2>/dev/null)
postfix_log=$(postconf -h maillog_file 2>/mailproof/words) || refuse overlay postconf

# What Debian's own start script puts into Postfix's chroot.
(
	cd /var/spool/postfix || exit
	mkdir -p etc dev
	for f in localtime services resolv.conf hosts host.conf nsswitch.conf; do
		[ -f "/etc/$f" ] && cp "/etc/$f" "etc/$f"
	done
	chmod -R a+rX etc
)

# Without a log of their own, as Debian ships it: syslog, and from there here.
if [ "$dovecot_log" = syslog ] || [ -z "$postfix_log" ]; then
	: >/var/log/mail.log
	# There is no kernel log to read here.
	sed -i '/imklog/d' /etc/rsyslog.conf
	rsyslogd -iNONE 2>/mailproof/words || refuse start rsyslogd
	# Where it is not told of changes it looks for them, and then every second would be long.
	tail -s 0.1 -n +1 -F /var/log/mail.log 2>/dev/null &
fi

end() {
	echo "mailproof: ended: $1"
	kill -TERM 1
}
# Postfix says why it does not start to a terminal, or to a log that is not
# there yet.
(dovecot -F 2>&1; end dovecot) &
(postfix start-fg 2>&1; script -qec 'postfix check' /dev/null </dev/null; end postfix) &
trap 'exit 0' TERM INT
wait
