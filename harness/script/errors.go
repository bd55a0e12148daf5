package script

import (
	"errors"
	"fmt"
	"strings"
)

// A Pos is a place in a scenario or fragment.
type Pos struct {
	File string
	Line int
	Via  *Pos // where the fragment was used, or nil
}

func (p Pos) String() string {
	s := fmt.Sprintf("%s:%d", p.File, p.Line)
	if p.Via != nil {
		s += " used at " + p.Via.String()
	}
	return s
}

// Top is the place in the scenario itself: the use of the outermost fragment.
func (p Pos) Top() Pos {
	for p.Via != nil {
		p = *p.Via
	}
	return p
}

// An Error is a fault in a scenario.
type Error struct {
	Pos  Pos
	Col  int    // of the fault within the line, from 1; 0 when it is the line's as a whole
	Msg  string // what is wrong
	Want string // what would be right, or ""
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d", e.Pos.File, e.Pos.Line)
	if e.Col > 0 {
		fmt.Fprintf(&b, ":%d", e.Col)
	}
	b.WriteString(": " + e.Msg)
	if e.Want != "" {
		b.WriteString("; " + e.Want)
	}
	if e.Pos.Via != nil {
		fmt.Fprintf(&b, " (used at %s)", e.Pos.Via)
	}
	return b.String()
}

// Errors lists the [Error] values inside err, in order.
func Errors(err error) []*Error {
	var list []*Error
	var walk func(error)
	walk = func(err error) {
		if e, ok := err.(*Error); ok {
			list = append(list, e)
			return
		}
		switch u := err.(type) {
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				walk(e)
			}
		case interface{ Unwrap() error }:
			if e := u.Unwrap(); e != nil {
				walk(e)
			}
		}
	}
	if err != nil {
		walk(err)
	}
	return list
}

// collector gathers faults so that one run of lint shows them all.
type collector struct{ errs []error }

func (c *collector) add(pos Pos, col int, want, format string, args ...any) {
	c.errs = append(c.errs, &Error{Pos: pos, Col: col, Msg: fmt.Sprintf(format, args...), Want: want})
}

func (c *collector) err() error { return errors.Join(c.errs...) }

// nearest returns the candidate that a misspelt word most likely meant, as
// "did you mean …?", or lists the candidates when none is near.
func nearest(word string, candidates []string) string {
	best, score := "", 3
	for _, c := range candidates {
		if d := distance(word, c); d < score {
			best, score = c, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "one of: " + strings.Join(candidates, " ")
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := prev[0]
		prev[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diag, prev[j] = prev[j], min(prev[j]+1, prev[j-1]+1, diag+cost)
		}
	}
	return prev[len(b)]
}
