package stalwart

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// settings are a server's two layers of settings: those of the configuration
// file and those of the database. A key of the file hides the same key of the
// database. Where a key is written to, its name decides.
type settings struct {
	mu   sync.Mutex
	file map[string]string
	db   map[string]string
	// piles keeps each value that a key was given, and clearing takes one away.
	piles bool
	below map[string][]string // what lies under the value that counts
}

// A pair is one setting.
type pair struct{ key, value string }

// isLocal says whether a key belongs into the configuration file.
func isLocal(key string) bool {
	switch first, rest, _ := strings.Cut(key, "."); first {
	case "store", "directory", "tracer", "certificate", "cluster":
		return true
	case "server":
		return !strings.HasPrefix(rest, "blocked-ip.") && !strings.HasPrefix(rest, "allowed-ip.")
	case "config":
		return strings.HasPrefix(rest, "local-keys")
	case "authentication":
		return strings.HasPrefix(rest, "fallback-admin.")
	case "storage":
		switch rest {
		case "data", "blob", "lookup", "fts", "directory":
			return true
		}
	case "enterprise":
		return rest == "license-key"
	}
	return false
}

func (s *settings) get(key string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.file[key]; ok {
		return v, true
	}
	v, ok := s.db[key]
	return v, ok
}

// list returns the settings whose keys begin with prefix, in the order of
// their keys; strip takes the prefix off them.
func (s *settings) list(prefix string, strip bool) []pair {
	all := s.all()
	var out []pair
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if rest, ok := strings.CutPrefix(k, prefix); ok {
			if !strip {
				rest = k
			}
			out = append(out, pair{rest, all[k]})
		}
	}
	return out
}

// all is every setting as it would count now.
func (s *settings) all() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := maps.Clone(s.db)
	maps.Copy(all, s.file)
	return all
}

// layer is where the name of a key says that it belongs.
func (s *settings) layer(key string) map[string]string {
	if isLocal(key) {
		return s.file
	}
	return s.db
}

func (s *settings) set(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	layer := s.layer(key)
	if old, ok := layer[key]; ok && s.piles {
		if s.below == nil {
			s.below = map[string][]string{}
		}
		s.below[key] = append(s.below[key], old)
	}
	layer[key] = value
}

// clear removes one setting from where its name says that it belongs: a key of
// the database that stands in the file stays there.
func (s *settings) clear(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.uncover(key) {
		delete(s.layer(key), key)
	}
}

// uncover takes the value that counts off what lies below it, if anything does.
func (s *settings) uncover(key string) bool {
	n := len(s.below[key])
	if n == 0 {
		return false
	}
	layer := s.layer(key)
	layer[key], s.below[key] = s.below[key][n-1], s.below[key][:n-1]
	return true
}

// clearPrefix removes every setting whose key begins with prefix, from both
// layers. The prefix need not end at a dot.
func (s *settings) clearPrefix(prefix string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := func(k, _ string) bool { return strings.HasPrefix(k, prefix) && !s.uncover(k) }
	maps.DeleteFunc(s.file, has)
	maps.DeleteFunc(s.db, has)
}

// shipped are the settings that a boot writes into the database, over whatever
// is there, as long as version.spam-filter is not set. They are those of
// 0.15.5 that a claim can see the effect of.
func shipped() []pair {
	return []pair{
		{"queue.connection.default.description", "Default connection settings"},
		{"queue.connection.default.timeout.connect", "5m"},
		{"queue.limiter.inbound.ip.enable", "true"},
		{"queue.limiter.inbound.ip.key", "remote_ip"},
		{"queue.limiter.inbound.ip.rate", "5/1s"},
		{"queue.limiter.inbound.sender.enable", "true"},
		{"queue.limiter.inbound.sender.key.0", "sender_domain"},
		{"queue.limiter.inbound.sender.key.1", "rcpt"},
		{"queue.limiter.inbound.sender.rate", "25/1h"},
		{"queue.quota.size.enable", "true"},
		{"queue.quota.size.messages", "100000"},
		{"queue.quota.size.size", "10737418240"},
		{"queue.route.local.description", "Local delivery route"},
		{"queue.route.local.type", "local"},
		{"queue.route.mx.description", "MX delivery route"},
		{"queue.route.mx.ip-lookup", "ipv4_then_ipv6"},
		{"queue.route.mx.limits.multihomed", "2"},
		{"queue.route.mx.limits.mx", "5"},
		{"queue.route.mx.type", "mx"},
		{"queue.tls.default.allow-invalid-certs", "false"},
		{"queue.tls.default.description", "Default TLS settings"},
		{"queue.tls.invalid-tls.allow-invalid-certs", "true"},
		{"queue.tls.invalid-tls.description", "Allow invalid TLS certificates"},
		{"report.analysis.addresses", "postmaster@*"},
	}
}
