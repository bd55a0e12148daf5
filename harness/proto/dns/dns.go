// Package dns holds the units of DNS (RFC 1035) that mailproof needs: a zone,
// questions and answers as octets, and a small server of one zone.
//
// It promises to answer every question about its zone with what the zone says,
// to say that other names do not exist, and never to ask anybody. It refuses
// anything that is no question of one name in the class IN. It compresses no
// names, keeps no state and follows no alias.
package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Type is the type of a record.
type Type uint16

// The types that a zone can hold.
const (
	A    Type = 1
	PTR  Type = 12
	MX   Type = 15
	TXT  Type = 16
	AAAA Type = 28
)

var typeNames = []struct {
	t    Type
	name string
}{{A, "A"}, {PTR, "PTR"}, {MX, "MX"}, {TXT, "TXT"}, {AAAA, "AAAA"}}

func (t Type) String() string {
	for _, n := range typeNames {
		if n.t == t {
			return n.name
		}
	}
	return fmt.Sprintf("TYPE%d", uint16(t))
}

// A Record is one record of a zone. Value is an address, a host name, a
// preference and a host name (MX), or text.
type Record struct {
	Name  string // in lower case, without its last dot
	Type  Type
	Value string
}

// A Zone is what a server knows. It is not changed once it is served.
type Zone struct {
	Records []Record
	// Broken are names whose questions are answered with a failure of the
	// server, as a zone is whose own servers are away.
	Broken []string
	// Silent are names whose questions are not answered at all.
	Silent []string
}

// ParseZone reads a zone: one record a line, as "NAME TYPE VALUE", or "NAME
// SERVFAIL" for a name whose questions fail, "NAME SILENT" for one whose
// questions nobody answers, or "ADDRESS LISTED ZONE" for an address that stands
// on the block list of that zone (RFC 5782). A line that begins with # says
// nothing. An address may be written for the NAME of a PTR record.
func ParseZone(file, text string) (*Zone, error) {
	z := &Zone{}
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		word, value, _ := strings.Cut(strings.TrimSpace(rest), " ")
		value = strings.TrimSpace(value)
		bad := func(format string, args ...any) error {
			return fmt.Errorf("%s:%d: %s", file, n, fmt.Sprintf(format, args...))
		}
		if word == "SERVFAIL" && value == "" {
			z.Broken = append(z.Broken, plain(name))
			continue
		}
		if word == "SILENT" && value == "" {
			z.Silent = append(z.Silent, plain(name))
			continue
		}
		if a, err := netip.ParseAddr(name); word == "LISTED" && err == nil {
			name, word, value = Listed(a, value), "A", "127.0.0.2"
		}
		r := Record{Name: plain(name), Value: value}
		for _, t := range typeNames {
			if t.name == word {
				r.Type = t.t
			}
		}
		if r.Type == 0 {
			return nil, bad("%q is no type of record: write A, AAAA, MX, PTR, TXT, LISTED after an address, SERVFAIL or SILENT", word)
		}
		if a, err := netip.ParseAddr(name); r.Type == PTR && err == nil {
			r.Name = Reverse(a)
		}
		if _, err := r.data(); err != nil {
			return nil, bad("%v", err)
		}
		if _, err := appendName(nil, r.Name); err != nil {
			return nil, bad("%v", err)
		}
		z.Records = append(z.Records, r)
	}
	return z, nil
}

