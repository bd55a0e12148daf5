package script

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"golang.org/x/tools/txtar"
)

// Bounds of a scenario: what goes beyond is a mistake or an attack.
const (
	maxScenario   = 256 << 10 // octets
	maxLoop       = 300       // repetitions of one for
	maxSteps      = 5000      // after expansion
	maxFragDepth  = 4
	maxWithin     = 2 * time.Minute
	maxLineLength = 8 << 10
)

// A Library holds the fragments that scenarios use, by name.
type Library struct {
	fragments map[string]fragment
}

type fragment struct {
	file   string
	lines  []string          // the body; lines that declare parameters are empty
	params map[string]string // declared parameters and their defaults
	needs  []string          // parameters without a default
}

// NewLibrary reads fragments: files whose base name without ".txtar" is the
// fragment's name. A fragment is steps alone; $CONN stands for the connection
// and $name for a parameter, which a line "param NAME" or "param NAME=DEFAULT"
// declares.
func NewLibrary(files map[string][]byte) (*Library, error) {
	lib := &Library{fragments: make(map[string]fragment)}
	var errs []error
	for file, text := range files {
		name := strings.TrimSuffix(path.Base(file), ".txtar")
		if len(text) > maxScenario {
			errs = append(errs, &Error{Pos: Pos{File: file, Line: 1}, Msg: "the fragment is too large"})
			continue
		}
		ar := txtar.Parse(text)
		if len(ar.Files) > 0 {
			errs = append(errs, &Error{Pos: Pos{File: file, Line: 1}, Msg: "a fragment cannot carry files"})
		}
		f := fragment{file: file, params: make(map[string]string)}
		f.lines = strings.Split(strings.TrimSuffix(string(ar.Comment), "\n"), "\n")
		for i, line := range f.lines {
			decl, ok := strings.CutPrefix(strings.TrimSpace(line), "param ")
			if !ok {
				continue
			}
			f.lines[i] = ""
			k, v, hasDefault := strings.Cut(decl, "=")
			if !paramForm.MatchString(k) {
				errs = append(errs, &Error{Pos: Pos{File: file, Line: i + 1}, Col: 7, Msg: fmt.Sprintf("%q is no parameter name", k), Want: "lower-case letters"})
			}
			if f.params[k] = v; !hasDefault {
				f.needs = append(f.needs, k)
			}
		}
		lib.fragments[name] = f
	}
	return lib, errors.Join(errs...)
}

// Names lists the fragments.
func (l *Library) Names() []string {
	var names []string
	if l == nil {
		return nil
	}
	for n := range l.fragments {
		names = append(names, n)
	}
	sortStrings(names)
	return names
}

