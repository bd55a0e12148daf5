package reports

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/mailproof/mailproof/harness/result"
)

// A Difference is what changed from one run to another.
type Difference struct {
	Before, After result.Counts
	// Changed lists results of both runs whose verdict differs, the worst news
	// first.
	Changed []VerdictChange
	// Added and Removed list results that only the later or only the earlier
	// run has, by key.
	Added, Removed []VerdictChange
	// Causes and Cured are the diagnoses that only the later or only the
	// earlier run has, as "CODE, SOURCE: TITLE".
	Causes, Cured []string
	// SamePlan says whether both runs had the same plan to carry out.
	SamePlan bool
}

// A VerdictChange is one result in two runs. A verdict is "" where a run does
// not have the result.
type VerdictChange struct {
	Key           string
	Level         result.Level
	Before, After result.Verdict
	Why           string // of the later verdict, in one line
}

// Diff compares two runs by the keys of their results, which are stable
// between runs. A run with two results of the same key is a [*DuplicateError].
func Diff(before, after *result.Run) (*Difference, error) {
	if before == nil || after == nil {
		return nil, errNoRun
	}
	old, err := uniqueKeys(before)
	if err != nil {
		return nil, fmt.Errorf("the earlier run: %w", err)
	}
	now, err := uniqueKeys(after)
	if err != nil {
		return nil, fmt.Errorf("the later run: %w", err)
	}
	d := &Difference{Before: result.Count(before.Results), After: result.Count(after.Results), SamePlan: before.Plan.SHA256 == after.Plan.SHA256}
	for i := range after.Results {
		r := &after.Results[i]
		o := old[r.Key()]
		c := VerdictChange{Key: r.Key(), Level: r.Level, After: r.Verdict, Why: why(r)}
		switch {
		case o == nil:
			d.Added = append(d.Added, c)
		case o.Verdict != r.Verdict:
			c.Before = o.Verdict
			d.Changed = append(d.Changed, c)
		}
	}
	for i := range before.Results {
		if r := &before.Results[i]; now[r.Key()] == nil {
			d.Removed = append(d.Removed, VerdictChange{Key: r.Key(), Level: r.Level, Before: r.Verdict})
		}
	}
	rank := func(v result.Verdict) int { return slices.Index(result.Verdicts(), v) }
	slices.SortFunc(d.Changed, func(a, b VerdictChange) int {
		return cmp.Or(cmp.Compare(rank(a.After), rank(b.After)), cmp.Compare(a.Key, b.Key))
	})
	byKey := func(a, b VerdictChange) int { return cmp.Compare(a.Key, b.Key) }
	slices.SortFunc(d.Added, byKey)
	slices.SortFunc(d.Removed, byKey)
	d.Causes = causesOnlyIn(after, before)
	d.Cured = causesOnlyIn(before, after)
	return d, nil
}

// Empty says that nothing changed.
func (d *Difference) Empty() bool {
	return len(d.Changed)+len(d.Added)+len(d.Removed)+len(d.Causes)+len(d.Cured) == 0
}

func why(r *result.Result) string {
	if r.Verdict == result.Fail && len(r.Findings) > 0 {
		return fmt.Sprintf("wanted %s, found %s", r.Findings[0].Wanted, r.Findings[0].Found)
	}
	return r.Reason
}

// causesOnlyIn lists the diagnoses of a run that another does not have.
func causesOnlyIn(run, other *result.Run) []string {
	var list []string
	for _, d := range run.Diagnoses {
		if !slices.ContainsFunc(other.Diagnoses, func(o result.Diagnosis) bool { return o.Code == d.Code && o.Source == d.Source }) {
			list = append(list, fmt.Sprintf("%s, %s: %s", d.Code, d.Source, d.Title))
		}
	}
	return list
}

// WriteDiff writes a difference as plain lines: what changed first, then what
// only one of the runs has.
func WriteDiff(w io.Writer, d *Difference) error {
	b := bufio.NewWriter(w)
	if !d.SamePlan {
		fmt.Fprintln(b, "The two runs had different plans.")
	}
	for _, c := range d.Changed {
		fmt.Fprintf(b, "%-12s -> %-12s  %s", c.Before, c.After, visible(c.Key))
		if c.Level == result.Should || c.Level == result.May {
			fmt.Fprintf(b, " (%s)", c.Level)
		}
		fmt.Fprintln(b)
		if c.Why != "" {
			fmt.Fprintf(b, "                                %s\n", clip(visible(c.Why), 300))
		}
	}
	for _, c := range d.Added {
		fmt.Fprintf(b, "%-12s -> %-12s  %s\n", "(not there)", c.After, visible(c.Key))
	}
	for _, c := range d.Removed {
		fmt.Fprintf(b, "%-12s -> %-12s  %s\n", c.Before, "(not there)", visible(c.Key))
	}
	for _, c := range d.Causes {
		fmt.Fprintf(b, "new cause: %s\n", visible(c))
	}
	for _, c := range d.Cured {
		fmt.Fprintf(b, "no longer a cause: %s\n", visible(c))
	}
	if d.Empty() {
		fmt.Fprintln(b, "No verdict changed.")
	}
	fmt.Fprintf(b, "Before: %s. After: %s. %s changed, %d added, %d gone.\n", countWords(d.Before), countWords(d.After),
		counted(len(d.Changed), "verdict", "verdicts"), len(d.Added), len(d.Removed))
	return b.Flush()
}
