package reports

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
)

// MergeError says why runs cannot be merged.
type MergeError struct{ Why string }

func (e *MergeError) Error() string { return "the runs cannot be merged: " + e.Why }

// Merge puts the runs of the shards of one plan together, as if they had been
// one run. The order of its arguments does not matter. The runs must be of one
// schema, plan, ceiling and target; where they name shards, every shard must
// be there once, because a missing one would look like claims that were never
// planned. Errors are of type [*MergeError], or a [*DuplicateError] when two
// runs hold the same result. The runs are not changed.
func Merge(runs ...*result.Run) (*result.Run, error) {
	if len(runs) == 0 {
		return nil, &MergeError{"there are none"}
	}
	runs = slices.Clone(runs)
	slices.SortStableFunc(runs, func(a, b *result.Run) int {
		return cmp.Or(cmp.Compare(shardIndex(a), shardIndex(b)), a.Started.Compare(b.Started), cmp.Compare(firstKey(a), firstKey(b)))
	})
	if err := mergeable(runs); err != nil {
		return nil, err
	}
	first := runs[0]
	m := &result.Run{
		Schema: result.Schema, Tool: first.Tool,
		Target:  result.Target{Kind: first.Target.Kind, Proxy: first.Target.Proxy, Engine: first.Target.Engine, Sources: []result.Source{}},
		Plan:    result.Plan{SHA256: first.Plan.SHA256, MaxRisk: first.Plan.MaxRisk},
		Started: first.Started, Problems: []result.Problem{}, Diagnoses: []result.Diagnosis{}, Excluded: []result.Excluded{},
		Results: []result.Result{}, Notices: []string{},
	}
	end := first.Started
	seen := map[string]bool{}
	for _, r := range runs {
		if r.Started.Before(m.Started) {
			m.Started = r.Started
		}
		if e := r.Started.Add(time.Duration(r.Seconds * float64(time.Second))); e.After(end) {
			end = e
		}
		for i := range r.Results {
			key := r.Results[i].Key()
			if seen[key] {
				return nil, &DuplicateError{Key: visible(key)}
			}
			seen[key] = true
		}
		m.Results = append(m.Results, r.Results...)
		for _, s := range r.Target.Sources {
			i := slices.IndexFunc(m.Target.Sources, func(have result.Source) bool { return have.Name == s.Name })
			if i < 0 {
				m.Target.Sources = append(m.Target.Sources, s)
			} else if m.Target.Sources[i].Software == "" {
				m.Target.Sources[i].Software = s.Software
			}
		}
		m.Problems = union(m.Problems, r.Problems)
		m.Excluded = union(m.Excluded, r.Excluded)
		m.Notices = union(m.Notices, r.Notices)
	}
	slices.SortStableFunc(m.Results, func(a, b result.Result) int { return cmp.Compare(a.Key(), b.Key()) })
	m.Seconds = end.Sub(m.Started).Seconds()
	m.Counts = result.Count(m.Results)
	m.Diagnoses = mergeDiagnoses(runs)
	m.Exit = mergeExit(runs, m)
	return m, nil
}

func firstKey(r *result.Run) string {
	if len(r.Results) == 0 {
		return ""
	}
	return r.Results[0].Key()
}

// shard reads "2/3"; of is 0 when the run names none.
func shard(r *result.Run) (index, of int, err error) {
	if r.Plan.Shard == "" {
		return 0, 0, nil
	}
	var rest string
	if n, _ := fmt.Sscanf(r.Plan.Shard+" ", "%d/%d%s", &index, &of, &rest); n != 2 || index < 1 || index > of {
		return 0, 0, &MergeError{fmt.Sprintf("%q is no shard: it should be like 2/3", visible(clip(r.Plan.Shard, 40)))}
	}
	return index, of, nil
}

func shardIndex(r *result.Run) int {
	i, _, _ := shard(r)
	return i
}

