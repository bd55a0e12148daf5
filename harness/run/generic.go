package run

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/wire"
	"github.com/mailproof/mailproof/harness/witness"
)

// generic is the kind of a source of which nothing is known but what its
// operator declared.
const generic = "generic"

// AnnouncedOn is how a proxy tells the source of a client on one endpoint. On
// port 25 of a generic source nobody is announced.
func (s *Source) AnnouncedOn(endpoint string) Announcement {
	if s.Kind == generic && endpoint == "smtp" {
		return ByNothing
	}
	if a, ok := s.AnnouncesAt[endpoint]; ok {
		return a
	}
	if s.Announces == "" {
		return ByXCLIENT
	}
	return s.Announces
}

// is says whether the source was declared as "kind", "kind@version" or
// "kind@profile"; of a generic source the version is how an endpoint is told of
// clients.
func (s *Source) is(word, endpoint string) bool {
	kind, version, _ := strings.Cut(word, "@")
	switch {
	case kind != s.Kind:
		return false
	case version == "", version == s.Profile:
		return true
	case kind == generic:
		return version == string(s.AnnouncedOn(endpoint))
	case version == "instrumented" && s.Detailed:
		return true
	}
	return version == s.Version
}

// declared names what the source was declared to be, as a need spells it.
func (s *Source) declared(endpoint string) string {
	if s.Kind == generic {
		if _, ok := s.Endpoint(endpoint); !ok {
			return generic
		}
		return generic + "@" + string(s.AnnouncedOn(endpoint)) + " on " + endpoint
	}
	return s.Kind + "@" + s.Version
}

// detour says whether the harness itself signs in through the public proxy: a
// generic source that takes nobody without a header serves nobody but the proxy.
func (r *runner) detour(s *Source, endpoint string) (Endpoint, bool) {
	if s.Kind != generic || s.AnnouncedOn(endpoint) != ByPROXY || r.target.Proxy == nil {
		return Endpoint{}, false
	}
	return r.target.Proxy.Endpoint(endpoint)
}

// ownTLS is the TLS configuration of what [runner.direct] dials.
func (r *runner) ownTLS(s *Source, endpoint string) *tls.Config {
	if _, ok := r.detour(s, endpoint); ok {
		return r.target.proxyTLS(s)
	}
	return r.target.sourceTLS(s)
}

// introduce announces the harness itself where a generic source takes nobody
// without a header, for its own needs: its own address, truthfully.
func introduce(s *Source, c net.Conn, ep Endpoint, to netip.Addr) error {
	if s.Kind != generic || s.AnnouncedOn(ep.Name) != ByPROXY {
		return nil
	}
	from, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return err
	}
	h := proto.ProxyHeader{Form: proto.ProxyV2, Src: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Dst: netip.AddrPortFrom(to, ep.Port)}
	b, err := h.Encode()
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}

// turnedAway ends a scenario whose claim holds because the source refused the
// connection.
func (x *execution) turnedAway(s *session, how string) error {
	x.tr.Add(s.open.Name, wire.Note, false, "turned away: "+how)
	return errStop
}

// lined judges a witness block against a log of unknown form. The claim holds
// where a line that names one of our marks names the expected address and no
// other party of this run. It fails where such a line names another party of
// this run in its place. Everything else is left open: nobody knows what such a
// log tells and what it does not.
func (x *execution) lined(st *script.Witness) error {
	wg := x.watch[st]
	source := x.item.source
	if wg == nil {
		return &openClaim{reason: x.r.noLog(source)}
	}
	want, by := "", ""
	for _, w := range st.Wants {
		want = w.Pattern.Show(x.env)
	}
	var keys []string
	for i, j := range st.Joins {
		switch {
		case wg.keys[i] == "" || j.Field == "user" && x.sharedName(j.Value):
		default:
			keys = append(keys, wg.keys[i])
		}
	}
	if len(keys) == 0 {
		return &openClaim{reason: "the name of the account joins no line, because somebody else signs in to it, or because lines of its earlier sessions did not come in time: to judge it, add another account of " + source.Name}
	}
	limit := x.r.opts.grace()
	if x.r.care == nil {
		limit = x.r.opts.Deadlines.Witness / 4
	}
	if x.r.silent(source) != "" {
		limit = 0
	}
	ctx, cancel := context.WithTimeout(x.ctx, limit)
	defer cancel()
	var seen *sighting
	rs, err := wg.w.Await(ctx, func(rs []witness.Record) bool {
		seen, by = x.sightings(rs, keys, want)
		// A line that names another party may be an earlier session's: ours is
		// waited for as long as it may take.
		return seen.settled() && seen.wanted && (field(by) != "user" || seen.telling >= x.signed[strings.TrimPrefix(by, "user=")])
	})
	if cause := context.Cause(x.ctx); cause != nil {
		return cause
	}
	seen, by = x.sightings(rs, keys, want)
	if why := x.r.silent(source); why != "" && !seen.settled() {
		return &openClaim{reason: why}
	}
	if lerr := x.r.logErr(source); err != nil && lerr != nil && !seen.settled() {
		return &openClaim{reason: fmt.Sprintf("%v: to judge it, add a log of %s that can be read for the whole run", lerr, source.Name)}
	}
	if why := seen.open(x, keys); why != "" {
		return &openClaim{reason: why + fmt.Sprintf(": to judge it, add a log of %s whose lines tell who signed in from which address", source.Name)}
	}
	var evidence []string
	for _, l := range seen.lines {
		evidence = append(evidence, wire.Visible(x.redacted(l)))
	}
	x.res.Witness = append(x.res.Witness, result.Witness{Kind: "log", Line: strings.Join(evidence, "\n"), JoinedBy: by})
	if seen.wanted {
		return nil
	}
	at := st.Wants[0].Pos
	f := result.Finding{Code: "mismatch", Wanted: "a line of this session's in the source's log with the address " + x.who(want),
		Found: wire.Visible("it names " + x.who(seen.others[0])), Evidence: evidence,
		Facts: []string{"kind=line", "joined=" + field(by), "wanted:address=" + x.env.name(want)}}
	for _, o := range seen.others {
		f.Facts = append(f.Facts, "recorded:address="+x.env.name(o))
	}
	x.find(at, f)
	return nil
}

