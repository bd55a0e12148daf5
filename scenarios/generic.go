package scenarios

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/script"
)

//go:embed generic.txt
var genericText string

// askedOfGeneric lists the requirements that some scenario judges at a source
// of kind generic.
func askedOfGeneric(all []*script.Scenario) map[string]bool {
	asked := make(map[string]bool)
	for _, s := range all {
		if !slices.ContainsFunc(s.Needs, func(n string) bool { return n == "generic" || strings.HasPrefix(n, "generic@") }) {
			continue
		}
		for _, id := range s.RequirementsOf("generic") {
			asked[id] = true
		}
	}
	return asked
}

// NotAskedOfGeneric lists the requirements that scenarios judge and that are
// never asked of a source of kind generic, each with its reason. A requirement
// of all sources without a reason, and a reason for what is asked, is an error.
func NotAskedOfGeneric(all []*script.Scenario) ([]Requirement, error) {
	rows, err := Requirements(all)
	if err != nil {
		return nil, err
	}
	reasons := make(map[string]string)
	for n, line := range strings.Split(genericText, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		ids, reason, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fmt.Errorf("generic.txt:%d: %q is not complete", n+1, line)
		}
		for _, id := range strings.Fields(ids) {
			if reasons[id] != "" {
				return nil, fmt.Errorf("generic.txt:%d: %s stands twice", n+1, id)
			}
			reasons[id] = reason
		}
	}
	asked := askedOfGeneric(all)
	var out []Requirement
	for _, r := range rows {
		reason := reasons[r.ID]
		delete(reasons, r.ID)
		judged := len(r.Scenarios) > 0
		switch {
		case reason != "" && (!judged || asked[r.ID]):
			return nil, fmt.Errorf("generic.txt: %s needs no reason", r.ID)
		case !judged || asked[r.ID]:
			continue
		case reason == "" && r.Whom == "all":
			return nil, fmt.Errorf("generic.txt: %s is never asked of a generic source, and there is no reason", r.ID)
		case reason == "":
			reason = "it is about " + r.Whom + " alone"
		}
		r.Reason = reason
		out = append(out, r)
	}
	for id := range reasons {
		return nil, fmt.Errorf("generic.txt: there is no requirement %s", id)
	}
	return out, nil
}
