// Package containers is the docker lab: real mail servers in containers, five
// vantages to judge them from, and networks that keep them apart. [Start]
// builds what is missing, starts everything and hands out a [run.Target].
//
// What is promised: addresses are those of package fixtures, in IPv4 and IPv6;
// nothing is published on the host and no packet passes a router, so nothing
// that a lab sends leaves its own networks; one lab at a time stands on an
// engine; a source that does not start is a [StartError] in the server's own
// words and the others start; and when a lab is closed, its context ends, or
// its process has died and the next one starts, no container and no network
// is left. Images stay.
//
// Nothing outside this package imports Docker or testcontainers.
package containers
