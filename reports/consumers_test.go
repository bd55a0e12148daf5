package reports

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

// This file holds models of programs that read JUnit XML: the rules by which
// each counts a case as passed, failed or skipped, written down from their
// code or documentation. The test of WriteJUnit demands that all count alike.

// A tally is what a reader tells its user.
type tally struct{ pass, fail, skip int }

// A node is one XML element.
type node struct {
	name     string
	attrs    map[string]string
	children []*node
	text     string
}

func (n *node) all(name string) []*node {
	var out []*node
	for _, c := range n.children {
		if c.name == name {
			out = append(out, c)
		}
	}
	return out
}

func (n *node) has(names ...string) bool {
	for _, name := range names {
		if len(n.all(name)) > 0 {
			return true
		}
	}
	return false
}

// readXML parses a document strictly, as every reader does first.
func readXML(r io.Reader) (*node, error) {
	dec := xml.NewDecoder(r)
	root := &node{}
	stack := []*node{root}
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		top := stack[len(stack)-1]
		switch tok := tok.(type) {
		case xml.StartElement:
			n := &node{name: tok.Name.Local, attrs: map[string]string{}}
			for _, a := range tok.Attr {
				if _, dup := n.attrs[a.Name.Local]; dup {
					return nil, fmt.Errorf("%s has the attribute %s twice", n.name, a.Name.Local)
				}
				n.attrs[a.Name.Local] = a.Value
			}
			top.children = append(top.children, n)
			stack = append(stack, n)
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			top.text += string(tok)
		}
	}
	if len(root.children) != 1 {
		return nil, fmt.Errorf("%d root elements", len(root.children))
	}
	return root.children[0], nil
}

// jenkins: suites may nest, and one without cases and error is not seen; an
// error directly in a suite is a failed case; the class defaults to the
// suite's name and is cut into package and class at its last dot; skipped wins
// over error and failure; flakyFailure alone is a pass.
func jenkins(root *node) (tally, error) {
	var t tally
	var suite func(n *node)
	suite = func(n *node) {
		for _, s := range n.all("testsuite") {
			suite(s)
		}
		if n.has("error") {
			t.fail++
		}
		for _, c := range n.all("testcase") {
			switch {
			case c.has("skipped"):
				t.skip++
			case c.has("error", "failure"):
				t.fail++
			default:
				t.pass++
			}
		}
	}
	suite(root)
	if t == (tally{}) {
		t.fail++ // "[empty]"
	}
	return t, nil
}

// dorny/test-reporter, java-junit: only suites directly under the root; a
// suite or a case without a name makes it throw, as does a suite without a
// time that can be read; failure and error win over skipped.
func dorny(root *node) (tally, error) {
	var t tally
	for _, s := range root.all("testsuite") {
		if _, ok := s.attrs["name"]; !ok {
			return t, errors.New("dorny: a suite has no name")
		}
		if _, err := strconv.ParseFloat(s.attrs["time"], 64); err != nil {
			return t, fmt.Errorf("dorny: time of suite %s: %w", s.attrs["name"], err)
		}
		for _, c := range s.all("testcase") {
			if _, ok := c.attrs["name"]; !ok {
				return t, errors.New("dorny: a case has no name")
			}
			switch {
			case c.has("failure", "error"):
				t.fail++
			case c.has("skipped"):
				t.skip++
			default:
				t.pass++
			}
		}
	}
	return t, nil
}

// mikepenz/action-junit-report: suites may nest; skipped, or a status of
// disabled or ignored, wins over failure and error; what is left of the total
// has passed. Without file it searches the repository for the last part of the
// class, so that a wrong place is annotated.
func mikepenz(root *node) (tally, error) {
	total, fail, skip := 0, 0, 0
	var suite func(n *node) error
	suite = func(n *node) error {
		for _, s := range n.all("testsuite") {
			if err := suite(s); err != nil {
				return err
			}
		}
		for _, c := range n.all("testcase") {
			total++
			skipped := c.has("skipped") || c.attrs["status"] == "disabled" || c.attrs["status"] == "ignored"
			failed := c.has("failure", "error")
			if skipped {
				skip++
			}
			if failed && !skipped {
				fail++
			}
			if _, ok := c.attrs["line"]; ok {
				if n, err := strconv.Atoi(c.attrs["line"]); err != nil || n < 1 || c.attrs["file"] == "" {
					return fmt.Errorf("mikepenz: %s has line %q of file %q", c.attrs["name"], c.attrs["line"], c.attrs["file"])
				}
			}
		}
		return nil
	}
	err := suite(root)
	return tally{total - fail - skip, fail, skip}, err
}

