// Package stalwart is the reference Stalwart: an in-memory Stalwart 0.15.5
// (SMTP, submission, IMAP, POP3, ManageSieve, HTTP with JMAP, discovery and the
// management API), configured by the same keys as the real one.
//
// It promises to answer and to log what the recorded dialogues of a real
// 0.15.5 answer and log (testdata). Start reads the keys of the configuration
// file; everything else is done over the management API on whatever listener
// is bound for it, and takes effect when it does on the real one: at once,
// with a reload, or with [Server.Restart]. It refuses to send mail to other
// hosts, to keep anything on disk, to fetch anything and to run Sieve scripts.
//
// Time that the server lets pass on purpose costs nobody any: on the in-memory
// network what comes later is late (Lag of memnet.Conn), and a client that
// waits for a server that waits for it finds its own deadline passed at once.
// Windows of limits are those of the clock.
//
// # What is interpreted
//
// A key that is not listed is stored, shown and has no effect.
//
//	boot and restart
//	  server.listener.ID.{bind protocol tls.enable tls.implicit max-connections}
//	  server.listener.ID.proxy.trusted-networks, server.proxy.trusted-networks
//	                                   lists or single values; the former replaces the latter;
//	                                   shorter than /8 is an error; proxy.override is not read
//	reload, boot and restart
//	  server.hostname, lookup.default.hostname, report.domain
//	  http.url, http.allowed-endpoint, http.use-x-forwarded, http.headers
//	  http.rate-limit.{anonymous account}
//	  session.{timeout duration transfer-limit}, session.connect.{hostname greeting}
//	  session.ehlo.{require reject-non-fqdn}
//	  session.auth.{directory mechanisms require must-match-sender errors.total errors.wait}
//	  session.mail.is-allowed
//	  session.rcpt.{directory relay max-recipients sub-addressing errors.total errors.wait}
//	  session.data.spam-filter, session.data.limits.{messages size received-headers}
//	  session.data.add-headers.{received received-spf return-path auth-results message-id date delivered-to}
//	  session.extensions.*             what EHLO offers; DSN, VRFY and EXPN are refused without it
//	  session.mta-sts.{mode max-age mx}
//	  auth.{dkim arc dmarc iprev}.verify, auth.spf.verify.{ehlo mail-from}
//	                                   against Config.Zone; of ARC only that it is absent
//	  queue.limiter.inbound.ID.{key rate enable match}
//	  spam-filter.enable               without rules: every message is ham
//	  spam-filter.dnsbl.server.ID.{enable scope zone tag}, spam-filter.list.scores.TAG
//	                                   of scope ip, of the client alone; "reject" alone weighs
//	  spam-filter.grey-list.duration, spam-filter.pyzor.{enable host}
//	  imap.auth.{allow-plain-text max-failures}, imap.timeout.{anonymous authenticated}
//	  authentication.fallback-admin.{user secret}, authentication.master.{user secret}
//	                                   secrets in plain text
//	  server.auto-ban.{auth abuse loiter scan}.rate, server.auto-ban.scan.paths
//	  server.allowed-ip.ADDRESS, server.blocked-ip.ADDRESS
//	  certificate.ID.{cert private-key default}
//	  tracer.ID.{type level enable}    console and log; tracing.level.EVENT
//	  version.spam-filter              without it every boot writes the shipped defaults
//	  storage.data                     must be there
//
// Settings with branches (KEY.0.if, KEY.0.then, KEY.1.else) may use the
// variables and functions that are listed in expr.go.
package stalwart
