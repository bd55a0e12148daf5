package harness_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
)

// asGeneric makes the site's source one of which nothing is known but how it is
// told of clients.
func (r *rehearsal) asGeneric(announces string) {
	var out []string
	for _, line := range strings.Split(r.text, "\n") {
		switch {
		case strings.HasPrefix(line, "kind = "):
			line = "kind = \"generic\"\nannounces = " + announces
		case strings.HasPrefix(line, "version = "):
			continue
		}
		out = append(out, line)
	}
	r.text = strings.Join(out, "\n")
}

func tellFailures(t *testing.T, found *result.Run) {
	t.Helper()
	for i := range found.Results {
		if r := &found.Results[i]; r.Verdict != result.Pass && r.Verdict != result.Unsupported {
			t.Logf("%s: %s %s%s", r.Key(), r.Verdict, r.Reason, harness.Describe(r))
		}
	}
	t.Logf("%s; %+v, %d results in %.1f s", found.Answer.Sentence, found.Counts, len(found.Results), found.Seconds)
}

// headers makes each listener of the reference source but port 25 take a PROXY
// header: Dovecot from the proxy alone, Postfix from whoever connects.
func headers() fixtures.Layer {
	var b strings.Builder
	for _, l := range []struct {
		service, name string
		port          int
		ssl           bool
	}{{"imap-login", "imap", 143, false}, {"imap-login", "imaps", 993, true}, {"pop3-login", "pop3", 110, false}, {"pop3-login", "pop3s", 995, true}, {"managesieve-login", "sieve", 4190, false}} {
		ssl := ""
		if l.ssl {
			ssl = "    ssl = yes\n"
		}
		fmt.Fprintf(&b, "service %s {\n  inet_listener %s {\n    port = %d\n%s    haproxy = yes\n  }\n}\n", l.service, l.name, l.port, ssl)
	}
	b.WriteString("haproxy_trusted_networks = @proxy4@ @proxy6@\n")
	return fixtures.Layer{Name: "headers", Files: map[string]string{"dovecot/95-headers.conf": b.String(),
		"postfix/master.cf": "submission/inet/smtpd_upstream_proxy_protocol=haproxy\nsubmissions/inet/smtpd_upstream_proxy_protocol=haproxy\n"}}
}

// genericSpec is a reference source that is really told of clients as is said.
func genericSpec(to string, layers ...fixtures.Layer) harness.SourceSpec {
	spec := harness.SourceSpec{Name: "generic", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: "instrumented", Layers: layers,
		Forwarding: fixtures.Forwarding{Mail: to, Submission: to}}
	switch to {
	case "mixed":
		spec.Forwarding = fixtures.Forwarding{Mail: "proxy", Submission: "xclient"}
		of := headers()
		delete(of.Files, "postfix/master.cf")
		spec.Layers = append([]fixtures.Layer{of}, layers...)
	case "none":
		spec.Bare = true
	case "proxy":
		spec.Bare = true
		spec.Layers = append([]fixtures.Layer{headers()}, layers...)
	}
	return spec
}

// mixed declares a source whose services are not told alike.
const mixed = `{ imap = "proxy", imaps = "proxy", pop3 = "proxy", pop3s = "proxy", sieve = "proxy", submission = "xclient", submissions = "xclient" }`

// A reference source that is declared as what it is is judged, and what its log
// says is read without knowing its form.
func TestGenericSourcesDeclaredTruthfully(t *testing.T) {
	for _, c := range []struct{ name, announces string }{
		{"xclient", `"xclient"`}, {"none", `"none"`},
		{"mixed", mixed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rehearseSpec(t, genericSpec(c.name))
			r.asGeneric(c.announces)
			found := r.judge(t, everything()...)
			tellFailures(t, found)
			assert.Equal(t, found.Answer.Verdict, result.Ready, found.Answer.Sentence)
			assert.Check(t, found.Counts.Pass > 100, "%+v", found.Counts)
		})
	}
}

// misbehaving is a reference source that has a bug.
func misbehaving(to, bug string) harness.SourceSpec {
	spec := genericSpec(to)
	spec.Bugs = []string{bug}
	return spec
}