// EnricoMi/publish-unit-test-result-action: the most severe result of a case
// counts (error, failure, success, skipped); cases of the same class, name and
// file are runs of one test; the totals of suites are taken from attributes,
// and are shown beside the cases.
func enricoMi(root *node) (tally, error) {
	severity := map[string]int{"skipped": 0, "success": 1, "failure": 2, "error": 3}
	tests := map[string]string{}
	var attrs struct{ tests, failures, errors, skipped int }
	var cases struct{ tests, failures, errors, skipped int }
	for _, s := range root.all("testsuite") {
		for name, sum := range map[string]*int{"tests": &attrs.tests, "failures": &attrs.failures, "errors": &attrs.errors, "skipped": &attrs.skipped} {
			n, err := strconv.Atoi(s.attrs[name])
			if err != nil {
				return tally{}, fmt.Errorf("enricomi: %s of suite %s: %w", name, s.attrs["name"], err)
			}
			*sum += n
		}
		for _, c := range s.all("testcase") {
			state := ""
			for _, r := range c.children {
				if v, ok := severity[r.name]; ok && (state == "" || v > severity[state]) {
					state = r.name
				}
			}
			if state == "" {
				state = "success"
			}
			cases.tests++
			switch state {
			case "failure":
				cases.failures++
			case "error":
				cases.errors++
			case "skipped":
				cases.skipped++
			}
			key := c.attrs["classname"] + "\x00" + c.attrs["name"] + "\x00" + c.attrs["file"]
			if before, ok := tests[key]; !ok || severity[state] > severity[before] {
				tests[key] = state
			}
		}
	}
	if attrs != cases {
		return tally{}, fmt.Errorf("enricomi: the suites' numbers %v are not those of the cases %v", attrs, cases)
	}
	var t tally
	for _, state := range tests {
		switch state {
		case "success":
			t.pass++
		case "skipped":
			t.skip++
		default:
			t.fail++
		}
	}
	return t, nil
}

// gitlab: of cases with the same class and name only the first is kept; both
// must be there; error and failure before skipped; a file is at most 30 MB.
func gitlab(root *node) (tally, error) {
	var t tally
	seen := map[string]bool{}
	var suite func(n *node)
	suite = func(n *node) {
		for _, s := range n.all("testsuite") {
			suite(s)
		}
		for _, c := range n.all("testcase") {
			key := c.attrs["classname"] + "\x00" + c.attrs["name"]
			if seen[key] || c.attrs["classname"] == "" || c.attrs["name"] == "" {
				continue
			}
			seen[key] = true
			switch {
			case c.has("failure", "error"):
				t.fail++
			case c.has("skipped"):
				t.skip++
			default:
				t.pass++
			}
		}
	}
	suite(root)
	return t, nil
}

// ours is what a run says itself: the tally that all of them must come to.
func ours(run *result.Run) tally {
	var t tally
	for i := range run.Results {
		r := &run.Results[i]
		silent := false
		switch {
		case r.Verdict == result.Pass:
			t.pass++
			silent = true
		case r.Verdict == result.Unsupported:
			t.skip++
			silent = true
		default:
			t.fail++
		}
		if r.Unstable && silent {
			t.fail++
		}
	}
	t.fail += len(run.Problems)
	t.skip += len(run.Excluded)
	if len(run.Results)+len(run.Problems) == 0 {
		t.fail++
	}
	return t
}

// shape checks what WriteJUnit promises beyond the counts.
func shape(root *node) error {
	if root.name != "testsuites" {
		return fmt.Errorf("the root is %s", root.name)
	}
	names := map[string]bool{}
	for _, s := range root.children {
		if s.name != "testsuite" || s.attrs["package"] != "" || names[s.attrs["name"]] {
			return fmt.Errorf("element %s %q", s.name, s.attrs["name"])
		}
		names[s.attrs["name"]] = true
		for _, c := range s.all("testcase") {
			outcomes := len(c.all("failure")) + len(c.all("error")) + len(c.all("skipped"))
			if outcomes > 1 || len(c.all("system-out")) > 1 || len(c.all("system-err")) > 1 {
				return fmt.Errorf("%s has %d outcomes", c.attrs["name"], outcomes)
			}
			if !strings.HasPrefix(c.attrs["classname"], "mailproof.") {
				return fmt.Errorf("%s is of class %q", c.attrs["name"], c.attrs["classname"])
			}
			for _, o := range c.children {
				if m, ok := o.attrs["message"]; ok && o.name != "flakyFailure" && !strings.HasPrefix(o.text, strings.SplitN(m, "…", 2)[0]) {
					return fmt.Errorf("%s: the text of %s does not begin with its message:\n%s\n%s", c.attrs["name"], o.name, m, o.text)
				}
			}
		}
	}
	return nil
}