// joinedBy says whether the item looks for a user's name in a log of unknown form.
func (it *item) joinedBy(user string) bool {
	return it.source.Kind == generic && slices.ContainsFunc(it.witnesses, func(w *script.Witness) bool {
		return w.Kind == "line" && slices.ContainsFunc(w.Joins, func(j script.Join) bool {
			return slices.ContainsFunc(j.Value.Refs(), func(r script.Ref) bool { return r.Name == "user."+user })
		})
	})
}

// sightings looks at the records that the first key joins which joins any that
// tell of a party; else that joins any.
func (x *execution) sightings(rs []witness.Record, keys []string, want string) (best *sighting, by string) {
	best = &sighting{}
	for _, key := range keys {
		var joined []witness.Record
		for i := range rs {
			if rs[i].Kind == witness.Line && rs[i].JoinedBy(key) {
				joined = append(joined, rs[i])
			}
		}
		s := x.sight(joined, want)
		if s.telling > 0 {
			return s, key
		}
		if s.joined > best.joined {
			best, by = s, key
		}
	}
	return best, by
}

// A sighting is which addresses the joined lines name.
type sighting struct {
	joined  int
	telling int  // records that name a party of this run
	wanted  bool // the expected address is named
	others  []string
	unknown []string // addresses of nobody in this run
	lines   []string
}

// sight looks at the lines that name one of our marks; where they name no
// address, at the others of the same session.
func (x *execution) sight(joined []witness.Record, want string) *sighting {
	s := &sighting{joined: len(joined)}
	for i := range joined {
		r := &joined[i]
		addresses := r.Fields["named"]
		if !slices.ContainsFunc(addresses, func(a string) bool { return x.env.name(a) != "" }) {
			addresses = r.Fields["address"]
		}
		told := false
		for _, a := range addresses {
			switch {
			case a == want, x.item.driver == "through" && x.env.name(want) == Proxy && x.env.name(a) == Proxy:
				// The proxy reaches the source in either family, whatever its client's.
				s.wanted, told = true, true
			case x.env.name(a) == "" || x.env.name(a) == "public":
				if !slices.Contains(s.unknown, a) {
					s.unknown = append(s.unknown, a)
				}
			default:
				told = true
				if !slices.Contains(s.others, a) {
					s.others = append(s.others, a)
				}
			}
		}
		if told {
			s.telling++
			s.lines = append(s.lines, r.Lines...)
		}
	}
	s.lines = s.lines[:min(len(s.lines), 12)]
	return s
}

// settled says whether the lines say enough.
func (s *sighting) settled() bool { return s.wanted != (len(s.others) > 0) }

// open says why the lines do not decide the claim, or "".
func (s *sighting) open(x *execution, keys []string) string {
	switch {
	case s.settled():
		return ""
	case s.wanted:
		return "the log's lines name more than one party of this run (" + x.who(s.others[0]) + " as well), and nobody knows which of them it takes for the client"
	case s.joined == 0:
		return "no line of the log names this session (looked for " + strings.Join(keys, ", ") + ")"
	case len(s.unknown) > 0:
		return "the log's lines of this session name " + listed(s.unknown) + ", which is none of the addresses that took part"
	}
	return "the log's lines of this session name no address"
}

// showGeneric makes a generic source write a line of ours to its log: a
// recipient of our own is refused on port 25, or a user who does not exist
// signs in. Both names are of this attempt alone.
func (r *runner) showGeneric(ctx context.Context, s *Source, l *witness.Log, wait time.Duration) error {
	last := errors.New("the source was declared without an endpoint on which a line could be caused")
	if _, ok := s.Endpoint("smtp"); ok {
		if last = r.refusedRecipient(ctx, s, l, wait); last == nil || ctx.Err() != nil || l.Err() != nil {
			return last
		}
	}
	for _, endpoint := range r.care.endpoints(s) {
		if _, ok := s.Endpoint(endpoint); !ok {
			continue
		}
		last = r.showLineAt(ctx, s, l, endpoint, wait)
		var unseen *unseenLine
		if last == nil || errors.As(last, &unseen) || ctx.Err() != nil || l.Err() != nil {
			return last
		}
	}
	return fmt.Errorf("the session that was to show it: %w", last)
}
