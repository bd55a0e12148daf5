package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/wire"
)

// putBackFor bounds putting a source back as it was.
const putBackFor = 90 * time.Second

// A change is what an execution has changed of its source.
type change struct {
	prefixes  []string // names, and beginnings of names, that were touched
	before    []Setting
	restarted bool // a restart brought the change into force
	// pending says that something was stored after the last restart: even where
	// it stands as it did before, it may not be what is in force.
	pending bool
}

// act does something to the source.
func (x *execution) act(st *script.Act) error {
	admin := x.item.source.Admin
	if admin == nil {
		return &openClaim{reason: "nobody may change the settings of " + x.item.source.Name + " while it runs: this claim is judged in labs of real servers"}
	}
	name, _, err := st.Name.Expand(x.env)
	if err != nil {
		return fmt.Errorf("%s: %w", st.Pos, err)
	}
	value, _, err := st.Value.Expand(x.env)
	if err != nil {
		return fmt.Errorf("%s: %w", st.Pos, err)
	}
	x.tr.Add("source", wire.Note, false, strings.TrimSpace(st.Verb+" "+name+map[bool]string{true: " = " + value}[st.Verb == "insert"]))
	x.sends++
	switch st.Verb {
	case "insert":
		if err := x.touch(name); err != nil {
			return err
		}
		return x.acted(st, admin.Insert(x.ctx, []Setting{{name, value}}))
	case "clear":
		if err := x.touch(name); err != nil {
			return err
		}
		return x.acted(st, admin.Clear(x.ctx, name))
	case "guide", "unguide":
		guide := admin.Guide()
		names := make([]string, len(guide))
		for i, s := range guide {
			names[i] = s.Name
		}
		if err := x.touch(names...); err != nil {
			return err
		}
		if st.Verb == "unguide" {
			return x.acted(st, admin.Clear(x.ctx, names...))
		}
		return x.acted(st, admin.Insert(x.ctx, guide))
	case "reload":
		err := admin.Reload(x.ctx)
		var rejected *Rejected
		if errors.As(err, &rejected) != st.Rejects || err != nil && !st.Rejects {
			if err != nil {
				return x.acted(st, err)
			}
			x.find(st.Pos, result.Finding{Code: "accepted", Wanted: "a reload that rejects the settings", Found: "it was accepted",
				Facts: []string{"act=reload", "reload=accepted"}})
			return errStop
		}
		return nil
	case "restart":
		x.changed.restarted = true
		began := time.Now()
		err := admin.Restart(x.ctx)
		if err == nil {
			x.tr.Add("source", wire.Note, false, fmt.Sprintf("every listener was served again after %.1f s", time.Since(began).Seconds()))
		}
		x.changed.pending = err != nil
		return x.acted(st, err)
	case "unblock":
		return x.acted(st, admin.Unblock(x.ctx))
	}
	return fmt.Errorf("%s: the engine cannot do this to a source", st.Pos)
}

// acted turns what a source refused into a finding; any other error is ours.
func (x *execution) acted(st *script.Act, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(x.ctx); cause != nil {
		return cause
	}
	var rejected *Rejected
	if errors.As(err, &rejected) {
		x.find(st.Pos, result.Finding{Code: "rejected", Wanted: "the source to take its settings", Found: wire.Visible(x.redacted(rejected.Error())),
			Facts: append([]string{"act=" + st.Verb}, prefixed("rejected=", sortedKeys(rejected.Settings))...)})
		return errStop
	}
	return err
}

func prefixed(p string, words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = p + w
	}
	return out
}

// touch remembers what stood below names before they are changed.
func (x *execution) touch(names ...string) error {
	x.changed.pending = true
	var fresh []string
	for _, n := range names {
		if !slices.Contains(x.changed.prefixes, n) {
			fresh = append(fresh, n)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	before, err := x.item.source.Admin.List(x.ctx, fresh...)
	if err != nil {
		return err
	}
	x.changed.prefixes = append(x.changed.prefixes, fresh...)
	x.changed.before = append(x.changed.before, before...)
	return nil
}

// unban takes back the bans that a scenario with that hazard may have earned.
func (x *execution) unban() error {
	admin := x.item.source.Admin
	if admin == nil || !slices.Contains(x.item.scenario.Hazards, "ban") {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), putBackFor)
	defer cancel()
	return admin.Unblock(ctx, x.blocked...)
}

// putBack undoes what the execution has changed of its source. A source that
// cannot be put back is not judged any further.
func (x *execution) putBack() error {
	c := &x.changed
	if len(c.prefixes) == 0 && !c.restarted {
		return nil
	}
	admin := x.item.source.Admin
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), putBackFor)
	defer cancel()
	now, err := admin.List(ctx, c.prefixes...)
	if err != nil {
		return err
	}
	slices.SortFunc(c.before, func(a, b Setting) int { return strings.Compare(a.Name, b.Name) })
	c.before = slices.Compact(c.before)
	same := slices.Equal(now, c.before)
	if same && !c.pending {
		return nil
	}
	if !same {
		if err := errors.Join(admin.Clear(ctx, c.prefixes...), admin.Insert(ctx, c.before)); err != nil {
			return err
		}
	}
	var rejected *Rejected
	if !c.restarted {
		// A source whose settings were rejected before is started again: what can
		// be in force then is.
		if err := admin.Reload(ctx); !errors.As(err, &rejected) {
			return err
		}
	}
	return admin.Restart(ctx)
}
