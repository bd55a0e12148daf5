// Package result is the one model of what a run found. Every report is
// rendered from a [Run] alone, and nothing else travels between the engine
// and the reports.
//
// The package promises plain values: no behaviour beyond ordering, counting
// and naming, no clocks, no I/O. Within one schema number fields are only
// ever added.
package result

import (
	"fmt"
	"strings"
	"time"
)

// Schema names the version of the JSON form of [Run].
const Schema = "mailproof.result/1"

// Verdict is what can be said of one claim at one facet.
type Verdict string

// The five verdicts. Inconclusive is not a weaker pass: it says that no
// witness or no vantage was there, and [Result.Reason] names which.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive"
	Unsupported  Verdict = "unsupported"
	Error        Verdict = "error"
)

// Verdicts lists every verdict, worst first.
func Verdicts() []Verdict { return []Verdict{Fail, Error, Inconclusive, Unsupported, Pass} }

// Origin says what stood in for a source.
type Origin string

// The origins of a source.
const (
	FromImage     Origin = "image"
	FromExec      Origin = "exec"
	FromReference Origin = "reference"
	FromSite      Origin = "site"
)

// Level is how binding the requirement behind a claim is (RFC 2119).
type Level string

// The three levels.
const (
	Must   Level = "must"
	Should Level = "should"
	May    Level = "may"
)

// Run is one run of scenarios against one target.
type Run struct {
	Schema    string      `json:"schema"`
	Tool      Tool        `json:"tool"`
	Target    Target      `json:"target"`
	Plan      Plan        `json:"plan"`
	Started   time.Time   `json:"started"` // UTC
	Seconds   float64     `json:"seconds"`
	Counts    Counts      `json:"counts"`
	Exit      int         `json:"exit"`
	Problems  []Problem   `json:"problems"`
	Diagnoses []Diagnosis `json:"diagnoses"` // root cause first
	Excluded  []Excluded  `json:"excluded"`
	Results   []Result    `json:"results"`
	// Notices are sentences that every human report must show before
	// anything else: a stand-in that was not asked for, an overlay.
	Notices []string `json:"notices"`
	// Answer is what a run at a site comes to; labs have none.
	Answer *Answer `json:"answer,omitempty"`
}

// The three answers.
const (
	Ready          = "ready"
	NotReady       = "not-ready"
	NotFullyJudged = "not-fully-judged"
)

// Answer is the one sentence that a run at a site ends with.
type Answer struct {
	Verdict  string   `json:"verdict"`  // "ready", "not-ready" or "not-fully-judged"
	Sentence string   `json:"sentence"` // for people
	Because  []string `json:"because"`  // why it is not ready, root cause first
	Add      []string `json:"add"`      // what would have to be added to judge the rest
}

// Tool says which mailproof wrote the run.
type Tool struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
}

// Target says what was judged.
type Target struct {
	Kind    string   `json:"kind"` // "reference", "docker" or "site"
	Sources []Source `json:"sources"`
	Proxy   string   `json:"proxy"`  // "reference", "image:…", "exec:…", "addr:…" or ""
	Engine  string   `json:"engine"` // the container engine and its version, or ""
}

// Source is one mail system that was judged.
type Source struct {
	Name    string `json:"name"` // as spelled on the command line
	Kind    string `json:"kind"`
	Version string `json:"version"`
	Profile string `json:"profile"`
	Origin  Origin `json:"origin"`
	// Layers names what was laid over the profile: defects, overlays, remedies.
	Layers []string `json:"layers,omitempty"`
	// Software is what the server's own packages or banners say they are.
	Software string `json:"software,omitempty"`
}

// Plan identifies what was planned to be sent.
type Plan struct {
	SHA256  string `json:"sha256"`
	MaxRisk string `json:"max_risk"`
	// Shard is the part of the plan that was run, "2/3" with --shard 2/3, or "".
	Shard string `json:"shard,omitempty"`
}

// Counts is the number of results by verdict.
type Counts struct {
	Pass         int `json:"pass"`
	Fail         int `json:"fail"`
	Inconclusive int `json:"inconclusive"`
	Unsupported  int `json:"unsupported"`
	Error        int `json:"error"`
}

// Total is the number of results counted.
func (c Counts) Total() int {
	return c.Pass + c.Fail + c.Inconclusive + c.Unsupported + c.Error
}

// Count counts results by verdict.
func Count(rs []Result) Counts {
	var c Counts
	for i := range rs {
		switch rs[i].Verdict {
		case Pass:
			c.Pass++
		case Fail:
			c.Fail++
		case Inconclusive:
			c.Inconclusive++
		case Unsupported:
			c.Unsupported++
		case Error:
			c.Error++
		}
	}
	return c
}

// Problem is something that kept a source, a vantage or a report from being
// there at all. It stands in place of a cascade of failed claims.
type Problem struct {
	Source string  `json:"source"` // "" when it concerns the whole run
	Stage  string  `json:"stage"`  // "engine", "image", "start", "overlay", "vantage", "report" …
	Where  string  `json:"where"`  // a file, an address, a container
	Words  string  `json:"words"`  // what happened, in the words of whoever refused
	Remedy *Remedy `json:"remedy,omitempty"`
}