// Parse reads and checks one scenario. Faults come all together; see [Errors].
func Parse(file string, text []byte, lib *Library) (*Scenario, error) {
	p := &parser{file: file, lib: lib}
	if len(text) > maxScenario {
		p.add(Pos{File: file, Line: 1}, 0, "", "the scenario is larger than %d octets", maxScenario)
		return nil, p.err()
	}
	ar := txtar.Parse(text)
	s := &Scenario{Path: file, Source: string(text), Files: make(map[string]Template)}
	s.Lines = make(map[string]int)
	lines := strings.Split(string(ar.Comment), "\n")
	body := p.header(&s.Header, lines)
	line := len(lines)
	for _, f := range ar.Files {
		if _, dup := s.Files[f.Name]; dup {
			p.add(Pos{File: file, Line: line}, 0, "", "the file %q stands twice", f.Name)
		}
		// Mail lines end in CRLF; a text file's end in LF.
		t, err := parseTemplate(strings.ReplaceAll(string(f.Data), "\n", "\r\n"), 0)
		if err != nil {
			p.add(Pos{File: file, Line: line}, 0, err.Want, "in the file %q: %s", f.Name, err.Msg)
		}
		s.Files[f.Name] = t
		line += strings.Count(string(f.Data), "\n") + 1
	}
	p.phases(s, lines, body)
	if len(p.errs) == 0 {
		p.check(s)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	return s, nil
}

type parser struct {
	collector
	file  string
	lib   *Library
	steps int
}

var (
	idForm          = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+$`)
	requirementForm = regexp.MustCompile(`^[A-K]-[0-9]{2}$`)
	paramForm       = regexp.MustCompile(`^[a-z]{2,}$`)
	connForm        = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)
)

// header reads the header and returns the index of the line after it.
func (p *parser) header(h *Header, lines []string) int {
	h.Level, h.Isolation, h.Families = result.Must, OwnAccount, families
	i, key, value, at := 0, "", "", 0
	flush := func() {
		if key != "" {
			p.headerField(h, key, strings.TrimSpace(value), at)
		}
		key = ""
	}
	for ; i < len(lines); i++ {
		line := strings.TrimRight(lines[i], " \t\r")
		pos := Pos{File: p.file, Line: i + 1}
		if line == "" {
			i++
			break
		}
		if (line[0] == ' ' || line[0] == '\t') && key != "" {
			value += " " + strings.TrimSpace(line)
			continue
		}
		flush()
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			p.add(pos, 1, `write "key: value", and an empty line after the header`, "%q is no header line", line)
			continue
		}
		if !contains(headerKeys, k) {
			p.add(pos, 1, nearest(k, headerKeys), "unknown header key %q", k)
			continue
		}
		if h.Lines == nil {
			h.Lines = make(map[string]int)
		}
		if first, dup := h.Lines[k]; dup {
			p.add(pos, 1, "", "the key %q stands already on line %d", k, first)
			continue
		}
		h.Lines[k] = i + 1
		key, value, at = k, v, i+1
	}
	flush()
	for _, k := range []string{"id", "claim", "requirements", "needs", "witness", "means"} {
		if _, ok := h.Lines[k]; !ok {
			p.add(Pos{File: p.file, Line: 1}, 0, "", "the header has no %q", k)
		}
	}
	return i
}

func (p *parser) headerField(h *Header, key, value string, line int) {
	pos := Pos{File: p.file, Line: line}
	col := len(key) + 3
	words := strings.Fields(value)
	each := func(allowed []string, what string) []string {
		for _, w := range words {
			if !contains(allowed, w) {
				p.add(pos, col, nearest(w, allowed), "%q is no %s", w, what)
			}
		}
		return words
	}
	one := func(allowed []string, what string) string {
		if len(words) != 1 || !contains(allowed, words[0]) {
			p.add(pos, col, "one of: "+strings.Join(allowed, " "), "%q is no %s", value, what)
			return ""
		}
		return words[0]
	}
	if value == "" {
		p.add(pos, col, "", "the key %q has no value", key)
		return
	}
	switch key {
	case "id":
		if !idForm.MatchString(value) {
			p.add(pos, col, "lower-case words, hyphens and at least one dot, as in imap-id.first-counts", "%q is no scenario id", value)
		}
		h.ID = value
	case "claim":
		if !strings.HasSuffix(value, ".") {
			p.add(pos, col, "one sentence with a full stop", "the claim is no sentence")
		}
		h.Claim = value
	case "means":
		h.Means = value
	case "spec":
		h.Spec = value
	case "level":
		h.Level = result.Level(one(levels, "level"))
	case "isolation":
		if at, ok := strings.CutPrefix(value, string(Alone)+"@"); ok && contains(kinds, at) {
			h.Isolation, h.AloneAt = Alone, at
			return
		}
		h.Isolation = Isolation(one(isolations, "isolation"))
	case "requirements":
		for _, w := range words {
			if !requirementForm.MatchString(w) {
				p.add(pos, col, "a letter A to K, a hyphen and two digits, as in A-03", "%q is no requirement id", w)
			}
		}
		h.Requirements = words
	case "needs":
		h.Needs = each(concat(kinds, profiles, features, versions(kinds)), "need that a target can declare")
	case "over":
		h.Over = each(endpoints, "endpoint")
	case "families":
		h.Families = each(families, "address family")
	case "witness":
		h.Witness = each(witnessWords, "witness")
	case "hazards":
		h.Hazards = each(hazards, "hazard")
	}
}

// versions lists the kind@version and kind@profile words that conditions and needs may use.
func versions(kinds []string) []string {
	words := []string{"dovecot-postfix@bullseye", "dovecot-postfix@bookworm", "dovecot-postfix@trixie", "stalwart@0.15.5",
		"generic@none", "generic@xclient", "generic@proxy"}
	for _, k := range kinds {
		for _, p := range profiles {
			words = append(words, k+"@"+p)
		}
	}
	return words
}

// source is a sequence of lines to parse steps from.
type source struct {
	lines []string
	pos   func(i int) Pos
	subst func(string) string
	depth int
}

func (p *parser) phases(s *Scenario, lines []string, from int) {
	src := &source{
		lines: lines,
		pos:   func(i int) Pos { return Pos{File: p.file, Line: i + 1} },
		subst: func(t string) string { return t },
	}
	phase := Phase{Title: "", Pos: src.pos(from)}
	flush := func() {
		if len(phase.Steps) > 0 || phase.Title != "" {
			s.Phases = append(s.Phases, phase)
		}
	}
	for i := from; i < len(lines); {
		line := strings.TrimSpace(lines[i])
		if strings.HasPrefix(line, "#") {
			flush()
			phase = Phase{Title: strings.TrimSpace(strings.TrimPrefix(line, "#")), Pos: src.pos(i)}
			i++
			continue
		}
		var steps []Step
		steps, i = p.step(src, i)
		phase.Steps = append(phase.Steps, steps...)
		if p.steps > maxSteps {
			p.add(src.pos(min(i, len(lines)-1)), 0, "", "the scenario has more than %d steps", maxSteps)
			return
		}
	}
	flush()
	if len(s.Phases) == 0 {
		p.add(Pos{File: p.file, Line: len(lines)}, 0, "", "the scenario has no steps")
	}
}

// step parses the step that begins at line i and returns the index after it.
func (p *parser) step(src *source, i int) ([]Step, int) {
	pos := src.pos(i)
	raw := strings.TrimRight(src.subst(src.lines[i]), " \t\r")
	indent := len(raw) - len(strings.TrimLeft(raw, " \t"))
	text := raw[indent:]
	col := indent + 1
	if text == "" {
		return nil, i + 1
	}
	if len(text) > maxLineLength {
		p.add(pos, 0, "", "the line is longer than %d octets", maxLineLength)
		return nil, i + 1
	}
	p.steps++
	word, rest, _ := strings.Cut(text, " ")
	one := func(s Step) ([]Step, int) {
		if s == nil {
			return nil, i + 1
		}
		return []Step{s}, i + 1
	}
	switch word {
	case "open":
		if o := p.open(pos, rest, col+5); o != nil {
			return one(o)
		}
		return one(nil)
	case "upgrade", "close", "shut":
		if !p.isConn(pos, col+len(word)+1, rest) {
			return one(nil)
		}
		if word == "upgrade" {
			return one(&Upgrade{pos, rest})
		}
		return one(&Close{pos, rest, word == "shut"})
	case "shape":
		words := strings.Fields(rest)
		if len(words) != 2 {
			p.add(pos, col, "write: shape A one-byte", "shape takes a connection and a shape")
			return one(nil)
		}
		if !contains(shapes, words[1]) {
			p.add(pos, col, nearest(words[1], shapes), "unknown shape %q", words[1])
		}
		return one(&Shape{pos, words[0], words[1]})
	case "source":
		if a := p.act(pos, rest, col+7); a != nil {
			return one(a)
		}
		return one(nil)
	case "barrier":
		if rest != "" {
			p.add(pos, col, "", "barrier takes nothing")
		}
		return one(&Barrier{pos})
	case "use":
		return p.use(src, pos, rest, col+4), i + 1
	case "witness":
		return p.witness(src, i, pos, rest, col+8)
	case "if":
		return p.ifStep(src, i, pos, rest, col+3)
	case "for":
		return p.forStep(src, i, pos, rest, col+4)
	}
	if s := p.exchange(pos, text, col); s != nil {
		return one(s)
	}
	return one(nil)
}

func (p *parser) isConn(pos Pos, col int, name string) bool {
	if !connForm.MatchString(name) {
		p.add(pos, col, "a capital letter and then letters and digits, as in A", "%q is no connection name", name)
		return false
	}
	return true
}

// open parses what follows "open".
func (p *parser) open(pos Pos, rest string, col int) *Open {
	const form = "write: open NAME PROTOCOL source[.ENDPOINT] from VANTAGE [for ADDRESS] [shape SHAPE] [tls none|implicit] [announce FORM SRC DST] [unless refused]"
	words, err := splitQuoted(rest)
	if err != nil || len(words) < 5 || words[3] != "from" {
		p.add(pos, col, form, "open is not complete")
		return nil
	}
	o := &Open{Pos: pos, Name: words[0], Protocol: words[1], Vantage: words[4]}
	if !p.isConn(pos, col, o.Name) {
		return nil
	}
	if !contains(protocols, o.Protocol) {
		p.add(pos, col, nearest(o.Protocol, protocols), "unknown protocol %q", o.Protocol)
	}
	target, endpoint, _ := strings.Cut(words[2], ".")
	o.Target, o.Endpoint = target, endpoint
	if target != "source" && target != "proxy" {
		p.add(pos, col, `"source" or "proxy", with or without an endpoint`, "unknown target %q", words[2])
	}
	if endpoint != "" && !contains(endpoints, endpoint) {
		p.add(pos, col, nearest(endpoint, endpoints), "unknown endpoint %q", endpoint)
	} else if endpoint != "" && endpointProtocol(endpoint) != o.Protocol {
		p.add(pos, col, "open it as "+endpointProtocol(endpoint), "the endpoint %q does not speak %s", endpoint, o.Protocol)
	}
	if !contains(vantages, o.Vantage) {
		p.add(pos, col, nearest(o.Vantage, vantages), "unknown vantage %q", o.Vantage)
	}
	if o.Target == "proxy" && o.Vantage == "proxy" {
		p.add(pos, col, "from client", "the proxy is not a client of itself")
	}
	words = words[5:]
	for len(words) > 0 {
		switch {
		case words[0] == "tls" && len(words) >= 2:
			if !contains(tlsModes, words[1]) {
				p.add(pos, col, "one of: "+strings.Join(tlsModes, " "), "unknown TLS mode %q", words[1])
			}
			o.TLS = words[1]
			words = words[2:]
		case words[0] == "for" && len(words) >= 2:
			o.For = p.template(pos, words[1], col)
			words = words[2:]
		case words[0] == "shape" && len(words) >= 2:
			if o.Shape = words[1]; !contains(shapes, o.Shape) {
				p.add(pos, col, nearest(o.Shape, shapes), "unknown shape %q", o.Shape)
			}
			words = words[2:]
		case words[0] == "unless" && len(words) >= 2 && words[1] == "refused":
			o.Refusable = true
			words = words[2:]
		case words[0] == "announce" && len(words) >= 2:
			o.Announce = words[1]
			if !contains(headerForms, o.Announce) {
				p.add(pos, col, nearest(o.Announce, headerForms), "unknown header form %q", o.Announce)
			}
			if len(words) >= 4 && words[2] != "tls" && words[2] != "shape" && words[2] != "unless" {
				o.Src = p.template(pos, words[2], col)
				o.Dst = p.template(pos, words[3], col)
				words = words[4:]
			} else {
				words = words[2:]
			}
		default:
			p.add(pos, col, form, "unexpected %q", words[0])
			return o
		}
	}
	return o
}

func (p *parser) template(pos Pos, text string, col int) Template {
	t, err := parseTemplate(text, col)
	if err != nil {
		p.add(pos, err.Col, err.Want, "%s", err.Msg)
	}
	return t
}

// exchange parses "NAME [must] [within D] ARROW text".
func (p *parser) exchange(pos Pos, text string, col int) Step {
	const form = `write "A -> text", "A <- pattern", "A <~ pattern", "A <! pattern" or "A <x"`
	name, rest, ok := strings.Cut(text, " ")
	if !ok || !connForm.MatchString(name) {
		p.add(pos, col, nearest(name, stepWords), "%q begins no step", name)
		return nil
	}
	at := col + len(name) + 1
	must, within := false, time.Duration(0)
	for {
		word, after, _ := strings.Cut(rest, " ")
		switch {
		case word == "must" && !must:
			must = true
		case word == "within" && within == 0:
			d, tail, _ := strings.Cut(after, " ")
			within = p.duration(pos, d, at)
			after = tail
		case word == "->":
			if must || within != 0 {
				p.add(pos, at, "", `"must" and "within" go with replies, not with sends`)
			}
			return p.send(pos, name, after, at+3)
		case word == "<-" || word == "<~" || word == "<!":
			kind := map[string]ReplyKind{"<-": Status, "<~": Some, "<!": None}[word]
			if strings.TrimSpace(after) == "" {
				p.add(pos, at, `"{}" matches anything`, "the pattern is missing")
				return nil
			}
			pat, err := parsePattern(after, at+3)
			if err != nil {
				p.add(pos, err.Col, err.Want, "%s", err.Msg)
				return nil
			}
			if kind == None && must {
				p.add(pos, at, "leave out must", `"<!" is an assertion already`)
			}
			if kind != Status && within != 0 {
				p.add(pos, at, `put it on the "<-" that reads the reply`, `"within" does not go with %q`, word)
			}
			return &Reply{Pos: pos, Name: name, Kind: kind, Pattern: pat, Must: must, Within: within}
		case word == "<x":
			if must {
				p.add(pos, at, "leave out must", `"<x" is an assertion already`)
			}
			if after != "" {
				p.add(pos, at+3, "", `nothing follows "<x"`)
			}
			return &Closed{Pos: pos, Name: name, Within: within}
		default:
			p.add(pos, at, form, "%q is no direction", word)
			return nil
		}
		at += len(rest) - len(after)
		rest = after
	}
}

func (p *parser) send(pos Pos, name, text string, col int) Step {
	t, err := parseTemplate(text, col)
	if err != nil {
		p.add(pos, err.Col, err.Want, "%s", err.Msg)
		return nil
	}
	s := &Send{Pos: pos, Name: name, Text: t}
	if len(t.parts) == 1 && t.parts[0].ref != nil {
		s.Raw = t.parts[0].ref.Name == "octets" || t.parts[0].ref.Name == "data"
	}
	return s
}

func (p *parser) duration(pos Pos, s string, col int) time.Duration {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		p.add(pos, col, "a number and a unit, as in 500ms or 10s", "%q is no duration", s)
		return time.Second
	case d <= 0 || d > maxWithin:
		p.add(pos, col, fmt.Sprintf("more than nothing and at most %s", maxWithin), "%s is not allowed", d)
		return time.Second
	}
	return d
}

// block collects the lines up to the closing brace of a block that opened on
// line i, and returns their indexes and the index of the closing line.
func (p *parser) block(src *source, i int, pos Pos) (first, end int, ok bool) {
	depth := 1
	for j := i + 1; j < len(src.lines); j++ {
		t := strings.TrimSpace(src.lines[j])
		switch {
		case t == "}" || strings.HasPrefix(t, "} else"):
			depth--
			if depth == 0 {
				return i + 1, j, true
			}
			if strings.HasPrefix(t, "} else") {
				depth++
			}
		case strings.HasSuffix(t, "{") && opensBlock(t):
			depth++
		}
	}
	p.add(pos, 0, `close it with a line "}"`, "the block has no end")
	return i + 1, len(src.lines), false
}

func opensBlock(t string) bool {
	word, _, _ := strings.Cut(t, " ")
	return word == "witness" || word == "if" || word == "for"
}

// ifStep parses "if COND[, COND]... {" … "} else {" … "}".
func (p *parser) ifStep(src *source, i int, pos Pos, rest string, col int) ([]Step, int) {
	head, ok := strings.CutSuffix(strings.TrimSpace(rest), "{")
	if !ok {
		p.add(pos, col, `write: if dovecot-postfix@trixie {`, "the block does not begin")
		return nil, i + 1
	}
	st := &If{Pos: pos}
	allowed := concat(kinds, versions(kinds), profiles, families, []string{"starttls", "implicit"}, endpoints)
	for _, c := range strings.FieldsFunc(head, func(r rune) bool { return r == ' ' || r == ',' }) {
		if !contains(allowed, c) {
			p.add(pos, col, nearest(c, allowed), "unknown condition %q", c)
		}
		st.Conds = append(st.Conds, c)
	}
	if len(st.Conds) == 0 {
		p.add(pos, col, "", "the condition is missing")
	}
	first, end, ok := p.block(src, i, pos)
	st.Then = p.steplist(src, first, end)
	if !ok {
		return []Step{st}, end
	}
	closing := strings.TrimSpace(src.lines[end])
	if closing == "}" {
		return []Step{st}, end + 1
	}
	if closing != "} else {" {
		p.add(src.pos(end), 1, `write: } else {`, "%q does not end the block", closing)
		return []Step{st}, end + 1
	}
	first, end2, ok := p.block(src, end, src.pos(end))
	st.Else = p.steplist(src, first, end2)
	if !ok {
		return []Step{st}, end2
	}
	return []Step{st}, end2 + 1
}

func (p *parser) steplist(src *source, first, end int) []Step {
	var steps []Step
	sub := *src
	sub.lines = src.lines[:end]
	for j := first; j < end; {
		if strings.HasPrefix(strings.TrimSpace(sub.lines[j]), "#") {
			p.add(src.pos(j), 1, "end the block first", "a phase cannot begin inside a block")
			j++
			continue
		}
		var more []Step
		more, j = p.step(&sub, j)
		steps = append(steps, more...)
		if p.steps > maxSteps {
			break
		}
	}
	return steps
}

var forForm = regexp.MustCompile(`^([a-z]) in ([0-9]{1,4})\.\.([0-9]{1,4}) \{$`)

// forStep expands "for n in 1..51 {": $n stands for the number.
func (p *parser) forStep(src *source, i int, pos Pos, rest string, col int) ([]Step, int) {
	m := forForm.FindStringSubmatch(strings.TrimSpace(rest))
	first, end, ok := p.block(src, i, pos)
	next := end + 1
	if !ok {
		next = end
	}
	if m == nil {
		p.add(pos, col, "write: for n in 1..51 {", "the loop is not complete")
		return nil, next
	}
	lo, _ := strconv.Atoi(m[2])
	hi, _ := strconv.Atoi(m[3])
	if hi < lo || hi-lo+1 > maxLoop {
		p.add(pos, col, fmt.Sprintf("at most %d repetitions", maxLoop), "%d..%d is not allowed", lo, hi)
		return nil, next
	}
	var steps []Step
	for n := lo; n <= hi; n++ {
		sub := *src
		outer := src.subst
		sub.subst = func(t string) string { return substitute(outer(t), m[1], strconv.Itoa(n)) }
		steps = append(steps, p.steplist(&sub, first, end)...)
		if p.steps > maxSteps || len(p.errs) > 20 {
			break
		}
	}
	return steps, next
}

// substitute replaces $name where no letter or digit follows.
func substitute(text, name, value string) string {
	var b strings.Builder
	for {
		i := strings.Index(text, "$"+name)
		if i < 0 {
			b.WriteString(text)
			return b.String()
		}
		j := i + 1 + len(name)
		b.WriteString(text[:i])
		if j < len(text) && isWordByte(text[j]) {
			b.WriteString(text[i:j])
		} else {
			b.WriteString(value)
		}
		text = text[j:]
	}
}

func isWordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}

// use expands a fragment: "use NAME CONN [key=value]...". A value with spaces
// stands in double quotes.
func (p *parser) use(src *source, pos Pos, rest string, col int) []Step {
	words, err := splitQuoted(rest)
	if err != nil || len(words) < 2 {
		p.add(pos, col, "write: use FRAGMENT A [key=value]...", "use is not complete")
		return nil
	}
	f, ok := p.lib.lookup(words[0])
	if !ok {
		p.add(pos, col, nearest(words[0], p.lib.Names()), "unknown fragment %q", words[0])
		return nil
	}
	if !p.isConn(pos, col, words[1]) {
		return nil
	}
	if src.depth >= maxFragDepth {
		p.add(pos, col, "", "fragments use each other more than %d deep", maxFragDepth)
		return nil
	}
	params := make(map[string]string, len(f.params))
	for k, v := range f.params {
		params[k] = v
	}
	given := map[string]bool{}
	for _, w := range words[2:] {
		k, v, ok := strings.Cut(w, "=")
		if _, declared := f.params[k]; !ok || !declared {
			p.add(pos, col, "it has: "+strings.Join(sortedKeys(f.params), " "), "the fragment %q has no parameter %q", words[0], k)
			continue
		}
		params[k], given[k] = v, true
	}
	for _, k := range f.needs {
		if !given[k] {
			p.add(pos, col, "write "+k+"=…", "the fragment %q needs the parameter %q", words[0], k)
		}
	}
	via := pos
	sub := &source{
		lines: f.lines,
		pos:   func(i int) Pos { return Pos{File: f.file, Line: 1 + i, Via: &via} },
		depth: src.depth + 1,
	}
	keys := sortedKeys(params)
	sub.subst = func(t string) string {
		t = substitute(t, "CONN", words[1])
		for _, k := range keys {
			t = substitute(t, k, params[k])
		}
		return t
	}
	var steps []Step
	for i := 0; i < len(f.lines); {
		if strings.HasPrefix(strings.TrimSpace(f.lines[i]), "#") {
			i++ // a fragment's comments do not begin phases
			continue
		}
		var more []Step
		more, i = p.step(sub, i)
		steps = append(steps, more...)
	}
	return steps
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sortStrings(keys)
	return keys
}

func (l *Library) lookup(name string) (fragment, bool) {
	if l == nil {
		return fragment{}, false
	}
	f, ok := l.fragments[name]
	return f, ok
}

func splitQuoted(s string) ([]string, error) {
	var words []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		var b strings.Builder
		quoted, i := false, 0
		for ; i < len(s); i++ {
			switch {
			case s[i] == '"':
				quoted = !quoted
			case s[i] == '$' && i+1 < len(s) && s[i+1] == '{':
				j := strings.IndexByte(s[i:], '}')
				if j < 0 {
					return nil, errors.New("a reference has no end")
				}
				b.WriteString(s[i : i+j+1])
				i += j
			case s[i] == ' ' && !quoted:
				goto word
			default:
				b.WriteByte(s[i])
			}
		}
		if quoted {
			return nil, errors.New("a quoted value has no end")
		}
	word:
		words = append(words, b.String())
		s = s[i:]
	}
	return words, nil
}

// witness parses "witness KIND [USER] join F=V [or F=V]... [within D] {" and
// its lines.
func (p *parser) witness(src *source, i int, pos Pos, rest string, col int) ([]Step, int) {
	const form = "write: witness KIND join FIELD=VALUE [or FIELD=VALUE]... [within D] {"
	first, end, ok := p.block(src, i, pos)
	next := end + 1
	if !ok {
		next = end
	}
	head, isBlock := strings.CutSuffix(strings.TrimSpace(rest), "{")
	words, err := splitQuoted(head)
	if !isBlock || err != nil || len(words) < 3 {
		p.add(pos, col, form, "witness is not complete")
		return nil, next
	}
	w := &Witness{Pos: pos, Kind: words[0]}
	words = words[1:]
	if !contains(witnessKinds, w.Kind) {
		p.add(pos, col, nearest(w.Kind, witnessKinds), "unknown kind of witness %q", w.Kind)
		return nil, next
	}
	if w.Kind == "message" {
		w.User = words[0]
		words = words[1:]
	}
	if len(words) < 2 || words[0] != "join" {
		p.add(pos, col, form, `"join" is missing`)
		return nil, next
	}
	words = words[1:]
	for expectJoin := true; len(words) > 0; {
		switch {
		case expectJoin:
			k, v, ok := strings.Cut(words[0], "=")
			if fields := recordFields(w.Kind); !ok || !contains(fields.joins, k) {
				p.add(pos, col, "one of: "+strings.Join(fields.joins, " "), "a %s cannot be joined by %q", w.Kind, words[0])
			}
			w.Joins = append(w.Joins, Join{Field: k, Value: p.template(pos, v, col), Col: col})
			words, expectJoin = words[1:], false
		case words[0] == "or" && len(words) > 1:
			words, expectJoin = words[1:], true
		case words[0] == "within" && len(words) > 1:
			w.Within = p.duration(pos, words[1], col)
			words = words[2:]
		default:
			p.add(pos, col, form, "unexpected %q", words[0])
			words = nil
		}
	}
	for j := first; j < end; j++ {
		if want, ok := p.want(w.Kind, src.pos(j), src.subst(src.lines[j])); ok {
			w.Wants = append(w.Wants, want)
		}
	}
	return []Step{w}, next
}

func (p *parser) want(kind string, pos Pos, line string) (Want, bool) {
	text := strings.TrimSpace(line)
	if text == "" {
		return Want{}, false
	}
	col := strings.Index(line, text) + 1
	verb, rest, _ := strings.Cut(text, " ")
	if verb != "expect" && verb != "forbid" {
		p.add(pos, col, `write "expect FIELD=pattern" or "forbid FIELD=pattern"`, "%q is no line of a witness", text)
		return Want{}, false
	}
	field, pat, ok := strings.Cut(rest, "=")
	fields := recordFields(kind).fields
	if !ok {
		p.add(pos, col, `write "expect FIELD=pattern"`, "%q has no pattern", rest)
		return Want{}, false
	}
	if !contains(fields, field) && !(kind == "message" && isHeaderField(field)) {
		p.add(pos, col+len(verb)+1, nearest(field, fields), "a %s has no field %q", kind, field)
		return Want{}, false
	}
	pattern, err := parsePattern(pat, col+len(verb)+len(field)+2)
	if err != nil {
		p.add(pos, err.Col, err.Want, "%s", err.Msg)
		return Want{}, false
	}
	return Want{Pos: pos, Forbid: verb == "forbid", Field: field, Pattern: pattern}, true
}

// isHeaderField says whether a name is a mail header's: it begins with a capital.
func isHeaderField(s string) bool { return s != "" && s[0] >= 'A' && s[0] <= 'Z' }

type kindFields struct{ joins, fields []string }

// recordFields lists what records of a kind can be joined by and asked for.
func recordFields(kind string) kindFields {
	switch kind {
	case "login", "failed-login":
		return kindFields{
			joins:  []string{"session", "user", "peer", "port"},
			fields: []string{"service", "user", "method", "rip", "rport", "lip", "lport", "session", "security", "reason", "line"},
		}
	case "transaction":
		return kindFields{
			joins:  []string{"message-id", "recipient", "port"},
			fields: []string{"service", "client", "client-name", "client-port", "user", "method", "recipient", "sender", "status", "connected", "line"},
		}
	case "rejection":
		return kindFields{
			joins:  []string{"recipient", "port", "sender"},
			fields: []string{"service", "client", "client-name", "client-port", "reply", "helo", "recipient", "sender", "proto", "connected", "line"},
		}
	case "line":
		return kindFields{joins: []string{"user", "recipient", "sender", "message-id"}, fields: []string{"address"}}
	case "message":
		return kindFields{joins: []string{"message-id"}, fields: []string{"mailbox", "count", "body", "body-sha256", "size"}}
	}
	return kindFields{}
}

func concat(lists ...[]string) []string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}
