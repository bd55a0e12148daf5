package harness

import (
	"context"
	"errors"
)

// A Bug is a misbehaviour of a reference server that no configuration expresses.
type Bug struct {
	Name     string
	Says     string
	Releases []string // empty for all
}

// Bugs lists the misbehaviours of the reference servers.
func Bugs() []Bug { return nil }

// BugNamed returns the bug of that name.
func BugNamed(name string) (Bug, bool) {
	for _, b := range Bugs() {
		if b.Name == name {
			return b, true
		}
	}
	return Bug{}, false
}

// A Reference is a running reference lab.
type Reference struct{ target *Target }

// StartReference starts the reference lab.
func StartReference(ctx context.Context, specs []SourceSpec, withProxy bool) (*Reference, error) {
	return nil, errors.New("the reference servers are not built yet: use --lab docker")
}

// Target is what the lab has to judge.
func (r *Reference) Target() *Target { return r.target }

// Close ends the lab.
func (r *Reference) Close(context.Context) error { return nil }

// ReferenceStarter starts reference labs for [Prove].
func ReferenceStarter(ctx context.Context, specs []SourceSpec) (*Target, func(context.Context) error, error) {
	lab, err := StartReference(ctx, specs, true)
	if err != nil {
		return nil, nil, err
	}
	return lab.Target(), lab.Close, nil
}