// A source of which nothing but IMAP is declared, and that does not know what ID
// can announce, is taken for what it is on a first look already: not for one
// that trusts the wrong address.
func TestAGenericSourceThatTakesNoAnnouncement(t *testing.T) {
	look := func(o *run.Options) { o.MaxRisk, o.Brief = script.R1, true }
	for _, c := range []struct {
		name  string
		spec  harness.SourceSpec
		leave string // the services that are declared of it
		code  string
	}{
		{"all services", genericSpec("none"), "", "MP-DECLARED-XCLIENT"},
		{"IMAP alone", genericSpec("none"), "imap imaps", "MP-DECLARED-XCLIENT"},
		{"believed in one family", genericSpec("xclient", defect(t, "trust-ip4-only")), "imap imaps", "DX-14"},
	} {
		if sample && c.name != "IMAP alone" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.spec.Forwarding = fixtures.Forwarding{Mail: "xclient", Submission: "xclient"}
			r := rehearseSpec(t, c.spec)
			r.asGeneric(`"xclient"`)
			if c.leave != "" {
				r.serves(strings.Fields(c.leave)...)
			}
			found := r.judge(t, look)
			assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
			if len(found.Diagnoses) != 1 || found.Diagnoses[0].Code != c.code {
				tellFailures(t, found)
				t.Fatalf("%+v", found.Diagnoses)
			}
			t.Logf("%s; %s", found.Answer.Sentence, strings.Join(found.Diagnoses[0].DiscriminatedBy, "; "))
		})
	}
}

// serves leaves no other services declared of the source.
func (r *rehearsal) serves(names ...string) {
	at := strings.Index(r.text, "[source.old]")
	var out []string
	for _, line := range strings.Split(r.text[at:], "\n") {
		name, _, _ := strings.Cut(line, " = ")
		if slices.ContainsFunc(harness.Endpoints(), func(e run.Endpoint) bool { return e.Name == name }) && !slices.Contains(names, name) {
			continue
		}
		out = append(out, line)
	}
	r.text = r.text[:at] + strings.Join(out, "\n")
}

// A declaration that is wrong is found out, and named first; so is a source
// that is declared rightly and set up wrongly.
func TestGenericSourcesDeclaredWrongly(t *testing.T) {
	for _, c := range []struct {
		name, declared string
		spec           harness.SourceSpec
		code           string
	}{
		{"proxy of none", "proxy", genericSpec("none"), "MP-DECLARED-PROXY"},
		{"proxy of xclient", "proxy", genericSpec("xclient"), "MP-DECLARED-PROXY"},
		{"none of proxy", "none", genericSpec("proxy"), "MP-DECLARED-NONE"},
		{"xclient of proxy", "xclient", genericSpec("proxy"), "MP-DECLARED-NONE"},
		{"none of one listener", "none", genericSpec("none", defect(t, "haproxy-listener")), "MP-DECLARED-NONE"},
		{"xclient of none", "xclient", genericSpec("none"), "MP-DECLARED-XCLIENT"},
		{"xclient of nobody trusted", "xclient", genericSpec("xclient", defect(t, "trust-missing")), "MP-DECLARED-XCLIENT"},
		{"proxy from anybody", "proxy", genericSpec("proxy"), "DX-27"},
		{"proxy from somebody else", mixed, genericSpec("mixed", fixtures.Layer{Name: "elsewhere", Files: map[string]string{"dovecot/96-elsewhere.conf": "haproxy_trusted_networks = 192.0.2.250\n"}}), "MP-HEADER-REFUSED"},
		{"proxy from everybody", "proxy", genericSpec("proxy", fixtures.Layer{Name: "everybody", Files: map[string]string{"dovecot/96-everybody.conf": "haproxy_trusted_networks = 0.0.0.0/0 ::/0\n"}}), "DX-27"},
		{"xclient from the network", "xclient", genericSpec("xclient", defect(t, "trust-subnet")), "DX-27"},
		{"port 25 waits", "xclient", genericSpec("xclient", defect(t, "smtpd-upstream-proxy")), "DX-06"},
		{"no PLAIN", "xclient", genericSpec("xclient", defect(t, "no-sasl-plain")), "MP-SASL-PLAIN"},
		{"open relay", "none", genericSpec("none", defect(t, "open-relay")), "MP-OPEN-RELAY"},
		{"the proxy relays", "xclient", genericSpec("xclient", defect(t, "proxy-in-mynetworks")), "DX-28"},
		{"the new server is refused", "xclient", genericSpec("xclient", defect(t, "relay-refused")), "DX-08"},
		{"a port is dead", "xclient", genericSpec("xclient", defect(t, "service-missing")), "DX-16"},
		{"too many connections", "xclient", misbehaving("xclient", "turns-away"), "MP-BUSY"},
	} {
		if sample && !slices.Contains([]string{"proxy of none", "none of proxy", "xclient of none", "proxy from anybody", "open relay"}, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.declared != mixed {
				c.spec.Forwarding = fixtures.Forwarding{Mail: c.declared, Submission: c.declared}
				c.declared = `"` + c.declared + `"`
			}
			r := rehearseSpec(t, c.spec)
			r.asGeneric(c.declared)
			found := r.judge(t, everything()...)
			assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
			assert.Assert(t, len(found.Diagnoses) > 0, found.Answer.Sentence)
			t.Logf("%s (%.1f s)", found.Answer.Sentence, found.Seconds)
			for _, d := range found.Diagnoses {
				t.Logf("%s %s: %s", d.Code, d.Title, d.Remedy.Text)
			}
			if found.Diagnoses[0].Code != c.code {
				tellFailures(t, found)
			}
			assert.Equal(t, found.Diagnoses[0].Code, c.code, found.Answer.Sentence)
			assert.Assert(t, found.Diagnoses[0].Remedy.Text != "" && len(found.Diagnoses[0].Remedy.Changes) == 0, "plain words, since nobody knows the source's own")
		})
	}
}

