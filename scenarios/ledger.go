package scenarios

import (
	_ "embed"
	"fmt"
	"strings"

	"github.com/mailproof/mailproof/harness/script"
)

//go:embed requirements.txt
var requirementsText string

//go:embed ledger.txt
var ledgerText string

// A Requirement is one row of the catalogue: what must be so of a source, a
// proxy or the new server for a migration to work.
type Requirement struct {
	ID     string `json:"id"`
	Level  string `json:"level"`
	Whom   string `json:"whom"`
	Claim  string `json:"claim"`
	Reason string `json:"reason,omitempty"` // why no scenario names it
	// Scenarios are the ids of those that name it.
	Scenarios []string `json:"scenarios"`
}

// concern tells scenarios which of their requirements are about one kind of
// source alone.
func concern(all []*script.Scenario) {
	kinds := make(map[string]string)
	for _, line := range strings.Split(requirementsText, "\n") {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 && (f[2] == "stalwart" || f[2] == "dovecot-postfix") {
			kinds[f[0]] = f[2]
		}
	}
	for _, s := range all {
		s.Concerns = make(map[string]string, len(s.Requirements))
		for _, id := range s.Requirements {
			if k := kinds[id]; k != "" {
				s.Concerns[id] = k
			}
		}
	}
}

// Requirements is the catalogue, with the scenarios that cover each row and
// the reason for each row that none covers. A row with neither, a reason for a
// covered row, or a scenario that names an unknown row is an error.
func Requirements(all []*script.Scenario) ([]Requirement, error) {
	var rows []Requirement
	index := make(map[string]int)
	for n, line := range strings.Split(requirementsText, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			return nil, fmt.Errorf("requirements.txt:%d: %q is not complete", n+1, line)
		}
		if _, dup := index[f[0]]; dup {
			return nil, fmt.Errorf("requirements.txt:%d: %s stands twice", n+1, f[0])
		}
		index[f[0]] = len(rows)
		rows = append(rows, Requirement{ID: f[0], Level: f[1], Whom: f[2], Claim: f[3], Scenarios: []string{}})
	}
	for _, s := range all {
		for _, id := range s.Requirements {
			i, ok := index[id]
			if !ok {
				return nil, fmt.Errorf("%s:%d: there is no requirement %s", s.Path, s.Lines["requirements"], id)
			}
			rows[i].Scenarios = append(rows[i].Scenarios, s.ID)
		}
	}
	for n, line := range strings.Split(ledgerText, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		ids, reason, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fmt.Errorf("ledger.txt:%d: %q is not complete", n+1, line)
		}
		for _, id := range strings.Fields(ids) {
			i, ok := index[id]
			switch {
			case !ok:
				return nil, fmt.Errorf("ledger.txt:%d: there is no requirement %s", n+1, id)
			case rows[i].Reason != "":
				return nil, fmt.Errorf("ledger.txt:%d: %s stands twice", n+1, id)
			case len(rows[i].Scenarios) > 0:
				return nil, fmt.Errorf("ledger.txt:%d: %s is covered by %s", n+1, id, rows[i].Scenarios[0])
			}
			rows[i].Reason = reason
		}
	}
	for _, r := range rows {
		if r.Reason == "" && len(r.Scenarios) == 0 {
			return nil, fmt.Errorf("ledger.txt: %s has neither a scenario nor a reason", r.ID)
		}
	}
	return rows, nil
}
