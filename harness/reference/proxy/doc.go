// Package proxy is the reference migration proxy. It stands on the public
// ports, asks each client for its credentials, finds the destination that
// holds the account, announces the client to it, signs in there with the same
// credentials and joins the two connections. Port 25 is passed through.
//
// It promises:
//
//   - before credentials are complete no source is connected to, and nothing
//     that the client said before them ever reaches one, except its EHLO name;
//   - credentials reach a source only after the announcement that its
//     configuration asks for was offered, made and accepted; otherwise the
//     client gets the protocol's temporary failure;
//   - what is announced is the TCP peer, or what a trusted PROXY header says,
//     and never what a client says of itself;
//   - after a source refuses the credentials the connection ends;
//   - octets that arrive in clear text never become part of a TLS session;
//   - every read, wait and goroutine is bounded, and [Proxy.Serve] returns only
//     when all of them are over;
//   - no log line holds a password, a token or a SASL response.
//
// It reads the configuration format of Stalwart's migration proxy and refuses
// each key of it that it does not implement: HTTP, LMTP, the management API,
// mappings in Redis or SQL, caching, retries and the circuit breaker. It is
// meant to be right rather than complete: real proxies are measured beside it.
package proxy
