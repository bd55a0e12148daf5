package stalwart

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// An expression of a setting: literals in single quotes, numbers, durations,
// variables, constants, functions and operators. Its value is a string, an
// int64, a bool or a list.
type expr interface{ eval(scope) any }

// A scope gives an expression its variables and functions.
type scope interface {
	variable(name string) any
	setting(key string) string
	isLocalDomain(domain string) bool
	isLocalAddress(address string) bool
}

// variables are the names that expressions may use. Where one says nothing it
// is empty.
var variables = map[string]bool{
	"listener": true, "remote_ip": true, "remote_port": true, "local_ip": true, "local_port": true, "protocol": true, "is_tls": true,
	"url": true, "url_path": true, "headers": true, "method": true, "helo_domain": true, "authenticated_as": true,
	"sender": true, "sender_domain": true, "rcpt": true, "rcpt_domain": true, "recipients": true, "priority": true, "mx": true,
	"asn": true, "country": true, "retry_num": true, "notify_num": true, "expires_in": true, "last_status": true, "last_error": true,
}

// constants are the names that stand for themselves, by what the setting is
// about: the part of its key up to the first dot.
var constants = map[string][]string{
	"auth":    {"relaxed", "strict", "disable", "disabled", "enable", "none", "never"},
	"session": {"plain", "login", "xoauth2", "oauthbearer", "mixer", "stanag4406", "nsep"},
	"report":  {"daily", "hourly", "weekly", "never", "disable", "none"},
	"queue":   {"optional", "require", "disable", "ipv4_only", "ipv6_only", "ipv4_then_ipv6", "ipv6_then_ipv4"},
}

// furtherVariables are names that expressions about addresses may use as well.
var furtherVariables = map[string][]string{"spam-filter": {"ip", "ip_reverse"}}

// maxExpr bounds an expression, in octets, and maxDepth how deep it nests.
const (
	maxExpr  = 16 << 10
	maxDepth = 64
)

// parseExpr reads the expression of a setting.
func parseExpr(key, text string) (expr, error) {
	if len(text) > maxExpr {
		return nil, said("Invalid expression")
	}
	room, _, _ := strings.Cut(key, ".")
	p := &exprReader{in: text, constants: constants[room], further: furtherVariables[room]}
	e, err := p.binary(0, 0)
	if err != nil {
		return nil, err
	}
	p.blank()
	if p.at < len(p.in) {
		if p.in[p.at] == ')' {
			return nil, said("Unmatched close parenthesis")
		}
		return nil, p.unexpected()
	}
	return e, nil
}

type exprReader struct {
	in        string
	at        int
	constants []string
	further   []string
}

func (p *exprReader) blank() {
	for p.at < len(p.in) && strings.IndexByte(" \t\r\n", p.in[p.at]) >= 0 {
		p.at++
	}
}

func (p *exprReader) unexpected() error {
	switch c := p.in[p.at]; {
	case isName(c) || c == '\'' || c == '"':
		return said("Invalid expression")
	default:
		return saidf("Invalid character '%c'", c)
	}
}

// operators by how tightly they bind, loosest first.
var operators = [][]string{{"||", "or"}, {"&&", "and"}, {"==", "!=", "<=", ">=", "<", ">"}, {"+", "-"}, {"*", "/"}}

func (p *exprReader) operator(level int) string {
	p.blank()
	for _, op := range operators[level] {
		if strings.HasPrefix(p.in[p.at:], op) {
			if isName(op[0]) && p.at+len(op) < len(p.in) && isName(p.in[p.at+len(op)]) {
				continue
			}
			return op
		}
	}
	return ""
}

func (p *exprReader) binary(level, depth int) (expr, error) {
	if depth > maxDepth {
		return nil, said("Invalid expression")
	}
	if level == len(operators) {
		return p.unary(depth)
	}
	left, err := p.binary(level+1, depth)
	if err != nil {
		return nil, err
	}
	for op := p.operator(level); op != ""; op = p.operator(level) {
		p.at += len(op)
		right, err := p.binary(level+1, depth)
		if err != nil {
			return nil, err
		}
		left = operation{op, left, right}
	}
	return left, nil
}