// mergeable says why runs do not belong together.
func mergeable(runs []*result.Run) error {
	first := runs[0]
	sources := map[string]result.Source{}
	for _, r := range runs {
		for _, c := range []struct{ what, a, b string }{
			{"schema", first.Schema, r.Schema}, {"plan", first.Plan.SHA256, r.Plan.SHA256}, {"highest risk", first.Plan.MaxRisk, r.Plan.MaxRisk},
			{"target", first.Target.Kind, r.Target.Kind}, {"proxy", first.Target.Proxy, r.Target.Proxy},
			{"mailproof", first.Tool.Version + " " + first.Tool.Commit, r.Tool.Version + " " + r.Tool.Commit},
		} {
			if c.a != c.b {
				return &MergeError{fmt.Sprintf("they are not shards of one plan: their %s differs (%s and %s)", c.what, or(visible(clip(c.a, 80)), "none"), or(visible(clip(c.b, 80)), "none"))}
			}
		}
		for _, s := range r.Target.Sources {
			s.Software = "" // a part in which the source did not start does not know it
			if have, ok := sources[s.Name]; ok && !reflect.DeepEqual(have, s) {
				return &MergeError{fmt.Sprintf("the source %s is not the same everywhere: %s in one run, %s in another", visible(s.Name), visible(sourceWords(&have)), visible(sourceWords(&s)))}
			}
			sources[s.Name] = s
		}
	}
	_, of, err := shard(first)
	if err != nil {
		return err
	}
	have := map[int]bool{}
	for _, r := range runs {
		i, n, err := shard(r)
		switch {
		case err != nil:
			return err
		case n != of:
			return &MergeError{fmt.Sprintf("one is shard %s and another %s", or(first.Plan.Shard, "of nothing"), or(r.Plan.Shard, "of nothing"))}
		case of > 0 && have[i]:
			return &MergeError{fmt.Sprintf("shard %s is there twice", r.Plan.Shard)}
		}
		have[i] = true
	}
	var missing []string
	for i := 1; i <= of && len(missing) < 20; i++ {
		if !have[i] {
			missing = append(missing, fmt.Sprintf("%d/%d", i, of))
		}
	}
	if missing != nil {
		return &MergeError{"shard " + strings.Join(missing, ", ") + " is missing: its claims would look as if they had never been planned"}
	}
	return nil
}

// union appends what is not there yet.
func union[T any](have, more []T) []T {
	for _, m := range more {
		if !slices.ContainsFunc(have, func(h T) bool { return reflect.DeepEqual(h, m) }) {
			have = append(have, m)
		}
	}
	return have
}

// mergeDiagnoses joins the diagnoses of the same cause at the same source.
// What stood first in some run stands before what never did.
func mergeDiagnoses(runs []*result.Run) []result.Diagnosis {
	type ranked struct {
		result.Diagnosis
		rank int
	}
	var all []*ranked
	for _, r := range runs {
		for rank, d := range r.Diagnoses {
			i := slices.IndexFunc(all, func(h *ranked) bool { return h.Code == d.Code && h.Source == d.Source })
			if i < 0 {
				d.Results, d.DiscriminatedBy, d.Alternatives = slices.Clone(d.Results), slices.Clone(d.DiscriminatedBy), slices.Clone(d.Alternatives)
				d.Remedy.Changes, d.Remedy.Apply = slices.Clone(d.Remedy.Changes), slices.Clone(d.Remedy.Apply)
				all = append(all, &ranked{d, rank})
				continue
			}
			h := all[i]
			h.rank = min(h.rank, rank)
			h.Results = union(h.Results, d.Results)
			h.DiscriminatedBy = union(h.DiscriminatedBy, d.DiscriminatedBy)
			h.Alternatives = union(h.Alternatives, d.Alternatives)
			h.Remedy.Changes = union(h.Remedy.Changes, d.Remedy.Changes)
			h.Remedy.Apply = union(h.Remedy.Apply, d.Remedy.Apply)
			if d.Level == result.Must || h.Level == result.May {
				h.Level = d.Level
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *ranked) int { return a.rank - b.rank })
	out := make([]result.Diagnosis, len(all))
	for i, h := range all {
		slices.Sort(h.Results)
		out[i] = h.Diagnosis
	}
	return out
}

// mergeExit is the exit status that one run would have had: the first of the
// contract that applies to any part, except that a part which held nothing, or
// nothing that the target has, says nothing about the whole.
func mergeExit(runs []*result.Run, m *result.Run) int {
	any := func(status int, counts func(*result.Run) bool) bool {
		return slices.ContainsFunc(runs, func(r *result.Run) bool { return r.Exit == status && counts(r) })
	}
	always := func(*result.Run) bool { return true }
	switch {
	case any(result.ExitInterrupted, always):
		return result.ExitInterrupted
	case any(result.ExitUsage, always):
		return result.ExitUsage
	case any(result.ExitFailed, always):
		return result.ExitFailed
	case len(m.Results) > 0 && m.Counts.Unsupported == len(m.Results):
		return result.ExitUnjudged
	case any(result.ExitUnjudged, func(r *result.Run) bool {
		return len(r.Problems) > 0 || result.Count(r.Results).Unsupported < len(r.Results)
	}):
		return result.ExitUnjudged
	case len(m.Results) == 0 && any(result.ExitUnjudged, always):
		return result.ExitUnjudged
	case any(result.ExitEmpty, func(r *result.Run) bool { return len(r.Results) > 0 || len(m.Results) == 0 }):
		return result.ExitEmpty
	}
	return result.ExitOK
}

// uniqueKeys indexes results by key.
func uniqueKeys(run *result.Run) (map[string]*result.Result, error) {
	index := make(map[string]*result.Result, len(run.Results))
	for i := range run.Results {
		key := run.Results[i].Key()
		if index[key] != nil {
			return nil, &DuplicateError{Key: visible(key)}
		}
		index[key] = &run.Results[i]
	}
	return index, nil
}

// errNoRun says that a run to compare is not there.
var errNoRun = errors.New("there are two runs to compare, and one is missing")
