package run

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/mailproof/mailproof/harness/result"
)

// advise says what to do about a dialogue that broke down, or began with
// something else than a greeting, and that no cause explains: there is no setting to name, but there is a place to look.
func advise(t *Target, run *result.Run) {
	broken := []string{"timeout", "closed", "malformed", "tls", "unreachable"}
	for i := range run.Results {
		r := &run.Results[i]
		if r.ExplainedBy != "" {
			continue
		}
		for k := range r.Findings {
			if f := &r.Findings[k]; f.Remedy == "" && (slices.Contains(broken, f.Code) || slices.Contains(f.Facts, "at=greeting")) {
				f.Remedy = fmt.Sprintf("No cause was found for this. Speak to the port by hand%s, and read the server's own log of that moment.", byHand(t, r))
			}
		}
	}
}

// byHand is a command that speaks to the port of a result, from where the
// result's driver acts.
func byHand(t *Target, r *result.Result) string {
	vantage := Proxy
	if r.Facet.Driver != "as-proxy" {
		vantage = Client
	}
	for _, s := range t.Sources {
		if s.Name != r.Source {
			continue
		}
		a := s.Addr(vantage, Family(r.Facet.Family))
		if r.Facet.Driver == "through" && t.Proxy != nil {
			a = t.Proxy.Addr(Family(r.Facet.Family))
		}
		if !a.IsValid() {
			return ""
		}
		at := netip.AddrPortFrom(a, uint16(r.Facet.Port))
		switch {
		case r.Facet.TLS == "implicit":
			return fmt.Sprintf(" (openssl s_client -connect %s)", at)
		case r.Facet.TLS == "starttls" && r.Facet.Protocol == "managesieve":
			return fmt.Sprintf(" (openssl s_client -starttls sieve -connect %s)", at)
		case r.Facet.TLS == "starttls":
			return fmt.Sprintf(" (openssl s_client -starttls %s -connect %s)", r.Facet.Protocol, at)
		}
		return fmt.Sprintf(" (nc %s %d)", a, r.Facet.Port)
	}
	return ""
}