func (p *exprReader) unary(depth int) (expr, error) {
	p.blank()
	if p.at >= len(p.in) {
		return nil, said("Unexpected end of expression")
	}
	if depth > maxDepth {
		return nil, said("Invalid expression")
	}
	switch c := p.in[p.at]; {
	case c == '!':
		p.at++
		e, err := p.unary(depth + 1)
		return negation{e}, err
	case c == '-' && p.at+1 < len(p.in) && p.in[p.at+1] >= '0' && p.in[p.at+1] <= '9':
		p.at++
		e, err := p.word()
		if n, ok := e.(literal); ok {
			if i, ok := n.v.(int64); ok {
				return literal{-i}, err
			}
		}
		return e, err
	case c == '(':
		p.at++
		e, err := p.binary(0, depth+1)
		if err != nil {
			return nil, err
		}
		p.blank()
		if p.at >= len(p.in) || p.in[p.at] != ')' {
			return nil, said("Unmatched open parenthesis")
		}
		p.at++
		return e, nil
	case c == '[':
		p.at++
		items, err := p.items(']', depth+1)
		return list(items), err
	case c == '\'' || c == '"':
		end := strings.IndexByte(p.in[p.at+1:], c)
		if end < 0 {
			return nil, said("Unterminated string")
		}
		s := p.in[p.at+1 : p.at+1+end]
		p.at += end + 2
		return literal{s}, nil
	case isName(c):
		return p.callOrWord(depth)
	}
	return nil, p.unexpected()
}

func (p *exprReader) items(end byte, depth int) ([]expr, error) {
	var out []expr
	for {
		p.blank()
		if p.at < len(p.in) && p.in[p.at] == end {
			p.at++
			return out, nil
		}
		e, err := p.binary(0, depth)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
		p.blank()
		switch {
		case p.at < len(p.in) && p.in[p.at] == ',':
			p.at++
		case p.at < len(p.in) && p.in[p.at] == end:
		default:
			return nil, said("Unexpected end of expression")
		}
	}
}

func (p *exprReader) callOrWord(depth int) (expr, error) {
	begin := p.at
	for p.at < len(p.in) && isName(p.in[p.at]) {
		p.at++
	}
	name := p.in[begin:p.at]
	if p.at < len(p.in) && p.in[p.at] == '(' {
		if _, ok := functions[name]; !ok {
			return nil, saidf("Invalid variable or constant %q", name)
		}
		p.at++
		args, err := p.items(')', depth+1)
		if err != nil {
			return nil, err
		}
		if len(args) != functions[name].args {
			return nil, saidf("Expression function %q expected %d arguments, got %d", name, functions[name].args, len(args))
		}
		return call{name, args}, nil
	}
	p.at = begin
	return p.word()
}

// word reads a number, a duration, a constant or a variable.
func (p *exprReader) word() (expr, error) {
	begin := p.at
	for p.at < len(p.in) && (isName(p.in[p.at]) || p.in[p.at] == '.') {
		p.at++
	}
	w := p.in[begin:p.at]
	switch {
	case w == "true", w == "false":
		return literal{w == "true"}, nil
	case w != "" && w[0] >= '0' && w[0] <= '9':
		if n, err := strconv.ParseInt(w, 10, 64); err == nil {
			return literal{n}, nil
		}
		if d, err := parseDuration(w); err == nil {
			return literal{d.Milliseconds()}, nil
		}
	case slices.Contains(p.constants, w):
		return literal{w}, nil
	case variables[w], slices.Contains(p.further, w):
		return variable(w), nil
	}
	// The word goes on to where an operator could stand.
	for p.at < len(p.in) && strings.IndexByte(" ()[],'\"", p.in[p.at]) < 0 {
		p.at++
	}
	return nil, saidf("Invalid variable or constant %q", w)
}

func isName(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
}

type literal struct{ v any }

func (l literal) eval(scope) any { return l.v }

type variable string

func (v variable) eval(s scope) any { return s.variable(string(v)) }

type list []expr