func plain(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Reverse is the name that the records of an address stand under.
func Reverse(a netip.Addr) string {
	if a.Unmap().Is4() {
		return Listed(a, "in-addr.arpa")
	}
	return Listed(a, "ip6.arpa")
}

// Listed is the name under which a list of addresses has one (RFC 5782, 2.1 and 2.4).
func Listed(a netip.Addr, list string) string {
	a = a.Unmap()
	var parts []string
	if a.Is4() {
		for _, b := range a.As4() {
			parts = append(parts, strconv.Itoa(int(b)))
		}
		slices.Reverse(parts)
		return strings.Join(append(parts, list), ".")
	}
	for _, b := range a.As16() {
		parts = append(parts, fmt.Sprintf("%x", b>>4), fmt.Sprintf("%x", b&15))
	}
	slices.Reverse(parts)
	return strings.Join(append(parts, list), ".")
}

// The answers that a server can give (RFC 1035, 4.1.1).
const (
	codeFormat   = 1
	codeFailure  = 2
	codeNoName   = 3
	codeNotThere = 4
)

const (
	maxName  = 255
	headerAt = 12
	ttl      = 1 // seconds
)

// errTruncated says that octets are no whole message.
var errTruncated = errors.New("dns: not a whole message")

// Answer is the reply of a server of the zone to a message; nil where none is
// due. limit bounds it, in octets: what is longer is marked as cut off.
func (z *Zone) Answer(query []byte, limit int) []byte {
	if len(query) < headerAt || query[2]&0x80 != 0 {
		return nil // no message, or itself a reply
	}
	reply := make([]byte, headerAt, 128)
	copy(reply, query[:2])
	reply[2] = 0x84 | query[2]&0x01 // a reply, with authority; whether recursion was wished for
	fail := func(code byte) []byte {
		reply = reply[:headerAt]
		clear(reply[4:])
		reply[3] = code
		return reply
	}
	if query[2]&0x78 != 0 {
		return fail(codeNotThere)
	}
	if binary.BigEndian.Uint16(query[4:]) != 1 {
		return fail(codeFormat)
	}
	name, next, err := readName(query, headerAt)
	if err != nil || len(query) < next+4 {
		return fail(codeFormat)
	}
	t, class := Type(binary.BigEndian.Uint16(query[next:])), binary.BigEndian.Uint16(query[next+2:])
	if class != 1 {
		return fail(codeNotThere)
	}
	reply = append(reply, query[headerAt:next+4]...) // the question as it was spelled
	reply[5] = 1
	question := len(reply)
	if slices.Contains(z.Silent, name) {
		return nil
	}
	if slices.Contains(z.Broken, name) {
		reply[3] = codeFailure
		return reply
	}
	var known bool
	count := uint16(0)
	for _, r := range z.Records {
		if r.Name != name {
			// A name above one that exists exists too (RFC 8020).
			known = known || strings.HasSuffix(r.Name, "."+name)
			continue
		}
		known = true
		if r.Type != t {
			continue
		}
		data, _ := r.data() // was checked
		reply = append(reply, 0xC0, headerAt)
		reply = binary.BigEndian.AppendUint16(reply, uint16(t))
		reply = binary.BigEndian.AppendUint16(reply, 1)
		reply = binary.BigEndian.AppendUint32(reply, ttl)
		reply = binary.BigEndian.AppendUint16(reply, uint16(len(data)))
		reply = append(reply, data...)
		count++
	}
	switch {
	case !known:
		reply[3] = codeNoName
	case len(reply) > limit:
		reply = reply[:question]
		reply[2] |= 0x02
	default:
		binary.BigEndian.PutUint16(reply[6:], count)
	}
	return reply
}

// data is what a record holds, as octets.
func (r Record) data() ([]byte, error) {
	switch r.Type {
	case A, AAAA:
		a, err := netip.ParseAddr(r.Value)
		if err != nil || a.Is4() != (r.Type == A) {
			return nil, fmt.Errorf("%q is no address for a record of type %s", r.Value, r.Type)
		}
		return a.AsSlice(), nil
	case PTR:
		return appendName(nil, plain(r.Value))
	case MX:
		number, host, _ := strings.Cut(r.Value, " ")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || host == "" {
			return nil, fmt.Errorf("%q is no preference and host name", r.Value)
		}
		return appendName(binary.BigEndian.AppendUint16(nil, uint16(n)), plain(host))
	case TXT:
		var out []byte
		for text := r.Value; ; {
			n := min(len(text), 255)
			out = append(append(out, byte(n)), text[:n]...)
			if text = text[n:]; text == "" {
				return out, nil
			}
		}
	}
	return nil, fmt.Errorf("%s is no type of record that a zone can hold", r.Type)
}

// appendName writes a name as octets, uncompressed.
func appendName(b []byte, name string) ([]byte, error) {
	if len(name) > maxName-2 {
		return nil, fmt.Errorf("the name %q is longer than %d octets", name, maxName-2)
	}
	if name != "" {
		for label := range strings.SplitSeq(name, ".") {
			if label == "" || len(label) > 63 {
				return nil, fmt.Errorf("%q is no name", name)
			}
			b = append(append(b, byte(len(label))), label...)
		}
	}
	return append(b, 0), nil
}

// readName reads a question's name, in lower case, and says where the next
// field begins. Questions have no compressed names.
func readName(b []byte, at int) (string, int, error) {
	var labels []string
	for size := 0; ; {
		if at >= len(b) {
			return "", 0, errTruncated
		}
		n := int(b[at])
		at++
		if n == 0 {
			return strings.ToLower(strings.Join(labels, ".")), at, nil
		}
		if size += n + 1; n > 63 || size > maxName || at+n > len(b) {
			return "", 0, errTruncated
		}
		labels = append(labels, string(b[at:at+n]))
		at += n
	}
}