func defect(t *testing.T, name string) fixtures.Layer {
	t.Helper()
	d, err := fixtures.DefectNamed(name)
	assert.NilError(t, err)
	layer, err := d.Layer("trixie")
	assert.NilError(t, err)
	return layer
}

// Whatever is missing is named, and so is a log that tells nothing: then the
// answer is never "ready", and never "not ready" for that alone.
func TestWhatIsMissingAtAGenericSourceIsNamed(t *testing.T) {
	r := rehearseSpec(t, genericSpec("xclient"))
	r.asGeneric(`"xclient"`)
	whole := r.text
	for _, c := range []struct{ without, names string }{
		{"client = ", "client to [vantage]"}, {"proxy = ", "proxy to [vantage]"}, {"log = ", "to [source.old]"}, {"[account.", "2 accounts of old"},
	} {
		if sample && c.without != "log = " {
			continue
		}
		t.Run(strings.Trim(c.without, "[ =."), func(t *testing.T) {
			r.text = whole
			r.without(c.without)
			found := r.judge(t, everything()...)
			assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
			assert.Check(t, strings.Contains(found.Answer.Sentence, c.names), found.Answer.Sentence)
			assert.Check(t, found.Counts.Pass > 0)
		})
	}
	for name, tells := range map[string]func(string) string{
		"no addresses": func(line string) string {
			return regexp.MustCompile(`(rip|lip|client)=[^ ,]*|\[[0-9a-f.:]+\](:\d+)?`).ReplaceAllString(line, "somebody")
		},
		"addresses of nobody": func(line string) string {
			return regexp.MustCompile(`rip=[^ ,]*`).ReplaceAllString(regexp.MustCompile(`\[[0-9a-f.:]+\](:\d+)?`).ReplaceAllString(line, "[10.9.9.9]"), "rip=10.9.9.9")
		},
	} {
		t.Run(name, func(t *testing.T) {
			strange := rehearseSpec(t, genericSpec("xclient"))
			strange.asGeneric(`"xclient"`)
			strange.tells = tells
			found := strange.judge(t, append(everything(), harness.Select("client-address.imap", "client-address.pop3", "lifecycle.greeting-*"))...)
			assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
			assert.Equal(t, found.Counts.Fail, 0)
			assert.Check(t, found.Counts.Inconclusive > 0 && found.Counts.Pass > 0, "%+v", found.Counts)
			assert.Check(t, strings.Contains(found.Answer.Sentence, "a log of old whose lines tell who signed in from which address"), found.Answer.Sentence)
		})
	}
}
