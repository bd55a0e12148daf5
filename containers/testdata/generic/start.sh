#!/bin/sh
# Starts OpenSMTPD and Cyrus with their log on standard output. It runs as the
# first process of the container.
set -eu

# Names are resolved in /etc/hosts or not at all: OpenSMTPD asks for every
# client's before it greets.
printf 'lookup file\noptions timeout:1 attempts:1\n' >/etc/resolv.conf

if [ -s /mailproof/fence ]; then
	nft -f /mailproof/fence
fi

chgrp mail /mailproof/key.pem
chmod 640 /mailproof/key.pem

: >/etc/smtpd-credentials
: >/etc/smtpd-users
while read -r address password; do
	# One round is enough for passwords that live as long as the container.
	echo "$address $(printf %s "$password" | openssl passwd -6 -salt "$(printf %s "$address" | cut -c1-8)" -stdin)" >>/etc/smtpd-credentials
	echo "$address cyrus" >>/etc/smtpd-users
	printf %s "$password" | saslpasswd2 -p -c -u @domain@ "${address%@*}"
done </mailproof/accounts
chown cyrus:mail /etc/sasldb2

install -d -o cyrus -g mail /run/cyrus /run/cyrus/socket /run/cyrus/proc /run/cyrus/lock
printf 'module(load="imuxsock")\n*.* action(type="omfile" file="/var/log/mail.log")\n' >/etc/rsyslog.conf
: >/var/log/mail.log
rsyslogd
/usr/sbin/cyrmaster -d
/usr/sbin/smtpd
exec tail -n +1 -F /var/log/mail.log
