package site

import (
	"fmt"
	"slices"

	"github.com/mailproof/mailproof/harness/run"
)

// generic is the kind of a source of which nothing is known but what the file
// says: what it serves, and how it is told of clients.
const generic = "generic"

// announcements are the values of announces.
func announcements() []run.Announcement {
	return []run.Announcement{run.ByNothing, run.ByXCLIENT, run.ByPROXY}
}

const announcesForms = `"none" (it sees the proxy), "xclient" (XCLIENT, and ID over IMAP) or "proxy" (a PROXY header of version 2), or a table that says so of each service: { imap = "none", submission = "proxy" }`

// generic reads what is declared of a generic source.
func (t table) generic(s *Source) {
	if _, ok := t.m["version"]; ok {
		t.wrong("version", "is not for sources of kind generic: nothing is known of their versions")
	}
	read := func(at table, key string) run.Announcement {
		a := run.Announcement(at.text(key))
		if a != "" && !slices.Contains(announcements(), a) {
			at.wrong(key, "%q is no announcement: write %s", a, announcesForms)
		}
		return a
	}
	s.Announces = map[string]run.Announcement{}
	switch v := t.m["announces"].(type) {
	case nil:
		t.p.wrong(t.path, "announces is missing: how the proxy tells this source of a client: %s", announcesForms)
	case string:
		a := read(t, "announces")
		for _, e := range s.Endpoints {
			s.Announces[e.Name] = a
		}
	case map[string]any:
		at := table{p: t.p, path: t.key("announces"), m: v}
		at.known(endpointNames()...)
		for _, e := range s.Endpoints {
			_, named := v[e.Name]
			switch {
			case named:
				s.Announces[e.Name] = read(at, e.Name)
			case e.Name != "smtp":
				t.p.wrong(at.path, "%s is missing: how the source is told of a client there", e.Name)
			}
		}
		for name := range v {
			if !slices.ContainsFunc(s.Endpoints, func(e run.Endpoint) bool { return e.Name == name }) && slices.Contains(endpointNames(), name) {
				at.wrong(name, "the source has no such service: its port is missing")
			}
		}
	default:
		t.wrong("announces", "write %s", announcesForms)
	}
	if a, ok := s.Announces["smtp"]; ok && a == "proxy" {
		if _, table := t.m["announces"].(map[string]any); table {
			t.wrong("announces", "port 25 is for the new server, which announces nobody: leave smtp out")
		}
		s.Announces["smtp"] = run.ByNothing
	}
}

// declare hands on what was declared of a generic source.
func (b *builder) declare(s *Source, src *run.Source) {
	if s.Kind != generic {
		return
	}
	src.Announces, src.AnnouncesAt = run.ByNothing, s.Announces
	var unannounced []string
	for _, e := range s.Endpoints {
		if e.Name == "smtp" {
			continue
		}
		switch a := src.AnnouncedOn(e.Name); a {
		case run.ByNothing:
			unannounced = append(unannounced, e.Name)
			fallthrough
		default:
			if src.Version == "" {
				src.Version = string(a)
			} else if src.Version != string(a) {
				src.Version = "mixed"
			}
		}
	}
	if len(unannounced) > 0 {
		b.t.Notices = append(b.t.Notices, fmt.Sprintf("%s is told of no client on %s: whoever comes through the proxy appears there under the proxy's address, to limits, bans and logs", s.Label, join(unannounced)))
	}
}

func join(words []string) string {
	out := ""
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			out += " and "
		default:
			out += ", "
		}
		out += w
	}
	return out
}
