// Package site is a target that an operator runs: servers that mailproof did
// not start, described by a site.toml.
//
// It promises that a file is read strictly (whatever is unknown or wrong is
// told with line and column), that secrets stand in no file of ours and on no
// command line, that a vantage, a log or an account that is not there is said
// to be missing instead of being replaced by another, and that every process
// and connection it starts has ended when the [Site] is closed. It changes
// nothing on the servers.
package site