func (l list) eval(s scope) any {
	out := make([]any, 0, len(l))
	for _, e := range l {
		out = append(out, e.eval(s))
	}
	return out
}

type negation struct{ e expr }

func (n negation) eval(s scope) any { return !truth(n.e.eval(s)) }

type operation struct {
	op          string
	left, right expr
}

func (o operation) eval(s scope) any {
	l := o.left.eval(s)
	switch o.op {
	case "||", "or":
		return truth(l) || truth(o.right.eval(s))
	case "&&", "and":
		return truth(l) && truth(o.right.eval(s))
	}
	r := o.right.eval(s)
	ln, lok := l.(int64)
	rn, rok := r.(int64)
	numbers := lok && rok
	compare := strings.Compare(text(l), text(r))
	if numbers {
		compare = 0
		if ln < rn {
			compare = -1
		} else if ln > rn {
			compare = 1
		}
	}
	switch o.op {
	case "==":
		return compare == 0
	case "!=":
		return compare != 0
	case "<":
		return compare < 0
	case "<=":
		return compare <= 0
	case ">":
		return compare > 0
	case ">=":
		return compare >= 0
	case "+":
		if numbers {
			return ln + rn
		}
		return text(l) + text(r)
	case "-":
		return ln - rn
	case "*":
		return ln * rn
	}
	if rn == 0 {
		return int64(0)
	}
	return ln / rn
}

type call struct {
	name string
	args []expr
}

func (c call) eval(s scope) any {
	args := make([]any, len(c.args))
	for i, a := range c.args {
		args[i] = a.eval(s)
	}
	return functions[c.name].do(s, args)
}

// functions are those that settings of a source use.
var functions = map[string]struct {
	args int
	do   func(s scope, args []any) any
}{
	"config_get":       {1, func(s scope, a []any) any { return s.setting(text(a[0])) }},
	"is_empty":         {1, func(_ scope, a []any) any { return text(a[0]) == "" }},
	"is_local_domain":  {2, func(s scope, a []any) any { return s.isLocalDomain(text(a[1])) }},
	"is_local_address": {2, func(s scope, a []any) any { return s.isLocalAddress(text(a[1])) }},
	"key_exists":       {2, func(scope, []any) any { return false }}, // the source has no lookup lists
	"contains": {2, func(_ scope, a []any) any {
		if l, ok := a[0].([]any); ok {
			return slices.ContainsFunc(l, func(v any) bool { return text(v) == text(a[1]) })
		}
		return strings.Contains(text(a[0]), text(a[1]))
	}},
	"starts_with":  {2, func(_ scope, a []any) any { return strings.HasPrefix(text(a[0]), text(a[1])) }},
	"ends_with":    {2, func(_ scope, a []any) any { return strings.HasSuffix(text(a[0]), text(a[1])) }},
	"to_lowercase": {1, func(_ scope, a []any) any { return strings.ToLower(text(a[0])) }},
	"email_part": {2, func(_ scope, a []any) any {
		i := strings.LastIndexByte(text(a[0]), '@')
		if text(a[1]) == "domain" {
			return text(a[0])[i+1:]
		}
		return text(a[0])[:max(i, 0)]
	}},
	"is_ip_addr": {1, func(_ scope, a []any) any { _, err := netip.ParseAddr(text(a[0])); return err == nil }},
}

func truth(v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case int64:
		return v != 0
	case string:
		return v != "" && v != "false"
	case []any:
		return len(v) > 0
	}
	return false
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	case bool:
		return strconv.FormatBool(v)
	case []any:
		words := make([]string, len(v))
		for i, e := range v {
			words[i] = text(e)
		}
		return strings.Join(words, ", ")
	}
	return ""
}

// A choice is a setting that may have branches: KEY, or KEY.0.if, KEY.0.then,
// …, KEY.n.else.
type choice struct {
	cases []branch
	other expr
}

type branch struct{ when, then expr }

func (c *choice) eval(s scope) any {
	for _, b := range c.cases {
		if truth(b.when.eval(s)) {
			return b.then.eval(s)
		}
	}
	if c.other == nil {
		return nil
	}
	return c.other.eval(s)
}
