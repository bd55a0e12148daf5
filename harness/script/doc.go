// Package script is the scenario language: it parses, checks and renders
// scenarios, and computes from their verbs what they could do to a server.
//
// A scenario is one claim in a txtar file: a header, then phases of steps in
// transcript style, then the files that its steps send.
//
//	id: imap-id.first-counts
//	claim: Only the first ID of an IMAP connection changes the recorded address.
//	level: must
//	requirements: C-04
//	needs: dovecot-postfix
//	over: imap imaps
//	witness: log
//
//	# the proxy announces the client
//	open A imap source from proxy
//	A <- * OK {}
//	use secure-imap A
//	A -> a1 ID ("x-originating-ip" "${client}")
//	A <~ * ID {}
//	A <- a1 OK {}
//	...
//	witness login join user=${user.alice} {
//	  expect rip=${client}
//	  forbid rip=${forged}
//	}
//
// The package promises that a scenario is known completely before anything is
// sent: its vocabulary is closed, there is no sleep, no exec and no read of
// the environment; secrets exist only as references; fragments and loops are
// expanded by the parser; risk and blame are computed and never declared. A
// faulty scenario is an [Error] that names file, line, column and what would
// be right. docs/scenarios.md teaches the language.
package script