// Diagnosis is the cause behind one or more findings.
type Diagnosis struct {
	Code            string   `json:"code"` // "DX-nn" or "MP-…"
	Title           string   `json:"title"`
	Source          string   `json:"source"`
	Level           Level    `json:"level"`            // the most binding level among its results
	Means           string   `json:"means"`            // one paragraph for the operator
	Results         []string `json:"results"`          // [Result.Key] of what it explains
	DiscriminatedBy []string `json:"discriminated_by"` // observations that chose it
	Alternatives    []string `json:"alternatives"`     // causes it was told from, and why not
	Remedy          Remedy   `json:"remedy"`
}

// Remedy is what to change, in the words of the target's own configuration.
type Remedy struct {
	Text    string   `json:"text"`
	Changes []Change `json:"changes,omitempty"`
	Apply   []string `json:"apply,omitempty"` // the commands that put it in force, in order
}

// Change is one setting in one file. Its Layer and Line are what a lab lays
// over the defective source to prove that the remedy cures.
type Change struct {
	File    string `json:"file"`              // on the operator's server
	Line    int    `json:"line,omitempty"`    // where the wrong setting stands now; 0 when it is absent
	Setting string `json:"setting"`           // login_trusted_networks, submission/inet/smtpd_…
	Found   string `json:"found,omitempty"`   // what stands there now
	Text    string `json:"text"`              // the whole line that must stand there
	Because string `json:"because,omitempty"` // one clause
	// Layer is the file of a configuration layer that carries the change in a
	// lab: "dovecot/99-remedy.conf", "postfix/main.cf" or "postfix/master.cf".
	Layer string `json:"layer,omitempty"`
}

// Excluded is a scenario that was left out by name.
type Excluded struct {
	ID     string `json:"id"`
	Reason string `json:"reason"`
}

// Facet is the protocol, port, TLS mode, address family and driver that a
// result is about.
type Facet struct {
	Protocol string `json:"protocol"` // imap, pop3, managesieve, smtp, lmtp, http
	Endpoint string `json:"endpoint"` // imap, imaps, submission …: the service's name
	Port     int    `json:"port"`
	TLS      string `json:"tls"`    // none, starttls, implicit
	Family   string `json:"family"` // ip4, ip6
	Driver   string `json:"driver"` // as-proxy, direct, through
}

// String is the facet as reports print it: "imaps/ip6/as-proxy".
func (f Facet) String() string {
	parts := make([]string, 0, 3)
	for _, p := range []string{f.Endpoint, f.Family, f.Driver} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "/")
}

// Result is the verdict on one scenario, at one source, at one facet.
type Result struct {
	ID           string    `json:"id"`
	Source       string    `json:"source"`
	Origin       Origin    `json:"origin"`
	Level        Level     `json:"level"`
	Claim        string    `json:"claim"`
	Requirements []string  `json:"requirements"`
	Spec         string    `json:"spec,omitempty"`
	Facet        Facet     `json:"facet"`
	Verdict      Verdict   `json:"verdict"`
	Risk         string    `json:"risk"` // R0 … R5
	Seconds      float64   `json:"seconds"`
	Unstable     bool      `json:"unstable"`
	Repeats      []Verdict `json:"repeats,omitempty"` // with --repeat: every verdict, in order
	Phases       []Phase   `json:"phases"`
	Findings     []Finding `json:"findings"`
	Witness      []Witness `json:"witness"`
	Transcript   string    `json:"transcript"`
	Reason       string    `json:"reason"` // why it could not be judged, or what the harness failed at
	File         string    `json:"file"`   // the scenario's file
	Line         int       `json:"line"`   // of the step that decided, else 1
	// ExplainedBy is the code of the diagnosis that covers this result, or the
	// key of the result whose failure makes this one meaningless.
	ExplainedBy string `json:"explained_by,omitempty"`
}

// Key names a result within its run, and is stable between runs.
func (r *Result) Key() string {
	return fmt.Sprintf("%s @ %s %s", r.ID, r.Source, r.Facet)
}

// Group is the part of the id before the first dot: the claim's folder.
func (r *Result) Group() string {
	g, _, _ := strings.Cut(r.ID, ".")
	return g
}

// Phase is one titled part of a scenario.
type Phase struct {
	Title   string  `json:"title"`
	Line    int     `json:"line"`
	Seconds float64 `json:"seconds"`
}

// Finding is a failed claim in four sentences and the evidence.
type Finding struct {
	Code     string   `json:"code"` // mismatch, forbidden, closed, timeout, missing, open …
	Wanted   string   `json:"wanted"`
	Found    string   `json:"found"`
	Means    string   `json:"means"`
	Remedy   string   `json:"remedy"`
	At       At       `json:"at"`
	Evidence []string `json:"evidence"`
	// Facts are the observations a diagnosis is chosen by, such as
	// "recorded=proxy" or "reply=501 5.5.4".
	Facts []string `json:"facts,omitempty"`
}

// At is a place in a scenario.
type At struct {
	File string `json:"file"`
	Line int    `json:"line"`
}

// Witness is one joined record that a verdict rests on.
type Witness struct {
	Kind     string `json:"kind"` // log, message, capability, effect
	Line     string `json:"line"`
	JoinedBy string `json:"joined_by"` // "session=…", "user=…", "queue-id=…"
}

// The exit statuses of the command line contract.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitUnjudged    = 3
	ExitEmpty       = 4
	ExitInterrupted = 130
)
