package run

import (
	"context"
)

// An Admin changes a source's settings while it runs, as the operator who
// follows a guide would. Only labs hand one out; a source without one, such as
// Dovecot and Postfix, is configured by its files before it starts.
//
// Nothing that an Admin returns holds a secret.
type Admin interface {
	// Insert stores settings, in the order given. Stored is not in force.
	Insert(ctx context.Context, settings []Setting) error
	// Clear removes every setting whose name begins with one of the prefixes.
	Clear(ctx context.Context, prefixes ...string) error
	// List returns what is stored below the prefixes.
	List(ctx context.Context, prefixes ...string) ([]Setting, error)
	// Reload brings into force what can be without a restart. What the source
	// rejects is a [*Rejected]; then nothing was brought into force.
	Reload(ctx context.Context) error
	// Restart ends every session, starts the source again and returns when it
	// answers.
	Restart(ctx context.Context) error
	// Guide is what of the source's settings follows the migration guide.
	Guide() []Setting
	// Unblock removes every ban but those of the addresses to keep, and the
	// source's counts of what it held against anybody.
	Unblock(ctx context.Context, keep ...string) error
	// Blocked lists the addresses that the source refuses.
	Blocked(ctx context.Context) ([]string, error)
}

// A Setting is one of a source's settings.
type Setting struct{ Name, Value string }

// Rejected says which settings a source refused when it was to bring them into
// force, and in which words.
type Rejected struct{ Settings map[string]string }

func (e *Rejected) Error() string {
	words := "the source rejects its settings, and none of them is in force:"
	for _, name := range sortedKeys(e.Settings) {
		words += " " + name + ": " + e.Settings[name] + ";"
	}
	return words[:len(words)-1]
}
