// Package reports renders a [result.Run] for those who read it: JSON for
// programs, JUnit XML for CI servers, a console report, one HTML page and one
// Markdown summary for people. It also merges the runs of shards, compares two
// runs, and writes files so that a report is either whole or not there.
//
// It promises that everything comes from the run alone, so that the same run
// gives the same octets, and that text which a server sent can do nothing in a
// terminal, an XML file or a page: whatever is not a printable character is
// written as \x1b or \u202e. It refuses to judge: it shows verdicts and never
// changes one, and it never says "ready", because no run shows that by itself.
package reports
