// Package source is the reference source: an in-memory Dovecot (IMAP, POP3,
// ManageSieve, LMTP) and Postfix (SMTP, submission, submissions) of two Debian
// releases, configured by the same text as the real servers.
//
// It promises to answer and to log, per release, what the recorded dialogues
// of the real servers answer and log (../testdata/recorded), with the
// configuration that fixtures holds and with what an operator lays over it, as
// far as that is made of the settings below. The first thing that the real
// servers would not start with is the error of [New], in their words. It
// refuses to send mail to other hosts, to keep anything on disk and to run
// programs: policy services, milters and DNS lists are not there, and
// are answered for as absent ones are.
//
// Time that servers let pass on purpose costs nobody any: on the in-memory
// network what comes later is late (Lag of memnet.Conn), so that a client with
// a deadline fails at once and any other reads on at once.
//
// # What is interpreted
//
// A setting that is not listed is accepted if the release knows it, and has no
// effect. One that it does not know is refused (Dovecot) or logged (Postfix).
//
//	Dovecot                            2.3 and 2.4 where not said otherwise
//	  protocols, listen
//	  service NAME-login { inet_listener L { port ssl haproxy address listen } }
//	                                   port = 0 closes it; NAME is imap, pop3, managesieve
//	  service auth, lmtp { unix_listener PATH { mode path } }
//	                                   whether Postfix finds a socket
//	  service anvil { unix_listener anvil-auth-penalty { mode } }
//	                                   mode = 0 ends the penalties
//	  service imap { imap_capability } 2.4: after the login
//	  protocol P { }, protocol !P { }  for the settings below
//	  login_trusted_networks           up to the first word that is no network
//	  haproxy_trusted_networks, haproxy_timeout
//	  disable_plaintext_auth           2.3
//	  auth_allow_cleartext             2.4
//	  ssl, ssl_min_protocol
//	  auth_mechanisms                  PLAIN and LOGIN are spoken
//	  auth_failure_delay, auth_verbose, auth_username_chars
//	  auth_master_user_separator
//	  passdb { driver args master fields { } }
//	                                   passwd-file: the accounts; static: nopassword,
//	                                   password, allow_nets; any other knows nobody
//	  mail_max_userip_connections
//	  login_greeting, login_log_format, login_log_format_elements
//	  log_path                         syslog, or anything else
//	  log_timestamp
//	  imap_capability                  2.3: with + and without; 2.4: the block
//	  imap_id_log                      2.3
//	  imap_id_send
//
//	Postfix                            main.cf, and -o in master.cf
//	  myhostname, mydomain, myorigin, mail_name, syslog_name, maillog_file
//	  inet_interfaces, inet_protocols
//	  mynetworks, parent_domain_matches_subdomains
//	  smtpd_banner, smtpd_peername_lookup, smtpd_client_port_logging
//	  smtpd_authorized_xclient_hosts, smtpd_authorized_xforward_hosts
//	  smtpd_upstream_proxy_protocol, smtpd_upstream_proxy_timeout
//	  smtpd_{client,helo,sender,relay,recipient,data,end_of_data}_restrictions
//	  smtpd_restriction_classes, smtpd_delay_reject, smtpd_helo_required
//	  smtpd_relay_before_recipient_restrictions
//	  smtpd_reject_unlisted_recipient, smtpd_reject_unlisted_sender
//	  smtpd_sender_login_maps, smtpd_null_access_lookup_key
//	  smtpd_policy_service_default_action
//	  smtpd_discard_ehlo_keywords, disable_vrfy_command, smtputf8_enable
//	  strict_smtputf8, strict_rfc821_envelopes
//	  smtpd_tls_security_level, smtpd_use_tls, smtpd_enforce_tls
//	  smtpd_tls_wrappermode, smtpd_tls_auth_only, smtpd_tls_loglevel
//	  smtpd_tls_received_header, smtpd_sasl_authenticated_header
//	  smtpd_hide_client_session        3.10
//	  smtpd_sasl_auth_enable, smtpd_sasl_type, smtpd_sasl_path
//	  smtpd_sasl_response_limit
//	  smtpd_client_connection_count_limit, smtpd_client_connection_rate_limit
//	  smtpd_client_message_rate_limit, smtpd_client_recipient_rate_limit
//	  smtpd_client_auth_rate_limit, smtpd_client_event_limit_exceptions
//	  smtpd_client_ipv4_prefix_length, smtpd_client_ipv6_prefix_length
//	  anvil_rate_time_unit
//	  smtpd_recipient_limit, smtpd_recipient_overshoot_limit
//	  smtpd_hard_error_limit, smtpd_soft_error_limit, smtpd_error_sleep_time
//	  smtpd_junk_command_limit, smtpd_timeout, smtpd_forbidden_commands
//	  smtpd_forbid_unauth_pipelining, smtpd_forbid_bare_newline
//	  message_size_limit, line_length_limit, soft_bounce
//	  smtpd_milters, milter_default_action
//	                                   milters, none of which is there
//	  mydestination, local_transport, local_recipient_maps, luser_relay
//	  virtual_mailbox_domains, virtual_mailbox_maps, virtual_transport
//	  virtual_alias_domains, virtual_alias_maps
//	  relay_domains, relay_recipient_maps, relay_transport, relayhost
//	  default_transport, transport_maps, recipient_delimiter
//	  recipient_canonical_maps, canonical_maps
//	                                   only to know an address by
//	  allow_percent_hack, swap_bangpath, allow_untrusted_routing
//	  local_header_rewrite_clients, always_add_missing_headers
//	  show_user_unknown_table_name
//	  access_map_reject_code, access_map_defer_code, reject_code, defer_code
//	  relay_domains_reject_code, non_fqdn_reject_code, plaintext_reject_code
//	  invalid_hostname_reject_code, unknown_client_reject_code
//	  multi_recipient_bounce_reject_code
//	  unknown_{local_recipient,virtual_alias,virtual_mailbox,relay_recipient}_reject_code
//
//	Tables: inline, static, fail, texthash, cidr, regexp, pcre (as regexp), and
//	proxy before them. hash, lmdb and the like are there only as /etc/aliases;
//	texthash:/etc/postfix/vmailbox is the accounts, if no layer has the file.
//
// # What is played, and what is not
//
// Restrictions: all that postconf(5) names are known. Those that ask the DNS
// find nothing but /etc/hosts and the source's own domains; lists in the DNS,
// certificates of clients, address verification and backup MX never decide.
//
// After the login IMAP is go-imap's server on its in-memory backend: data are
// right and the words of completions are go-imap's, but for CAPABILITY, ID,
// LOGOUT and LIST.
package source
