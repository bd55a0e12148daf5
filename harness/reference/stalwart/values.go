package stalwart

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A rate is so many requests in a period; the zero rate is none.
type rate struct {
	requests int
	period   time.Duration
}

func parseRate(v string) (rate, error) {
	if n, period, ok := strings.Cut(v, "/"); ok {
		requests, err := strconv.Atoi(strings.TrimSpace(n))
		if err != nil || requests <= 0 {
			return rate{}, saidf("Invalid rate value %q.", v)
		}
		d, err := parseDuration(period)
		if err != nil {
			return rate{}, err
		}
		return rate{requests, max(d, time.Second)}, nil
	}
	switch v {
	case "false", "none", "unlimited":
		return rate{}, nil
	}
	return rate{}, saidf("Invalid rate value %q.", v)
}

// parseDuration reads a number and a unit; without a unit it is milliseconds.
func parseDuration(v string) (time.Duration, error) {
	var digits, unit strings.Builder
	for _, c := range v {
		switch {
		case c >= '0' && c <= '9':
			digits.WriteRune(c)
		case c != ' ' && c != '\t':
			unit.WriteRune(c)
		}
	}
	n, err := strconv.ParseInt(digits.String(), 10, 32)
	by, ok := map[string]time.Duration{"d": 24 * time.Hour, "h": time.Hour, "m": time.Minute, "s": time.Second, "ms": time.Millisecond, "": time.Millisecond}[strings.ToLower(unit.String())]
	if err != nil || n <= 0 || !ok {
		return 0, saidf("Invalid duration value %q.", v)
	}
	return time.Duration(n) * by, nil
}

// parseNetwork reads an address or a network of 8 bits and more: shorter ones
// are refused, as 0.15 does. Host bits may be set.
func parseNetwork(v string) (netip.Prefix, error) {
	bad := saidf("Invalid IP address %q", v)
	addr, mask := v, ""
	if i := strings.LastIndexByte(v, '/'); i >= 0 {
		addr, mask = v[:i], strings.TrimSpace(v[i+1:])
	}
	a, err := netip.ParseAddr(strings.TrimSpace(addr))
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, bad
	}
	bits := a.BitLen()
	if addr != v {
		if bits, err = strconv.Atoi(mask); err != nil || bits < 8 || bits > a.BitLen() {
			return netip.Prefix{}, bad
		}
	}
	return netip.PrefixFrom(a, bits).Masked(), nil
}

// within says whether an address is in one of the networks.
func within(nets []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		return p.Contains(a)
	})
}

// glob matches a pattern of * and ?, whatever the case.
func glob(pattern, s string) bool {
	pattern, s = strings.ToLower(pattern), strings.ToLower(s)
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]) && pattern[p] != '*':
			p++
			i++
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case star >= 0:
			p = star + 1
			mark++
			i = mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// domainPart is what stands behind the last @.
func domainPart(address string) string {
	if i := strings.LastIndexByte(address, '@'); i >= 0 {
		return address[i+1:]
	}
	return ""
}

// said is what the server says of a setting, in its own words.
type said string

func (s said) Error() string { return string(s) }

func saidf(format string, args ...any) error { return said(fmt.Sprintf(format, args...)) }
